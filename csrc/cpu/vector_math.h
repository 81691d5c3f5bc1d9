// exp, tanh and sigmoid for vectors, within a few units in the last place. Included after several.h.

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

// exp(x) - 1 = scale * (1 + p) - 1 with p = exp(r) - 1, |r| <= ln(2) / 2. x in [kLeast, 0], or NaN.
template <class A, int N>
FUSEDNN_FN void reduced_exp(const Several<A, N>& x, Several<A, N>& scale, Several<A, N>& p) {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using I = typename Lanes<A>::I;
  Several<A, N> shifted, n, r, q;
  each(shifted, [](V x) { return x * C::kLog2e + C::kRoundToInt; }, x);
  each(n, [](V shifted) { return shifted - C::kRoundToInt; }, shifted);
  each(r, [](V x, V n) { return x - n * C::kLn2High - n * C::kLn2Low; }, x, n);
  A factorial = 1;
  for (int i = 2; i < C::kTerms; ++i) factorial *= static_cast<A>(i);
  each(q, [=](V r) { return r * (1 / (factorial * C::kTerms)) + 1 / factorial; }, r);
#pragma GCC unroll 16
  for (int i = C::kTerms - 1; i > 2; --i) {  // Taylor's series down to 1/2
    factorial /= static_cast<A>(i);
    each(q, [=](V q, V r) { return q * r + 1 / factorial; }, q, r);
  }
  each(
      scale,
      [](V shifted) {
        const I exponent = bit_cast<I>(shifted) - bit_cast<I>(V{} + C::kRoundToInt) + C::kBias;
        return bit_cast<V>(exponent << C::kMantissa);
      },
      shifted);
  each(p, [](V q, V r) { return r + r * r * q; }, q, r);
}

template <class A, int N>
struct VectorMath {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using U = typename Lanes<A>::U;
  using W = Several<A, N>;

  // x <= 0. Where the result leaves the range of normal numbers it is zero.
  static FUSEDNN_FN W exp(const W& x) {
    W y, scale, p, result;
    each(y, [](V x) { return x < V{} + C::kLeast ? V{} + C::kLeast : x; }, x);
    reduced_exp(y, scale, p);
    each(result, [](V x, V scale, V p) { return x < V{} + C::kLeast ? V{} : scale + scale * p; }, x, scale, p);
    return result;
  }

  static FUSEDNN_FN W sigmoid(const W& x) {
    W y, result;
    each(y, [](V x) { return x < 0 ? x : -x; }, x);
    const W e = exp(y);
    each(result, [](V x, V e) { return (x < 0 ? e : V{} + 1) / (1 + e); }, x, e);
    return result;
  }

  // With q = exp(-2|x|) - 1, which keeps its leading digits near 0: tanh|x| = -q / (q + 2).
  static FUSEDNN_FN W tanh(const W& x) {
    W y, scale, p, q, result;
    each(
        y,
        [](V x) {
          const V least = V{} - 40;  // tanh is 1 long before
          const V y = -2 * bit_cast<V>(bit_cast<U>(x) ^ sign_of(x));
          return y < least ? least : y;
        },
        x);
    reduced_exp(y, scale, p);
    each(q, [](V scale, V p) { return scale * p + (scale - 1); }, scale, p);
    // 0 - q, not -q: tanh(0) is +0.
    each(result, [](V x, V q) { return bit_cast<V>(bit_cast<U>((0 - q) / (q + 2)) | sign_of(x)); }, x, q);
    return result;
  }

 private:
  static FUSEDNN_FN U sign_of(V x) { return bit_cast<U>(x) & bit_cast<U>(-V{}); }  // -V{} is -0
};

// Of one vector.
template <class A>
struct SingleMath {
  using V = Vec<A>;
  using W = Several<A, 1>;

  static FUSEDNN_FN V exp(V x) { return VectorMath<A, 1>::exp(W{x}).v[0]; }
  static FUSEDNN_FN V sigmoid(V x) { return VectorMath<A, 1>::sigmoid(W{x}).v[0]; }
  static FUSEDNN_FN V tanh(V x) { return VectorMath<A, 1>::tanh(W{x}).v[0]; }
};

}  // namespace fusednn::cpu::FUSEDNN_ISA

namespace fusednn::cells {

template <>
struct Math<cpu::FUSEDNN_ISA::Vec<float>> : cpu::FUSEDNN_ISA::SingleMath<float> {};
template <>
struct Math<cpu::FUSEDNN_ISA::Vec<double>> : cpu::FUSEDNN_ISA::SingleMath<double> {};
template <class A, int N>
struct Math<cpu::FUSEDNN_ISA::Several<A, N>> : cpu::FUSEDNN_ISA::VectorMath<A, N> {};

}  // namespace fusednn::cells
