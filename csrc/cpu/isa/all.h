// All code of one instruction set and dtype. NAME_DTYPE.cpp names the dtype (FUSEDNN_TYPE) and its table
// (FUSEDNN_TABLE); NAME.h sets the compiler's target by pragma, defines FUSEDNN_ISA (a namespace),
// FUSEDNN_VECTOR_BYTES and FUSEDNN_ACCUMULATORS (registers for sums), and includes this file once. A file a dtype
// keeps the time to compile one of them short.
//
// Nothing shared may be compiled for a newer target, because the linker keeps one copy of an inline function or
// template and it might be that one: so common.h comes first, before the pragma, these units use no std template,
// and everything below lives in the namespace FUSEDNN_ISA, is inlined always, or depends on a vector type.

#include "cells/registry.h"
#include "cells/scan.h"
#include "cells/zoneout.h"
// clang-format off: each needs those before it
#include "cpu/vec.h"
#include "cpu/several.h"
#include "cpu/vector_math.h"
#include "cpu/panels.h"
#include "cpu/product.h"
#include "cpu/sequence.h"
#include "cpu/zoneout.h"
#include "cpu/input_part.h"
#include "cpu/forward.h"
#include "cpu/backward.h"
#include "cpu/single_step.h"
#include "cpu/scan.h"
#include "cpu/additive.h"
#include "cpu/attention.h"
#include "cpu/attention_few.h"
#include "cpu/attention_backward.h"
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

template <template <class, class> class Job, class T, class Cell, class Args>
void run(const Args& args) {
  if (is_single_step(args.shape)) {
    typename Job<Cell, T>::Single(args).run();
  } else {
    typename Job<Cell, T>::Sequence(args).run();
  }
}

template <template <class, class> class Job, class T, class Args>
void run_cell(const Args& args) {
#define FUSEDNN_RUN(C) \
  if (__builtin_strcmp(args.shape.cell, cells::C::kName) == 0) return run<Job, T, cells::C>(args);
  FUSEDNN_CELLS(FUSEDNN_RUN)
#undef FUSEDNN_RUN
}

template <class T>
void evaluate(Function f, const void* x, void* y, long n) {
  constexpr long kLanes = Lanes<AccOf<T>>::kCount;
  for (long i = 0; i < n; i += kLanes) {
    const Block<false> lanes{static_cast<int>(n - i < kLanes ? n - i : kLanes)};
    const Vec<AccOf<T>> v = lanes.load(static_cast<const T*>(x) + i);
    const Vec<AccOf<T>> value = f == Function::kTanh  ? cells::tanh(v)
                                : f == Function::kExp ? cells::exp(v)
                                                      : cells::sigmoid(v);
    lanes.store(static_cast<T*>(y) + i, value);
  }
}

template <class T>
inline constexpr Kernels kKernels{run_cell<Forwards, T, RecurrentForward>,
                                  run_cell<Backwards, T, RecurrentBackward>,
                                  run_scan<ScanForwardJob, T, ScanForward>,
                                  run_scan<ScanBackwardJob, T, ScanBackward>,
                                  additive_forward_of<T>,
                                  additive_backward_of<T>,
                                  attention_forward_of<T>,
                                  attention_backward_of<T>,
                                  evaluate<T>};

}  // namespace fusednn::cpu::FUSEDNN_ISA

namespace fusednn::cpu {

const Kernels FUSEDNN_TABLE = FUSEDNN_ISA::kKernels<FUSEDNN_TYPE>;

}  // namespace fusednn::cpu
