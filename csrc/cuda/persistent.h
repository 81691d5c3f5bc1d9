// The rungs `block`, `cluster` and `grid`: one launch for all steps, forward and backward, for one number form.
//
// W_hh stays in registers and shared memory (residence.h) while the steps pass; between the blocks of a group only h,
// or in backward the gradients of the gates, moves (exchange.h). The sums of the warps of a unit tile meet in shared
// memory once a round, in the order of the warps; a lane then finishes fixed units of fixed rows, whose state never
// leaves the block. A row stands still before its first and after its last step.
#pragma once

#include "cuda/launch.h"
#include "cuda/persistent_backward.h"
#include "cuda/persistent_forward.h"

namespace fusednn::cuda {

struct PersistentKernels {
  Needs forward_needs, backward_needs;
  const char* (*forward)(const LaunchShape&, void* stream, const Geometry&, const PersistentForward&);
  const char* (*backward)(const LaunchShape&, void* stream, const Geometry&, const PersistentBackward&);
};

template <class Registered, class Form>
struct PersistentOf {
  using Cell = DeviceCell<Registered>;
  static constexpr Cell kCell = device_cell(Registered{});
  static constexpr int G = Cell::G, kSecond = Cell::kSecondGates, kFirst = G - kSecond, kRounds = 1 + (kSecond > 0);

  static Needs forward_needs() {
    const auto round = [](int tiles) {
      return RoundNeeds{tiles, 1, kept_chunks<Form>(forward_registers(kRounds), tiles, kRounds)};
    };
    return {sizeof(typename Form::T),         kRounds, {round(kFirst), round(kSecond)},
            ForwardWalk<Cell, Form>::kStates, G,       reinterpret_cast<const void*>(persistent_forward<Cell, Form>)};
  }
  static Needs backward_needs() {
    const auto round = [](int parts) {
      return RoundNeeds{parts > 0, parts, kept_chunks<Form>(backward_registers(kRounds), parts > 0, kRounds)};
    };
    return {sizeof(typename Form::T),          kRounds, {round(kFirst), round(kSecond)},
            BackwardWalk<Cell, Form>::kStates, 0,       reinterpret_cast<const void*>(persistent_backward<Cell, Form>)};
  }
  static const char* forward(const LaunchShape& shape, void* stream, const Geometry& z, const PersistentForward& a) {
    return launch<persistent_forward<Cell, Form>>(shape, stream, kCell, z, a);
  }
  static const char* backward(const LaunchShape& shape, void* stream, const Geometry& z, const PersistentBackward& a) {
    return launch<persistent_backward<Cell, Form>>(shape, stream, kCell, z, a);
  }
};

// Null: no such cell.
template <class Form>
const PersistentKernels* persistent_kernels(const char* cell) {
#define FUSEDNN_PERSISTENT(C)                                                                                     \
  if (__builtin_strcmp(cell, cells::C::kName) == 0) {                                                             \
    using Of = PersistentOf<cells::C, Form>;                                                                      \
    static const PersistentKernels kernels{Of::forward_needs(), Of::backward_needs(), Of::forward, Of::backward}; \
    return &kernels;                                                                                              \
  }
  FUSEDNN_CELLS(FUSEDNN_PERSISTENT)
#undef FUSEDNN_PERSISTENT
  return nullptr;
}

// Each in its own file, so that they compile side by side.
const PersistentKernels* persistent_float32(const char* cell);
const PersistentKernels* persistent_tf32(const char* cell);
const PersistentKernels* persistent_bfloat16(const char* cell);
const PersistentKernels* persistent_float16(const char* cell);

}  // namespace fusednn::cuda
