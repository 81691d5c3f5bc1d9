// A barrier over all blocks of a cooperative launch.
#pragma once

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/memory.h"

namespace fusednn::cuda {

// `arrivals` starts at 0 and counts for the whole launch; `epoch` is 1 at the first call, then 2, 3 ...
FUSEDNN_DEVICE void grid_sync(u32* arrivals, u32 epoch) {
  const u32 blocks = gridDim.x * gridDim.y * gridDim.z;
  block_sync();
  if (threadIdx.x == 0) {
    add_acq_rel(arrivals, 1);
    while (load_acquire(arrivals) < epoch * blocks) spin("grid barrier");
  }
  block_sync();
}

}  // namespace fusednn::cuda
