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

constexpr long kHeads = 4, kShared = 2, kSize = 19, kValueSize = 5;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Values random_values(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (double& v : values) v = static_cast<float>(normal(random));
  return values;
}

// Bottom-right aligned: query i stands at i + K - M, and sees `left` keys to its left and 2 to its right.
constexpr long kRight = 2;

struct Example {
  long queries, keys, left;
  Values query, key, value;
  Values slopes = {0.1, 0.2, 0.3, 0.4}, sink = {0.5, -1, 2, 0};
  Values weight, lse_weight;  // of the output and the LSE in the loss

  Example(long of_queries, long of_keys, long to_the_left) : queries(of_queries), keys(of_keys), left(to_the_left) {
    const auto rows = static_cast<size_t>(kHeads * queries), columns = static_cast<size_t>(kShared * keys);
    query = random_values(rows * kSize, 1), key = random_values(columns * kSize, 2);
    value = random_values(columns * kValueSize, 3), weight = random_values(rows * kValueSize, 4);
    lse_weight = random_values(rows, 5);
  }
};

AttentionShape shape_of(const Example& p, Dtype dtype, int threads, long rows) {
  AttentionShape s{};
  s.dtype = dtype, s.batch = 1, s.heads = kHeads, s.key_heads = kShared, s.queries = p.queries, s.keys = p.keys;
  s.size = kSize, s.value_size = kValueSize, s.sequences = 1, s.scale = 0.3, s.softcap = 2;
  s.left = p.left, s.right = kRight, s.bottom_right = true, s.rows = rows, s.threads = threads;
  return s;
}

struct Result {
  Values out, lse;
};

Result plain(const Example& p) {
  Result result;
  for (long n = 0; n < kHeads; ++n) {
    for (long i = 0; i < p.queries; ++i) {
      const long at = i + p.keys - p.queries, shared = n / (kHeads / kShared);
      const auto head = static_cast<size_t>(n);
      double total = std::exp(p.sink[head]), sums[kValueSize] = {};
      for (long j = 0; j < p.keys; ++j) {
        if ((p.left >= 0 && at - j > p.left) || j - at > kRight) continue;
        double score = 0;
        for (long u = 0; u < kSize; ++u) {
          score += p.query[static_cast<size_t>((n * p.queries + i) * kSize + u)] *
                   p.key[static_cast<size_t>((shared * p.keys + j) * kSize + u)];
        }
        const double distance = std::fabs(static_cast<double>(at - j));
        const double e = std::exp(2 * std::tanh(0.3 * score / 2) - p.slopes[head] * distance);
        total += e;
        for (long u = 0; u < kValueSize; ++u) {
          sums[u] += e * p.value[static_cast<size_t>((shared * p.keys + j) * kValueSize + u)];
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
  long queries, keys;
  std::vector<T> query, key, value, slopes, sink, weight, lse_weight;

  explicit Tensors(const Example& p)
      : queries(p.queries),
        keys(p.keys),
        query(as(p.query)),
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
    in.query = heads(query, queries, kSize), in.key = heads(key, keys, kSize);
    in.value = heads(value, keys, kValueSize);
    in.slopes = slopes.data(), in.sink = sink.data();
    return in;
  }
};

template <class T>
void check_forward(const char* isa, const Example& p, Dtype dtype, double allowed) {
  const Result truth = plain(p);
  const Tensors<T> x(p);
  for (long rows : {0L, 5L}) {
    std::vector<T> out(truth.out.size(), T(kNan)), lse(truth.lse.size(), T(kNan)), again = out;
    AttentionForward a{shape_of(p, dtype, 1, rows), x.inputs(), x.heads(out, p.queries, kValueSize), lse.data()};
    CHECK(attention_forward(a) == nullptr, isa);
    for (size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - truth.out[i]) < allowed, isa << " out " << i);
    for (size_t i = 0; i < lse.size(); ++i) CHECK(std::fabs(lse[i] - truth.lse[i]) < allowed, isa << " lse " << i);
    a.shape.threads = 3, a.out.data = again.data();
    CHECK(attention_forward(a) == nullptr && again == out, isa << " threads change bits");
  }
}

template <class T>
struct Gradients {
  std::vector<T> query, key, value, slopes, sink;

  Gradients(const char* isa, const Example& p, const Tensors<T>& x, Dtype dtype, int threads, long rows)
      : query(p.query.size(), T(kNan)),
        key(p.key.size(), T(kNan)),
        value(p.value.size(), T(kNan)),
        slopes(kHeads, T(kNan)),
        sink(kHeads, T(kNan)) {
    const AttentionBackward a{shape_of(p, dtype, threads, rows),
                              x.inputs(),
                              x.heads(x.weight, p.queries, kValueSize),
                              x.lse_weight.data(),
                              x.heads(query, p.queries, kSize),
                              x.heads(key, p.keys, kSize),
                              x.heads(value, p.keys, kValueSize),
                              slopes.data(),
                              sink.data()};
    CHECK(attention_backward(a) == nullptr, isa);
  }

  bool operator==(const Gradients&) const = default;
};

void check_backward(const char* isa) {
  Example p(29, 37, 9);
  const Gradients<double> found(isa, p, Tensors<double>(p), Dtype::kFloat64, 2, 5);
  const auto compare = [&](const char* name, Values& of, const Values& gradient) {
    constexpr double kStep = 1e-5;
    for (size_t i = 0; i < of.size(); i += 1 + of.size() / 40) {
      const double x0 = of[i];
      of[i] = x0 + kStep;
      const double up = loss(p);
      of[i] = x0 - kStep;
      const double slope = (up - loss(p)) / (2 * kStep);
      of[i] = x0;
      CHECK(std::fabs(gradient[i] - slope) < 1e-7, isa << " gradient of " << name << " " << i);
    }
    for (double g : gradient) CHECK(std::isfinite(g), isa << " " << name << " is not written whole");
  };
  compare("query", p.query, found.query);
  compare("key", p.key, found.key);
  compare("value", p.value, found.value);
  compare("slopes", p.slopes, found.slopes);
  compare("sink", p.sink, found.sink);
}

// 2 key heads: one task each, or for more than 2 threads tasks of 5 queries, and then of 128 keys.
template <class T>
void check_threads(const char* isa, Dtype dtype) {
  for (long left : {-1L, 150L}) {
    const Example p(29, 300, left);
    const Tensors<T> x(p);
    const Gradients<T> one(isa, p, x, dtype, 1, 5);
    for (int threads : {3, 7}) {
      const Gradients<T> several(isa, p, x, dtype, threads, 5);
      CHECK(several == one, isa << " " << threads << " threads change bits");
    }
  }
}

}  // namespace

TEST(attention_agrees_with_plain_loops_in_every_isa_whatever_the_threads) {
  for_each_isa([](const char* isa) {
    check_forward<float>(isa, Example(29, 37, 9), Dtype::kFloat32, 1e-5);
    check_forward<double>(isa, Example(29, 37, 9), Dtype::kFloat64, 1e-13);
  });
}

TEST(attention_of_few_queries_over_keys_in_parts_agrees_with_plain_loops_whatever_the_threads) {
  for_each_isa([](const char* isa) {
    for (long queries : {1L, 3L}) {
      check_forward<float>(isa, Example(queries, 1203, -1), Dtype::kFloat32, 1e-5);
      check_forward<double>(isa, Example(queries, 1203, 700), Dtype::kFloat64, 1e-13);
    }
  });
}

TEST(gradients_of_attention_agree_with_finite_differences) {
  for_each_isa([](const char* isa) { check_backward(isa); });
}

TEST(gradients_of_attention_have_the_same_bits_whatever_the_threads) {
  for_each_isa([](const char* isa) {
    check_threads<float>(isa, Dtype::kFloat32);
    check_threads<double>(isa, Dtype::kFloat64);
  });
}
