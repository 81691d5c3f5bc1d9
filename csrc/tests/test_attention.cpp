// Attention against plain loops over doubles, in every instruction set; gradients against finite differences.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

constexpr long kQueries = 29, kKeys = 37, kHeads = 4, kShared = 2, kSize = 19, kValueSize = 5;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Values random_values(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (double& v : values) v = static_cast<float>(normal(random));
  return values;
}

struct Example {
  Values query = random_values(kHeads * kQueries * kSize, 1), key = random_values(kShared * kKeys * kSize, 2);
  Values value = random_values(kShared * kKeys * kValueSize, 3);
  Values slopes = {0.1, 0.2, 0.3, 0.4}, sink = {0.5, -1, 2, 0};
  Values weight = random_values(kHeads * kQueries * kValueSize, 4);  // of the output in the loss
  Values lse_weight = random_values(kHeads * kQueries, 5);
};

// Bottom-right aligned: query i stands at i + K - M, and sees 9 keys to its left and 2 to its right.
constexpr long kLeft = 9, kRight = 2;

AttentionShape shape_of(Dtype dtype, int threads, long rows) {
  AttentionShape s{};
  s.dtype = dtype, s.batch = 1, s.heads = kHeads, s.key_heads = kShared, s.queries = kQueries, s.keys = kKeys;
  s.size = kSize, s.value_size = kValueSize, s.sequences = 1, s.scale = 0.3, s.softcap = 2;
  s.left = kLeft, s.right = kRight, s.bottom_right = true, s.rows = rows, s.threads = threads;
  return s;
}

struct Result {
  Values out, lse;
};

Result plain(const Example& p) {
  Result result;
  for (long n = 0; n < kHeads; ++n) {
    for (long i = 0; i < kQueries; ++i) {
      const long at = i + kKeys - kQueries, shared = n / (kHeads / kShared);
      const auto head = static_cast<size_t>(n);
      double total = std::exp(p.sink[head]), sums[kValueSize] = {};
      for (long j = 0; j < kKeys; ++j) {
        if (at - j > kLeft || j - at > kRight) continue;
        double score = 0;
        for (long u = 0; u < kSize; ++u) {
          score += p.query[static_cast<size_t>((n * kQueries + i) * kSize + u)] *
                   p.key[static_cast<size_t>((shared * kKeys + j) * kSize + u)];
        }
        const double distance = std::fabs(static_cast<double>(at - j));
        const double e = std::exp(2 * std::tanh(0.3 * score / 2) - p.slopes[head] * distance);
        total += e;
        for (long u = 0; u < kValueSize; ++u) {
          sums[u] += e * p.value[static_cast<size_t>((shared * kKeys + j) * kValueSize + u)];
        }
      }
      for (double sum : sums) result.out.push_back(sum / total);
      result.lse.push_back(std::log(total));
    }
  }
  return result;
}

double loss(const Example& p) {
  const Result r = plain(p);
  double sum = 0;
  for (size_t i = 0; i < r.out.size(); ++i) sum += r.out[i] * p.weight[i];
  for (size_t i = 0; i < r.lse.size(); ++i) sum += r.lse[i] * p.lse_weight[i];
  return sum;
}

// The tensors of the example in T.
template <class T>
struct Tensors {
  std::vector<T> query, key, value, slopes, sink, weight, lse_weight;

  explicit Tensors(const Example& p)
      : query(as(p.query)),
        key(as(p.key)),
        value(as(p.value)),
        slopes(as(p.slopes)),
        sink(as(p.sink)),
        weight(as(p.weight)),
        lse_weight(as(p.lse_weight)) {}

  static std::vector<T> as(const Values& x) { return {x.begin(), x.end()}; }
  static Heads heads(const std::vector<T>& x, long rows, long size) {
    return {x.data(), static_cast<int64_t>(x.size()), rows * size, size};
  }
  AttentionInputs inputs() const {
    AttentionInputs in{};
    in.query = heads(query, kQueries, kSize), in.key = heads(key, kKeys, kSize);
    in.value = heads(value, kKeys, kValueSize);
    in.slopes = slopes.data(), in.sink = sink.data();
    return in;
  }
};

template <class T>
void check_forward(const char* isa, Dtype dtype, double allowed) {
  const Example p;
  const Result truth = plain(p);
  const Tensors<T> x(p);
  for (long rows : {0L, 5L}) {
    std::vector<T> out(truth.out.size(), T(kNan)), lse(truth.lse.size(), T(kNan)), again = out;
    AttentionForward a{shape_of(dtype, 1, rows), x.inputs(), x.heads(out, kQueries, kValueSize), lse.data()};
    CHECK(attention_forward(a) == nullptr, isa);
    for (size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - truth.out[i]) < allowed, isa << " out " << i);
    for (size_t i = 0; i < lse.size(); ++i) CHECK(std::fabs(lse[i] - truth.lse[i]) < allowed, isa << " lse " << i);
    a.shape.threads = 3, a.out.data = again.data();
    CHECK(attention_forward(a) == nullptr && again == out, isa << " threads change bits");
  }
}

void check_backward(const char* isa) {
  Example p;
  const Tensors<double> x(p);
  Values dq(p.query.size(), kNan), dk(p.key.size(), kNan), dv(p.value.size(), kNan);
  Values d_slopes(kHeads, kNan), d_sink(kHeads, kNan);
  const AttentionBackward a{shape_of(Dtype::kFloat64, 2, 5),
                            x.inputs(),
                            x.heads(x.weight, kQueries, kValueSize),
                            x.lse_weight.data(),
                            x.heads(dq, kQueries, kSize),
                            x.heads(dk, kKeys, kSize),
                            x.heads(dv, kKeys, kValueSize),
                            d_slopes.data(),
                            d_sink.data()};
  CHECK(attention_backward(a) == nullptr, isa);
  const auto compare = [&](const char* name, Values& of, const Values& found) {
    constexpr double kStep = 1e-5;
    for (size_t i = 0; i < of.size(); i += 1 + of.size() / 40) {
      const double x0 = of[i];
      of[i] = x0 + kStep;
      const double up = loss(p);
      of[i] = x0 - kStep;
      const double slope = (up - loss(p)) / (2 * kStep);
      of[i] = x0;
      CHECK(std::fabs(found[i] - slope) < 1e-7, isa << " gradient of " << name << " " << i);
    }
    for (double g : found) CHECK(std::isfinite(g), isa << " " << name << " is not written whole");
  };
  compare("query", p.query, dq);
  compare("key", p.key, dk);
  compare("value", p.value, dv);
  compare("slopes", p.slopes, d_slopes);
  compare("sink", p.sink, d_sink);
}

}  // namespace

TEST(attention_agrees_with_plain_loops_in_every_isa_whatever_the_threads) {
  for_each_isa([](const char* isa) {
    check_forward<float>(isa, Dtype::kFloat32, 1e-5);
    check_forward<double>(isa, Dtype::kFloat64, 1e-13);
  });
}

TEST(gradients_of_attention_agree_with_finite_differences) {
  for_each_isa([](const char* isa) { check_backward(isa); });
}
