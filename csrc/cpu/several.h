// N vectors that one cell computes side by side: alone it is a chain of instructions that wait for one another, longer
// than a core looks ahead. Included after vec.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A, int N>
struct Several {
  Vec<A> v[N];
};

#define FUSEDNN_EACH for (int i = 0; i < N; ++i)

// x. The empty instruction keeps the compiler from computing one of the N vectors to its end before it begins the next.
template <int N, class V>
FUSEDNN_FN V in_turn(V x) {
#if defined(__x86_64__)
  if constexpr (N > 1) __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  if constexpr (N > 1) __asm__("" : "+w"(x));
#endif
  return x;
}

// What cells are written in, beside cells::tanh and cells::sigmoid (vector_math.h).
#define FUSEDNN_OPERATOR(op)                                                             \
  template <class A, int N>                                                              \
  FUSEDNN_FN Several<A, N> operator op(const Several<A, N>& x, const Several<A, N>& y) { \
    Several<A, N> z;                                                                     \
    FUSEDNN_EACH z.v[i] = x.v[i] op y.v[i];                                              \
    return z;                                                                            \
  }                                                                                      \
  template <class A, int N>                                                              \
  FUSEDNN_FN Several<A, N> operator op(float x, const Several<A, N>& y) {                \
    Several<A, N> z;                                                                     \
    FUSEDNN_EACH z.v[i] = x op y.v[i];                                                   \
    return z;                                                                            \
  }
FUSEDNN_OPERATOR(+)
FUSEDNN_OPERATOR(-)
FUSEDNN_OPERATOR(*)
#undef FUSEDNN_OPERATOR

template <class A, int N>
FUSEDNN_FN Several<A, N> relu(const Several<A, N>& x) {
  Several<A, N> z;
  FUSEDNN_EACH z.v[i] = cells::relu(x.v[i]);
  return z;
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
