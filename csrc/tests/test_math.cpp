// Accuracy of the vector functions, against libm in a wider type.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "api.h"
#include "cpu/kernels.h"
#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;
using cpu::Function;

using Evaluate = void (*)(Function, const void*, void*, long);

constexpr Function kFunctions[] = {Function::kTanh, Function::kSigmoid, Function::kExp};

long double truth(Function f, long double x) {
  if (f == Function::kTanh) return std::tanh(x);
  if (f == Function::kExp) return std::exp(x);
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

// The same in double, from one exponential. Near 0 tanh is its series, whose next term is under 2^-61 of the sum.
double quick_truth(Function f, double x) {
  const double y = std::min(std::fabs(x), 100.);  // where tanh and sigmoid have reached their limits
  const double e = std::exp(f == Function::kTanh ? -2 * y : -y);
  if (f == Function::kExp) return e;
  if (f == Function::kSigmoid) return (x < 0 ? e : 1) / (1 + e);
  const double s = x * x;
  if (y < 0x1p-7) return x * (1 - s * (1 / 3. - s * (2 / 15. - s * (17 / 315.))));
  return std::copysign((1 - e) / (1 + e), x);
}

const char* name_of(Function f) {
  return f == Function::kTanh ? "tanh" : f == Function::kExp ? "exp" : "sigmoid";
}

// The error in units of the last place that the true value has in A.
template <class A, class Got, class Wide>
double ulps(Got got, Wide expected) {
  using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
  constexpr Bits kExponent = std::bit_cast<Bits>(std::numeric_limits<A>::infinity());
  const A power = std::bit_cast<A>(std::bit_cast<Bits>(static_cast<A>(expected)) & kExponent);
  const Wide ulp = Wide{std::max(power, std::numeric_limits<A>::min())} * std::numeric_limits<A>::epsilon();
  if (std::isnan(got)) return std::numeric_limits<double>::infinity();
  return static_cast<double>(std::fabs(got - expected) / ulp);
}

template <class A, class Wide>
double worst_ulps(const std::vector<A>& y, const std::vector<Wide>& expected) {
  double worst = 0;
  for (size_t i = 0; i < y.size(); ++i) worst = std::max(worst, ulps<A>(y[i], expected[i]));
  return worst;
}

template <class A>
double worst_ulps(Function f, Evaluate evaluate, const std::vector<A>& x) {
  std::vector<A> y(x.size());
  evaluate(f, x.data(), y.data(), static_cast<long>(x.size()));
  std::vector<long double> expected;
  for (A v : x) expected.push_back(truth(f, v));
  return worst_ulps(y, expected);
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

// Over every float, by the index of isa_name.
std::vector<double> worst_of_all(Function f, const std::vector<Evaluate>& isas) {
  constexpr int kParts = 1 << 16;
  constexpr uint64_t kSize = kFloats / kParts;
  std::vector<double> worst(isas.size());
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 16)
#endif
  for (int part = 0; part < kParts; ++part) {
    const std::vector<float> x = float_sweep(f, kSize * static_cast<uint64_t>(part), kSize * (1u + part), 1);
    std::vector<double> expected(x.size());
    std::vector<float> y(x.size());
    std::transform(x.begin(), x.end(), expected.begin(), [f](float v) { return quick_truth(f, v); });
    for (size_t i = 0; i < isas.size(); ++i) {
      isas[i](f, x.data(), y.data(), static_cast<long>(x.size()));
      const double here = worst_ulps(y, expected);
#if defined(_OPENMP)
#pragma omp critical
#endif
      worst[i] = std::max(worst[i], here);
    }
  }
  return worst;
}

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
    for (Function f : kFunctions) {
      const std::vector<float> x = float_sweep(f, 0, kFloats, 257 * 2);  // both signs, all exponents
      const double worst = worst_ulps(f, cpu::chosen_kernels(Dtype::kFloat32).evaluate, x);
      std::printf("       %s %s float: %.2f ulp\n", isa, name_of(f), worst);
      CHECK(worst <= 4, isa << " " << worst);
    }
  });
}

TEST(the_quick_truth_is_libms) {
  for (Function f : kFunctions) {
    double worst = 0;  // in units of a float's last place
    for (float v : float_sweep(f, 0, kFloats, 1021)) {
      worst = std::max(worst, ulps<float>(quick_truth(f, v), truth(f, v)));
    }
    CHECK(worst < 1e-5, name_of(f) << " " << worst);
  }
}

// All 2^32 inputs, which takes minutes: FUSEDNN_TEST_ALL_FLOATS=1, which `make test-full` sets.
TEST(every_float_is_within_4_units_in_the_last_place) {
  if (std::getenv("FUSEDNN_TEST_ALL_FLOATS") == nullptr) {
    std::printf("       not asked for\n");
    return;
  }
  std::vector<const char*> names;
  std::vector<Evaluate> isas;
  for_each_isa([&](const char* isa) {
    names.push_back(isa);
    isas.push_back(cpu::chosen_kernels(Dtype::kFloat32).evaluate);
  });
  for (Function f : kFunctions) {
    const std::vector<double> worst = worst_of_all(f, isas);
    for (size_t i = 0; i < isas.size(); ++i) {
      std::printf("       %s %s, every float: %.3f ulp\n", names[i], name_of(f), worst[i]);
      CHECK(worst[i] <= 4, names[i] << " " << name_of(f) << " " << worst[i]);
    }
  }
}

TEST(double_functions_are_within_4_units_in_the_last_place) {
  for_each_isa([](const char* isa) {
    for (Function f : kFunctions) {
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
