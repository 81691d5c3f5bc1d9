// Gradients of a linear map, in every instruction set, against plain loops. All numbers are small integers, whose sums
// every dtype holds: the results must be equal.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/linear_backward.h"
#include "elements.h"
#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

struct Sizes {
  long rows, outputs, inputs[2];
};
// One of everything; less than a vector; more rows than a chunk, and than two, an odd number; more lines than a thread
// takes at a time; one input alone; no rows.
const Sizes kSizes[] = {{1, 1, {1, 1}},     {5, 7, {3, 9}},      {129, 40, {33, 17}}, {259, 16, {70, 1}},
                        {50, 401, {16, 5}}, {97, 193, {130, 0}}, {0, 5, {3, 2}}};

template <class T>
struct Type;
template <>
struct Type<double> {
  static constexpr Dtype kDtype = Dtype::kFloat64;
  static double from(double x) { return x; }
  static double to(double x) { return x; }
};
template <>
struct Type<float> {
  static constexpr Dtype kDtype = Dtype::kFloat32;
  static float from(double x) { return static_cast<float>(x); }
  static double to(float x) { return x; }
};
template <>
struct Type<BFloat16> {
  static constexpr Dtype kDtype = Dtype::kBFloat16;
  static BFloat16 from(double x) {
    const float f = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
  }
  static double to(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  }
};

template <class T>
std::vector<T> as(const Values& values) {
  std::vector<T> out;
  for (double v : values) out.push_back(Type<T>::from(v));
  return out;
}

Values integers(long count, unsigned seed) {
  std::mt19937 random(seed);
  Values values(static_cast<size_t>(count));
  for (double& v : values) v = static_cast<int>(random() % 3) - 1;
  return values;
}

// c[i, j] = sum over k of a[k, i] b[k, j].
Values transposed_product(const Values& a, const Values& b, long sums, long m, long n) {
  Values c(static_cast<size_t>(m * n));
  for (long k = 0; k < sums; ++k) {
    for (long i = 0; i < m; ++i) {
      for (long j = 0; j < n; ++j) {
        c[static_cast<size_t>(i * n + j)] += a[static_cast<size_t>(k * m + i)] * b[static_cast<size_t>(k * n + j)];
      }
    }
  }
  return c;
}

Values transposed(const Values& a, long m, long n) {
  Values t(a.size());
  for (long i = 0; i < m; ++i) {
    for (long j = 0; j < n; ++j) t[static_cast<size_t>(j * m + i)] = a[static_cast<size_t>(i * n + j)];
  }
  return t;
}

struct Found {
  Values d_w[2], d_b, d_x;
};

// By the kernel: rows of d_y lie 3 elements further apart than they are long.
template <class T>
Found found(const Sizes& z, const Values& d_y, const Values (&x)[2], const Values& w, int threads) {
  constexpr long kApart = 3;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Values spread(static_cast<size_t>(z.rows * (z.outputs + kApart)), nan);
  for (long n = 0; n < z.rows; ++n) {
    for (long m = 0; m < z.outputs; ++m) {
      spread[static_cast<size_t>(n * (z.outputs + kApart) + m)] = d_y[static_cast<size_t>(n * z.outputs + m)];
    }
  }
  const auto poisoned = [&](long count) { return as<T>(Values(static_cast<size_t>(count), nan)); };
  const std::vector<T> y = as<T>(spread), weights = as<T>(w), from[2] = {as<T>(x[0]), as<T>(x[1])};
  std::vector<T> d_w[2] = {poisoned(z.outputs * z.inputs[0]), poisoned(z.outputs * z.inputs[1])};
  std::vector<T> d_b = poisoned(z.outputs), d_x = poisoned(z.rows * z.inputs[0]);
  LinearBackward a{};
  a.dtype = Type<T>::kDtype, a.rows = z.rows, a.outputs = z.outputs, a.threads = threads;
  a.d_y = y.data(), a.d_y_row = z.outputs + kApart;
  for (int i = 0; i < 2; ++i) {
    if (z.inputs[i] > 0) a.inputs[i] = {z.inputs[i], from[i].data(), d_w[i].data()};
  }
  a.w = weights.data(), a.w_size = z.inputs[0], a.d_x = d_x.data(), a.d_b = d_b.data();
  const char* error = linear_backward(a);
  CHECK(error == nullptr, error);
  const auto read = [](const std::vector<T>& values) {
    Values out;
    for (T v : values) out.push_back(Type<T>::to(v));
    return out;
  };
  return {{read(d_w[0]), read(d_w[1])}, read(d_b), read(d_x)};
}

template <class T>
void check(const char* isa) {
  for (const Sizes& z : kSizes) {
    const Values d_y = integers(z.rows * z.outputs, 1), w = integers(z.outputs * z.inputs[0], 2);
    const Values x[2] = {integers(z.rows * z.inputs[0], 3), integers(z.rows * z.inputs[1], 4)};
    const std::string what = std::string(isa) + " N" + std::to_string(z.rows) + "-M" + std::to_string(z.outputs);
    for (int threads : {1, 3}) {
      const Found got = found<T>(z, d_y, x, w, threads);
      for (int i = 0; i < 2; ++i) {
        CHECK(got.d_w[i] == transposed_product(d_y, x[i], z.rows, z.outputs, z.inputs[i]), what << " d_w " << i);
      }
      const Values ones(static_cast<size_t>(z.rows), 1.0);
      CHECK(got.d_b == transposed_product(d_y, ones, z.rows, z.outputs, 1), what << " d_b");
      const Values y_t = transposed(d_y, z.rows, z.outputs);
      CHECK(got.d_x == transposed_product(y_t, w, z.outputs, z.rows, z.inputs[0]), what << " d_x");
    }
  }
}

Values fractions(long count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  Values values(static_cast<size_t>(count));
  for (double& v : values) v = static_cast<float>(uniform(random));
  return values;
}

}  // namespace

TEST(gradients_of_linear_maps_agree_with_plain_loops) {
  for_each_isa([](const char* isa) {
    check<double>(isa);
    check<float>(isa);
    check<BFloat16>(isa);
  });
}

TEST(threads_do_not_change_the_bits_of_gradients_of_linear_maps) {
  for_each_isa([](const char* isa) {
    const Sizes z{300, 210, {70, 33}};
    const Values d_y = fractions(z.rows * z.outputs, 1), w = fractions(z.outputs * z.inputs[0], 2);
    const Values x[2] = {fractions(z.rows * z.inputs[0], 3), fractions(z.rows * z.inputs[1], 4)};
    const Found one = found<float>(z, d_y, x, w, 1);
    for (int threads : {2, 5}) {
      const Found more = found<float>(z, d_y, x, w, threads);
      CHECK(more.d_w[0] == one.d_w[0] && more.d_w[1] == one.d_w[1], isa << " d_w");
      CHECK(more.d_b == one.d_b && more.d_x == one.d_x, isa << " d_b and d_x");
    }
  });
}

TEST(a_nan_reaches_only_what_was_computed_from_it) {
  for_each_isa([](const char* isa) {
    const Sizes z{20, 40, {18, 3}};
    Values d_y = integers(z.rows * z.outputs, 1);
    const Values w = integers(z.outputs * z.inputs[0], 2);
    const Values x[2] = {integers(z.rows * z.inputs[0], 3), integers(z.rows * z.inputs[1], 4)};
    const long row = 7, line = 21;
    d_y[static_cast<size_t>(row * z.outputs + line)] = NAN;
    const Found got = found<float>(z, d_y, x, w, 2);
    const auto only = [](const Values& values, long n, long at) {
      for (size_t i = 0; i < values.size(); ++i) {
        if (std::isnan(values[i]) != (static_cast<long>(i) / n == at)) return false;
      }
      return true;
    };
    CHECK(only(got.d_w[0], z.inputs[0], line) && only(got.d_w[1], z.inputs[1], line), isa << " d_w");
    CHECK(only(got.d_b, 1, line) && only(got.d_x, z.inputs[0], row), isa << " d_b and d_x");
  });
}
