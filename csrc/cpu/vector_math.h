// exp, tanh and sigmoid for vectors, within a few units in the last place. Included after exponential.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A, int N>
struct VectorMath {
  using C = ExpConstants<A>;
  using V = Vec<A>;
  using I = typename Lanes<A>::I;
  using U = typename Lanes<A>::U;
  using W = Several<A, N>;

  // x <= 0. Where the result leaves the range of normal numbers it is zero.
  static FUSEDNN_FN W exp(const W& x) {
    const Exponential<A, N, false> e(x.v);
    W result;
    FUSEDNN_EACH result.v[i] = in_turn<N>(x.v[i] < C::kLeast ? V{} : e.value(i));
    return result;
  }

  // With e = exp(-|x|): 1 / (1 + e) or e / (1 + e), which neither overflows nor cancels.
  static FUSEDNN_FN W sigmoid(const W& x) {
    W y, result;
    FUSEDNN_EACH y.v[i] = in_turn<N>(bit_cast<V>(bit_cast<U>(x.v[i]) | sign()));
    const W e = exp(y);
    FUSEDNN_EACH result.v[i] = in_turn<N>((bit_cast<I>(x.v[i]) < 0 ? e.v[i] : V{} + 1) / (1 + e.v[i]));
    return result;
  }

  // With e = exp(-2|x|), of which 1 - e keeps its leading digits near 0: tanh|x| = (1 - e) / (1 + e).
  static FUSEDNN_FN W tanh(const W& x) {
    const V least = V{} - 40;  // tanh is 1 long before
    V y[N];
    W result;
    FUSEDNN_EACH y[i] = in_turn<N>(bit_cast<V>(bit_cast<U>(x.v[i] + x.v[i]) | sign()));
    FUSEDNN_EACH y[i] = in_turn<N>(not_under(y[i], least));
    const Exponential<A, N, true> e(y);
    FUSEDNN_EACH {
      const V rest = e.rest(i);
      result.v[i] = in_turn<N>(bit_cast<V>(bit_cast<U>(rest / (2 - rest)) | sign_of(x.v[i])));
    }
    return result;
  }

 private:
  // x, or least; a NaN stays one.
  static FUSEDNN_FN V not_under(V x, V least) {
#if FUSEDNN_VECTOR_BYTES == 64
    if constexpr (sizeof(A) == 4) return bit_cast<V>(_mm512_max_ps(bit_cast<__m512>(least), bit_cast<__m512>(x)));
#endif
    return x < least ? least : x;
  }
  static FUSEDNN_FN U sign() { return bit_cast<U>(-V{}); }  // -V{} is -0
  static FUSEDNN_FN U sign_of(V x) { return bit_cast<U>(x) & sign(); }
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
