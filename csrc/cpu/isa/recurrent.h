// The recurrent kernels of one instruction set, for any dtype; all.h says what such code must not do.

#include "cells/registry.h"
#include "cells/zoneout.h"
// clang-format off: each needs those before it
#include "cpu/vec.h"
#include "cpu/several.h"
#include "cpu/exponential.h"
#include "cpu/vector_math.h"
#include "cpu/factors.h"
#include "cpu/panels.h"
#include "cpu/product.h"
#include "cpu/sequence.h"
#include "cpu/zoneout.h"
#include "cpu/input_part.h"
#include "cpu/forward.h"
#include "cpu/backward.h"
#include "cpu/single_step.h"
#include "cpu/linear.h"
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

}  // namespace fusednn::cpu::FUSEDNN_ISA
