// What the lanes of a warp tell each other.
#pragma once

#include "cuda/primitives/device.h"

namespace fusednn::cuda {

FUSEDNN_DEVICE void warp_sync() {
#if defined(FUSEDNN_EMULATE)
  int none = 0;
  emulation::together("syncwarp", none, [](int* const*) {});
#else
  __syncwarp();
#endif
}

// The value of lane `from`.
FUSEDNN_DEVICE u32 shuffle(u32 value, unsigned from) {
#if defined(FUSEDNN_EMULATE)
  struct Slot {
    u32 value;
    unsigned from;
    u32 result;
  } slot{value, from % 32, 0};
  emulation::together("shfl", slot, [](Slot* const* all) {
    for (int l = 0; l < 32; ++l) all[l]->result = all[all[l]->from]->value;
  });
  return slot.result;
#else
  return __shfl_sync(0xffffffffu, value, static_cast<int>(from));
#endif
}

FUSEDNN_DEVICE u32 ballot(bool condition) {
#if defined(FUSEDNN_EMULATE)
  struct Slot {
    bool condition;
    u32 result;
  } slot{condition, 0};
  emulation::together("ballot", slot, [](Slot* const* all) {
    u32 mask = 0;
    for (int l = 0; l < 32; ++l) mask |= static_cast<u32>(all[l]->condition) << l;
    for (int l = 0; l < 32; ++l) all[l]->result = mask;
  });
  return slot.result;
#else
  return __ballot_sync(0xffffffffu, condition);
#endif
}

// The 8 x 8 matrix of 16-bit elements whose row l / 4 has elements 2 (l % 4) and the next in lane l, transposed.
FUSEDNN_DEVICE u32 transpose_8x8(u32 pair) {
#if defined(FUSEDNN_EMULATE)
  struct Slot {
    u32 pair, result;
  } slot{pair, 0};
  emulation::together("movmatrix", slot, [](Slot* const* all) {
    const auto element = [&](int row, int column) {
      return all[row * 4 + column / 2]->pair >> column % 2 * 16 & 0xffffu;
    };
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      all[l]->result = element(column, row) | element(column + 1, row) << 16;
    }
  });
  return slot.result;
#else
  u32 result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
#endif
}

}  // namespace fusednn::cuda
