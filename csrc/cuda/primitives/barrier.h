// Barriers of a block, and barriers in shared memory that count arrivals and bytes (mbarrier).
#pragma once

#include "cuda/primitives/device.h"

namespace fusednn::cuda {

FUSEDNN_DEVICE void block_sync() {
#if defined(FUSEDNN_EMULATE)
  emulation::barrier_sync(0, blockDim.x * blockDim.y * blockDim.z);
#else
  __syncthreads();
#endif
}

// Barrier `id` of the block, 1 to 15, for `threads` of it, whole warps.
FUSEDNN_DEVICE void named_sync(unsigned id, unsigned threads) {
#if defined(FUSEDNN_EMULATE)
  emulation::barrier_sync(id, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
FUSEDNN_DEVICE void named_arrive(unsigned id, unsigned threads) {
#if defined(FUSEDNN_EMULATE)
  emulation::barrier_arrive(id, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// An address of shared memory as PTX and clusters name it.
FUSEDNN_DEVICE u32 shared_address(const void* p) {
#if defined(FUSEDNN_EMULATE)
  return emulation::shared_address(p);
#else
  return static_cast<u32>(__cvta_generic_to_shared(p));
#endif
}

#if defined(FUSEDNN_CLUSTERS)

FUSEDNN_DEVICE void mbarrier_init(u64* barrier, unsigned arrivals) {
#if defined(FUSEDNN_EMULATE)
  emulation::mbarrier_init(shared_address(barrier), arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

// Makes initialised barriers visible to the cluster; a cluster barrier must follow.
FUSEDNN_DEVICE void mbarrier_init_fence() {
#if defined(FUSEDNN_EMULATE)
  emulation::mbarrier_init_fence();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// One arrival that also announces bytes to come.
FUSEDNN_DEVICE void mbarrier_expect(u64* barrier, unsigned bytes) {
#if defined(FUSEDNN_EMULATE)
  emulation::mbarrier_expect(shared_address(barrier), bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

FUSEDNN_DEVICE void mbarrier_arrive(u64* barrier) {
#if defined(FUSEDNN_EMULATE)
  emulation::mbarrier_arrive(shared_address(barrier));
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Whether the phase of this parity is complete.
FUSEDNN_DEVICE bool mbarrier_try(u64* barrier, unsigned parity) {
#if defined(FUSEDNN_EMULATE)
  const bool done = emulation::mbarrier_done(shared_address(barrier), parity);
  if (!done) emulation::spin("mbarrier.try_wait");
  return done;
#else
  u32 done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
#endif
}

#endif

}  // namespace fusednn::cuda
