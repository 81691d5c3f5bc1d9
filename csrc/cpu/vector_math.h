// exp, tanh and sigmoid for vectors, within a few units in the last place. Included after vec.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A>
struct ExpConstants;

// ln 2 in two parts: n * kLn2High is exact for every n that occurs (W. J. Cody, W. Waite, "Software manual for the
// elementary functions", 1980).
template <>
struct ExpConstants<float> {
  static constexpr float kLog2e = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
  static constexpr float kRoundToInt = 0x1.8p23f;  // adding it leaves the integer in the low bits
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr int kTerms = 7;  // of the series below: the next one is under 2^-26
  static constexpr float kLeast = -87.f;
};
template <>
struct ExpConstants<double> {
  static constexpr double kLog2e = 0x1.71547652b82fep+0, kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kRoundToInt = 0x1.8p52;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int kTerms = 13;
  static constexpr double kLeast = -708.;
};

// exp(x) - 1 = scale * (1 + p) - 1 with p = exp(r) - 1, |r| <= ln(2) / 2.
template <class A>
struct ReducedExp {
  Vec<A> scale, p;
};

// x in [kLeast, 0], or NaN.
template <class A>
FUSEDNN_FN ReducedExp<A> reduced_exp(Vec<A> x) {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using I = typename Lanes<A>::I;
  const V shifted = x * C::kLog2e + C::kRoundToInt;
  const V n = shifted - C::kRoundToInt;
  const V r = x - n * C::kLn2High - n * C::kLn2Low;
  A factorial = 1;
  for (int i = 2; i <= C::kTerms; ++i) factorial *= static_cast<A>(i);
  V q = V{} + 1 / factorial;  // Taylor's series from its last term down to 1/2
#pragma GCC unroll 16
  for (int i = C::kTerms; i > 2; --i) {
    factorial /= static_cast<A>(i);
    q = q * r + 1 / factorial;
  }
  const I exponent = bit_cast<I>(shifted) - bit_cast<I>(V{} + C::kRoundToInt) + C::kBias;
  return {bit_cast<V>(exponent << C::kMantissa), r + r * r * q};
}

template <class A>
struct VectorMath {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using U = typename Lanes<A>::U;

  // x <= 0. Where the result leaves the range of normal numbers it is zero.
  static FUSEDNN_FN V exp(V x) {
    const V least = V{} + C::kLeast;
    const auto tiny = x < least;
    const ReducedExp<A> exp = reduced_exp<A>(tiny ? least : x);
    return tiny ? V{} : exp.scale + exp.scale * exp.p;
  }

  // With e = exp(-|x|): 1 / (1 + e) or e / (1 + e), which neither overflows nor cancels.
  static FUSEDNN_FN V sigmoid(V x) {
    const V e = exp(x < 0 ? x : -x);
    const V numerator = x < 0 ? e : V{} + 1;
    return numerator / (1 + e);
  }

  // With q = exp(-2|x|) - 1, which keeps its leading digits near 0: tanh|x| = -q / (q + 2).
  static FUSEDNN_FN V tanh(V x) {
    const V least = V{} - 40;                           // tanh is 1 long before
    const U sign = bit_cast<U>(x) & bit_cast<U>(-V{});  // -V{} is -0
    V y = -2 * bit_cast<V>(bit_cast<U>(x) ^ sign);
    y = y < least ? least : y;
    const ReducedExp<A> exp = reduced_exp<A>(y);
    const V q = exp.scale * exp.p + (exp.scale - 1);
    return bit_cast<V>(bit_cast<U>((0 - q) / (q + 2)) | sign);  // 0 - q, not -q: tanh(0) is +0
  }
};

}  // namespace fusednn::cpu::FUSEDNN_ISA

namespace fusednn::cells {

template <>
struct Math<cpu::FUSEDNN_ISA::Vec<float>> : cpu::FUSEDNN_ISA::VectorMath<float> {};
template <>
struct Math<cpu::FUSEDNN_ISA::Vec<double>> : cpu::FUSEDNN_ISA::VectorMath<double> {};

}  // namespace fusednn::cells
