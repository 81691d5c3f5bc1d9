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
  V shifted[N], n[N], r[N], q[N];
  FUSEDNN_EACH shifted[i] = in_turn<N>(x.v[i] * C::kLog2e + C::kRoundToInt);
  FUSEDNN_EACH n[i] = in_turn<N>(shifted[i] - C::kRoundToInt);
  FUSEDNN_EACH r[i] = in_turn<N>(x.v[i] - n[i] * C::kLn2High - n[i] * C::kLn2Low);
  A factorial = 1;
  for (int k = 2; k < C::kTerms; ++k) factorial *= static_cast<A>(k);
  FUSEDNN_EACH q[i] = in_turn<N>(r[i] * (1 / (factorial * C::kTerms)) + 1 / factorial);
#pragma GCC unroll 16
  for (int k = C::kTerms - 1; k > 2; --k) {  // Taylor's series down to 1/2
    factorial /= static_cast<A>(k);
    FUSEDNN_EACH q[i] = in_turn<N>(q[i] * r[i] + 1 / factorial);
  }
  FUSEDNN_EACH {
    const I exponent = bit_cast<I>(shifted[i]) - bit_cast<I>(V{} + C::kRoundToInt) + C::kBias;
    scale.v[i] = in_turn<N>(bit_cast<V>(exponent << C::kMantissa));
  }
  FUSEDNN_EACH p.v[i] = in_turn<N>(r[i] + r[i] * r[i] * q[i]);
}

template <class A, int N>
struct VectorMath {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using U = typename Lanes<A>::U;
  using W = Several<A, N>;

  // x <= 0. Where the result leaves the range of normal numbers it is zero.
  static FUSEDNN_FN W exp(const W& x) {
    const V least = V{} + C::kLeast;
    W y, scale, p, result;
    FUSEDNN_EACH y.v[i] = in_turn<N>(x.v[i] < least ? least : x.v[i]);
    reduced_exp(y, scale, p);
    FUSEDNN_EACH result.v[i] = in_turn<N>(x.v[i] < least ? V{} : scale.v[i] + scale.v[i] * p.v[i]);
    return result;
  }

  // With e = exp(-|x|): 1 / (1 + e) or e / (1 + e), which neither overflows nor cancels.
  static FUSEDNN_FN W sigmoid(const W& x) {
    W y, result;
    FUSEDNN_EACH y.v[i] = in_turn<N>(x.v[i] < 0 ? x.v[i] : -x.v[i]);
    const W e = exp(y);
    FUSEDNN_EACH result.v[i] = in_turn<N>((x.v[i] < 0 ? e.v[i] : V{} + 1) / (1 + e.v[i]));
    return result;
  }

  // With q = exp(-2|x|) - 1, which keeps its leading digits near 0: tanh|x| = -q / (q + 2).
  static FUSEDNN_FN W tanh(const W& x) {
    const V least = V{} - 40;  // tanh is 1 long before
    V q[N];
    W y, scale, p, result;
    FUSEDNN_EACH y.v[i] = in_turn<N>(-2 * bit_cast<V>(bit_cast<U>(x.v[i]) ^ sign_of(x.v[i])));
    FUSEDNN_EACH y.v[i] = in_turn<N>(y.v[i] < least ? least : y.v[i]);
    reduced_exp(y, scale, p);
    FUSEDNN_EACH q[i] = in_turn<N>(scale.v[i] * p.v[i] + (scale.v[i] - 1));
    // 0 - q, not -q: tanh(0) is +0.
    FUSEDNN_EACH result.v[i] = in_turn<N>(bit_cast<V>(bit_cast<U>((0 - q[i]) / (q[i] + 2)) | sign_of(x.v[i])));
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
