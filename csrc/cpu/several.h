// N vectors that one cell computes side by side: alone it is a chain of instructions that wait for one another, longer
// than a core looks ahead. Included after vec.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A, int N>
struct Several {
  Vec<A> v[N];
};

// x, known only here: without it the compiler would compute one vector to its end before it begins the next.
template <class V>
FUSEDNN_FN V in_turn(V x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

// z = f(x...), vector by vector; z may be one of x.
template <class A, int N, class F, class... X>
FUSEDNN_FN void each(Several<A, N>& z, F f, const X&... x) {
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) z.v[n] = N == 1 ? f(x.v[n]...) : in_turn(f(x.v[n]...));
}

// What cells are written in.
#define FUSEDNN_OPERATOR(op)                                                             \
  template <class A, int N>                                                              \
  FUSEDNN_FN Several<A, N> operator op(const Several<A, N>& x, const Several<A, N>& y) { \
    Several<A, N> z;                                                                     \
    for (int n = 0; n < N; ++n) z.v[n] = x.v[n] op y.v[n];                               \
    return z;                                                                            \
  }                                                                                      \
  template <class A, int N>                                                              \
  FUSEDNN_FN Several<A, N> operator op(float x, const Several<A, N>& y) {                \
    Several<A, N> z;                                                                     \
    for (int n = 0; n < N; ++n) z.v[n] = x op y.v[n];                                    \
    return z;                                                                            \
  }
FUSEDNN_OPERATOR(+)
FUSEDNN_OPERATOR(-)
FUSEDNN_OPERATOR(*)
#undef FUSEDNN_OPERATOR

template <class A, int N>
FUSEDNN_FN Several<A, N> relu(const Several<A, N>& x) {
  Several<A, N> z;
  for (int n = 0; n < N; ++n) z.v[n] = cells::relu(x.v[n]);
  return z;
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
