// exp(x), x <= 0, as scale (1 + p): both it and 1 - exp(x) have all their digits. Included after several.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // ln 2 in two parts: n * kLn2High is exact for every n that occurs (W. J. Cody, W. Waite, "Software manual for the
  // elementary functions", 1980).
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

// Of x in [kLeast, 0], or NaN. kNearZero: 1 - exp(x) is wanted.
template <class A, int N, bool kNearZero>
class Exponential {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using I = typename Lanes<A>::I;

 public:
  // A whole power of two, and p = exp(r) - 1 with |r| <= ln(2) / 2.
  explicit FUSEDNN_FN Exponential(const V (&x)[N]) {
    V shifted[N], n[N], r[N], q[N];
    FUSEDNN_EACH shifted[i] = in_turn<N>(x[i] * C::kLog2e + C::kRoundToInt);
    FUSEDNN_EACH n[i] = in_turn<N>(shifted[i] - C::kRoundToInt);
    FUSEDNN_EACH r[i] = in_turn<N>(x[i] - n[i] * C::kLn2High - n[i] * C::kLn2Low);
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
      scale[i] = in_turn<N>(bit_cast<V>(exponent << C::kMantissa));
    }
    FUSEDNN_EACH p[i] = in_turn<N>(r[i] + r[i] * r[i] * q[i]);
  }

  FUSEDNN_FN V value(int i) const { return scale[i] + scale[i] * p[i]; }
  FUSEDNN_FN V rest(int i) const { return (1 - scale[i]) - scale[i] * p[i]; }  // 1 - exp(x)

 private:
  V scale[N], p[N];
};

#if FUSEDNN_VECTOR_BYTES == 64

// One instruction looks up a number for each lane: a power of two in steps of 1/16, which leaves |f| <= 1/32 to a
// polynomial of a third of the length (P. T. P. Tang, ACM Transactions on Mathematical Software 15, 1989).
struct alignas(64) ExpTable {
  uint32_t scale[16]{};  // bits of 2^(j/16), less j << 19, which the sum below brings back
  float rest[16]{};      // 1 - 2^(j/16 - 1); for j = 0 that of 2^0

  constexpr ExpTable() {
    double power = 1;
    for (uint32_t j = 0; j < 16; ++j, power *= 0x1.0b5586cf9890fp+0) {
      scale[j] = __builtin_bit_cast(uint32_t, static_cast<float>(power)) - (j << 19);
      rest[j] = j == 0 ? 0 : static_cast<float>(1 - power / 2);
    }
  }
};
inline constexpr ExpTable kExpTable;

template <int N, bool kNearZero>
class Exponential<float, N, kNearZero> {
  using V = Vec<float>;
  using U = Lanes<float>::U;

 public:
  explicit FUSEDNN_FN Exponential(const V (&x)[N]) {
    constexpr float kLog2e = 0x1.715476p+0f, kLog2eLow = 0x1.4ae0cp-26f;
    constexpr float kRoundToStep = 0x1.8p19f;  // adding it leaves n, the number of steps, in the low bits
    V f[N];
    FUSEDNN_EACH shifted[i] = in_turn<N>(x[i] * kLog2e + kRoundToStep);
    FUSEDNN_EACH f[i] = in_turn<N>(fused(x[i], kLog2e, kRoundToStep - shifted[i]));
    if constexpr (!kNearZero) FUSEDNN_EACH f[i] = in_turn<N>(x[i] * kLog2eLow + f[i]);
    // (2^f - 1) / f, by Chebyshev's interpolation: within 2^-28, or 2^-23 where p is added to 1 and under 1/32.
    if constexpr (kNearZero) {
      FUSEDNN_EACH p[i] = in_turn<N>(f[i] * 0x1.3b2bfap-7f + 0x1.c6b348p-5f);
      FUSEDNN_EACH p[i] = in_turn<N>(f[i] * p[i] + 0x1.ebfbep-3f);
    } else {
      FUSEDNN_EACH p[i] = in_turn<N>(f[i] * 0x1.c6b29ap-5f + 0x1.ebff92p-3f);
    }
    FUSEDNN_EACH p[i] = in_turn<N>(f[i] * p[i] + 0x1.62e43p-1f);
    FUSEDNN_EACH p[i] = in_turn<N>(f[i] * p[i]);
    // The four low bits of n choose from the table, those above them belong to the exponent.
    FUSEDNN_EACH scale[i] = in_turn<N>(bit_cast<V>(look_up<U>(kExpTable.scale, i) + (bit_cast<U>(shifted[i]) << 19)));
  }

  FUSEDNN_FN V value(int i) const { return scale[i] + scale[i] * p[i]; }
  FUSEDNN_FN V rest(int i) const {
    const V near = look_up<V>(kExpTable.rest, i) - scale[i] * p[i];
    return scale[i] <= 0.5f ? 1 - value(i) : near;
  }

 private:
  // x a + y, rounded once: what remains of x is in the digits that a product loses.
  static FUSEDNN_FN V fused(V x, float a, V y) {
    return bit_cast<V>(_mm512_fmadd_ps(bit_cast<__m512>(x), _mm512_set1_ps(a), bit_cast<__m512>(y)));
  }

  template <class To, class From>
  FUSEDNN_FN To look_up(const From* table, int i) const {
    return bit_cast<To>(_mm512_permutexvar_epi32(bit_cast<__m512i>(shifted[i]), _mm512_load_si512(table)));
  }

  V shifted[N], scale[N], p[N];
};

#endif

}  // namespace fusednn::cpu::FUSEDNN_ISA
