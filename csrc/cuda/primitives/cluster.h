// Thread-block clusters (sm_90 and later): barriers, and the shared memory of the other blocks.
#pragma once

#include "cuda/primitives/barrier.h"
#include "cuda/primitives/memory.h"

#if defined(FUSEDNN_CLUSTERS)

namespace fusednn::cuda {

FUSEDNN_DEVICE unsigned cluster_rank() {
#if defined(FUSEDNN_EMULATE)
  return emulation::cluster_rank();
#else
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}
FUSEDNN_DEVICE unsigned cluster_size() {
#if defined(FUSEDNN_EMULATE)
  return emulation::cluster_size();
#else
  u32 size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}

// All threads of all blocks of the cluster; what was written before is visible after.
FUSEDNN_DEVICE void cluster_arrive() {
#if defined(FUSEDNN_EMULATE)
  emulation::cluster_arrive();
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
FUSEDNN_DEVICE void cluster_wait() {
#if defined(FUSEDNN_EMULATE)
  emulation::cluster_wait();
#else
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
FUSEDNN_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The address of the same place in the shared memory of block `rank`.
FUSEDNN_DEVICE u32 remote_address(u32 address, unsigned rank) {
#if defined(FUSEDNN_EMULATE)
  return (address & 0xffffffu) | rank << 24;
#else
  u32 remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
#endif
}

FUSEDNN_DEVICE u32 load_remote(u32 address) {
#if defined(FUSEDNN_EMULATE)
  return *static_cast<const u32*>(emulation::at_shared(address, 4, 4));
#else
  u32 v;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
#endif
}

// Stores that count as received bytes at an mbarrier of the same block.
FUSEDNN_DEVICE void store_async(u32 to, u32 v, u32 barrier) {
#if defined(FUSEDNN_EMULATE)
  emulation::store_async(to, &v, sizeof v, barrier);
#else
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(v),
               "r"(barrier)
               : "memory");
#endif
}
FUSEDNN_DEVICE void store_async(u32 to, Bytes16 v, u32 barrier) {
#if defined(FUSEDNN_EMULATE)
  emulation::store_async(to, &v, sizeof v, barrier);
#else
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(to),
               "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(barrier)
               : "memory");
#endif
}

}  // namespace fusednn::cuda

#endif
