// All code of one instruction set and dtype. NAME_DTYPE.cpp names the dtype (FUSEDNN_TYPE) and its table
// (FUSEDNN_TABLE); NAME.h sets the compiler's target by pragma, defines FUSEDNN_ISA (a namespace),
// FUSEDNN_VECTOR_BYTES and FUSEDNN_ACCUMULATORS (registers for sums), and includes this file once. A file a dtype
// keeps the time to compile one of them short.
//
// Nothing shared may be compiled for a newer target, because the linker keeps one copy of an inline function or
// template and it might be that one: so common.h comes first, before the pragma, these units use no std template,
// and everything below lives in the namespace FUSEDNN_ISA, is inlined always, or depends on a vector type.

// clang-format off: each needs those before it
#include "cpu/isa/recurrent.h"
#include "cells/scan.h"
#include "cpu/scan.h"
#include "cpu/additive.h"
#include "cpu/attention.h"
#include "cpu/attention_few.h"
#include "cpu/attention_backward.h"
// clang-format on

namespace fusednn::cpu::FUSEDNN_ISA {

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
                                  linear_backward_of<T>,
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
