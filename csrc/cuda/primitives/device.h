// Where device code comes to life: CUDA, or the emulation with FUSEDNN_EMULATE. Every .cu file includes this first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(FUSEDNN_EMULATE)
#include "emulation/machine.h"
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define FUSEDNN_DEVICE inline
#define threadIdx (::fusednn::emulation::thread_index())
#define blockIdx (::fusednn::emulation::block_index())
#define blockDim (::fusednn::emulation::block_size())
#define gridDim (::fusednn::emulation::grid_size())
#else
#include <cuda_runtime.h>
#define FUSEDNN_DEVICE __device__ __forceinline__
#endif

// Clusters and barriers in shared memory exist (sm_90 and later); the host's pass sees all code.
#if defined(FUSEDNN_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FUSEDNN_CLUSTERS
#endif

namespace fusednn::cuda {

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

// The block's dynamic shared memory. There is no other: the emulation knows of one array a block.
template <class T>
FUSEDNN_DEVICE T* shared_memory() {
#if defined(FUSEDNN_EMULATE)
  return static_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

FUSEDNN_DEVICE unsigned lane_of_warp() {
  return threadIdx.x % 32;
}
FUSEDNN_DEVICE unsigned warp_of_block() {
  return threadIdx.x / 32;
}

}  // namespace fusednn::cuda
