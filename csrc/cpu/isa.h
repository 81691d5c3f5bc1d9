// All code of one instruction set. An isa_*.cpp file defines FUSEDNN_ISA (a namespace), FUSEDNN_VECTOR_BYTES and
// FUSEDNN_ACCUMULATORS (registers for sums), sets the compiler's target by pragma and includes this file once.
//
// Nothing shared may be compiled for a newer target, because the linker keeps one copy of an inline function or
// template and it might be that one: so isa_common.h comes first, before the pragma, these units use no std template,
// and everything below lives in the namespace FUSEDNN_ISA, is inlined always, or depends on a vector type.

#include "cells/registry.h"
// clang-format off: each needs those before it
#include "cpu/vec.h"
#include "cpu/vector_math.h"
#include "cpu/panels.h"
#include "cpu/product.h"
#include "cpu/sequence.h"
#include "cpu/forward.h"
#include "cpu/backward.h"
#include "cpu/single_step.h"
// clang-format on

namespace fusednn::cpu::FUSEDNN_ISA {

template <class Cell, class T>
struct Forwards {
  using Sequence = Forward<Cell, T>;
  using Single = ForwardStep<Cell, T>;
};
template <class Cell, class T>
struct Backwards {
  using Sequence = Backward<Cell, T>;
  using Single = BackwardStep<Cell, T>;
};

template <template <class, class> class Job, class Cell, class T, class Args>
void run(const Args& args) {
  if (is_single_step(args.shape)) {
    typename Job<Cell, T>::Single(args).run();
  } else {
    typename Job<Cell, T>::Sequence(args).run();
  }
}

template <template <class, class> class Job, class Cell, class Args>
void run_dtype(const Args& args) {
  switch (args.shape.dtype) {
    case Dtype::kFloat64:
      return run<Job, Cell, double>(args);
    case Dtype::kFloat32:
      return run<Job, Cell, float>(args);
    case Dtype::kBFloat16:
      return run<Job, Cell, BFloat16>(args);
    case Dtype::kFloat16:
      return run<Job, Cell, Float16>(args);
  }
}

template <template <class, class> class Job, class Args>
void run_cell(const Args& args) {
#define FUSEDNN_RUN(C) \
  if (__builtin_strcmp(args.shape.cell, cells::C::kName) == 0) return run_dtype<Job, cells::C>(args);
  FUSEDNN_CELLS(FUSEDNN_RUN)
#undef FUSEDNN_RUN
}

template <class A>
void evaluate(Function f, const A* x, A* y, long n) {
  constexpr long kLanes = Lanes<A>::kCount;
  for (long i = 0; i < n; i += kLanes) {
    const Block<false> lanes{static_cast<int>(n - i < kLanes ? n - i : kLanes)};
    const Vec<A> v = lanes.load(x + i);
    lanes.store(y + i, f == Function::kTanh ? cells::tanh(v) : cells::sigmoid(v));
  }
}

inline constexpr Kernels kKernels{run_cell<Forwards, RecurrentForward>, run_cell<Backwards, RecurrentBackward>,
                                  evaluate<float>, evaluate<double>};

}  // namespace fusednn::cpu::FUSEDNN_ISA
