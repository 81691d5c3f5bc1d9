// Accuracy of the vector functions, against libm in a wider type.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "api.h"
#include "cpu/kernels.h"
#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;
using cpu::Function;

template <class Wide>
Wide truth(Function f, Wide x) {
  if (f == Function::kTanh) return std::tanh(x);
  if (f == Function::kExp) return std::exp(x);
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

const char* name_of(Function f) {
  return f == Function::kTanh ? "tanh" : f == Function::kExp ? "exp" : "sigmoid";
}

// The error in units of the last place of the true value.
template <class A, class Wide>
double ulps(A got, Wide expected) {
  if (std::isnan(got)) return std::numeric_limits<double>::infinity();
  int e;
  std::frexp(static_cast<A>(expected), &e);
  const Wide ulp =
      std::ldexp(Wide{1}, std::max(e, std::numeric_limits<A>::min_exponent) - std::numeric_limits<A>::digits);
  return static_cast<double>(std::fabs(got - expected) / ulp);
}

template <class A, class Wide = long double>
double worst_ulps(Function f, void (*evaluate)(Function, const void*, void*, long), const std::vector<A>& x) {
  std::vector<A> y(x.size());
  evaluate(f, x.data(), y.data(), static_cast<long>(x.size()));
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, ulps(y[i], truth<Wide>(f, x[i])));
  return worst;
}

// Every stride-th float of [from, to), by bits. Below -87 sigmoid and exp may return zero, since its value leaves the
// normal numbers there.
std::vector<float> float_sweep(Function f, uint64_t from, uint64_t to, uint64_t stride) {
  std::vector<float> x;
  for (uint64_t bits = from; bits < to; bits += stride) {
    const uint32_t u = static_cast<uint32_t>(bits);
    float v;
    std::memcpy(&v, &u, sizeof v);
    if (!std::isnan(v) && (f == Function::kTanh || v > -87) && (f != Function::kExp || v <= 0)) x.push_back(v);
  }
  return x;
}

constexpr uint64_t kFloats = uint64_t{1} << 32;

std::vector<double> double_sweep(Function f) {
  std::vector<double> x;
  for (double m = 1e-300; m < 1e300; m *= 1.0113) x.insert(x.end(), {m, -m});
  for (double v = -45; v < 45; v += 0.000977) x.push_back(v);
  if (f != Function::kTanh) std::erase_if(x, [](double v) { return v < -708; });
  if (f == Function::kExp) std::erase_if(x, [](double v) { return v > 0; });
  return x;
}

}  // namespace

TEST(float_functions_are_within_4_units_in_the_last_place) {
  for_each_isa([](const char* isa) {
    for (Function f : {Function::kTanh, Function::kSigmoid, Function::kExp}) {
      const std::vector<float> x = float_sweep(f, 0, kFloats, 257 * 2);  // both signs, all exponents
      const double worst = worst_ulps(f, cpu::chosen_kernels(Dtype::kFloat32).evaluate, x);
      std::printf("       %s %s float: %.2f ulp\n", isa, name_of(f), worst);
      CHECK(worst <= 4, isa << " " << worst);
    }
  });
}

// All 2^32 inputs, which takes long: FUSEDNN_TEST_ALL_FLOATS=1, which `make test-full` sets. A truth in double is 2^29
// times finer than what is judged.
TEST(every_float_is_within_4_units_in_the_last_place) {
  if (std::getenv("FUSEDNN_TEST_ALL_FLOATS") == nullptr) {
    std::printf("       not asked for\n");
    return;
  }
  for_each_isa([](const char* isa) {
    for (Function f : {Function::kTanh, Function::kSigmoid, Function::kExp}) {
      double worst = 0;
#if defined(_OPENMP)
#pragma omp parallel for reduction(max : worst) schedule(dynamic)
#endif
      for (int part = 0; part < 4096; ++part) {
        const uint64_t size = kFloats / 4096, from = static_cast<uint64_t>(part) * size;
        const std::vector<float> x = float_sweep(f, from, from + size, 1);
        worst = std::max(worst, worst_ulps<float, double>(f, cpu::chosen_kernels(Dtype::kFloat32).evaluate, x));
      }
      std::printf("       %s %s, every float: %.2f ulp\n", isa, name_of(f), worst);
      CHECK(worst <= 4, isa << " " << worst);
    }
  });
}

TEST(double_functions_are_within_4_units_in_the_last_place) {
  for_each_isa([](const char* isa) {
    for (Function f : {Function::kTanh, Function::kSigmoid, Function::kExp}) {
      const double worst = worst_ulps(f, cpu::chosen_kernels(Dtype::kFloat64).evaluate, double_sweep(f));
      std::printf("       %s %s double: %.2f ulp\n", isa, name_of(f), worst);
      CHECK(worst <= 4, isa << " " << worst);
    }
  });
}

TEST(functions_keep_nan_infinity_and_signed_zero) {
  for_each_isa([](const char* isa) {
    const float inf = std::numeric_limits<float>::infinity();
    const float x[] = {NAN, inf, -inf, 0.f, -0.f, 1e30f, -1e30f};
    float t[7], s[7];
    cpu::chosen_kernels(Dtype::kFloat32).evaluate(Function::kTanh, x, t, 7);
    cpu::chosen_kernels(Dtype::kFloat32).evaluate(Function::kSigmoid, x, s, 7);
    CHECK(std::isnan(t[0]) && std::isnan(s[0]), isa);
    CHECK(t[1] == 1 && t[2] == -1 && t[5] == 1 && t[6] == -1, isa);
    CHECK(t[3] == 0 && !std::signbit(t[3]) && t[4] == 0 && std::signbit(t[4]), isa);
    CHECK(s[1] == 1 && s[2] == 0 && s[3] == .5 && s[5] == 1 && s[6] == 0, isa);
  });
}
