// Loads and stores wider, later, or more public than the language's own.
#pragma once

#include "cuda/primitives/barrier.h"

namespace fusednn::cuda {

struct alignas(16) Bytes16 {
  u32 word[4];
};

// 16 bytes that no kernel writes meanwhile (weights).
FUSEDNN_DEVICE Bytes16 load_constant(const void* p) {
#if defined(FUSEDNN_EMULATE)
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulation::die("a 16-byte load is not aligned");
  Bytes16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
#else
  Bytes16 v;
  asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
      : "l"(p));
  return v;
#endif
}

// 16 bytes that the launch in front wrote.
FUSEDNN_DEVICE Bytes16 load_global(const void* p) {
#if defined(FUSEDNN_EMULATE)
  return load_constant(p);
#else
  Bytes16 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
#endif
}

// ------- asynchronous copies from global to shared memory

// kBytes (4, 8 or 16) to shared memory, of which `valid` come from `from` and the rest is zero.
template <int kBytes>
FUSEDNN_DEVICE void copy_async(void* to, const void* from, int valid = kBytes) {
#if defined(FUSEDNN_EMULATE)
  emulation::copy_async(to, from, kBytes, static_cast<size_t>(valid));
#else
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                 "r"(valid)
                 : "memory");
  }
#endif
}
FUSEDNN_DEVICE void copy_commit() {
#if defined(FUSEDNN_EMULATE)
  emulation::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsLeft>
FUSEDNN_DEVICE void copy_wait() {
#if defined(FUSEDNN_EMULATE)
  emulation::copy_wait(kGroupsLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// ------- between blocks, through L2 (scope .gpu)

FUSEDNN_DEVICE u32 load_acquire(const u32* p) {
#if defined(FUSEDNN_EMULATE)
  emulation::land_stores_to(p, sizeof *p);
  const u32 v = *p;
  emulation::acquire();
  return v;
#else
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#endif
}
FUSEDNN_DEVICE u32 load_relaxed(const u32* p) {
#if defined(FUSEDNN_EMULATE)
  u32 v;
  emulation::load_early(&v, p, sizeof v);
  return v;
#else
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
#endif
}
// 16 bytes, aligned; each of the four words is read as a whole, in any order.
FUSEDNN_DEVICE Bytes16 load_relaxed(const Bytes16* p) {
#if defined(FUSEDNN_EMULATE)
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulation::die("a 16-byte load is not aligned");
  Bytes16 v;
  emulation::load_early(&v, p, sizeof v);
  return v;
#else
  Bytes16 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
#endif
}
FUSEDNN_DEVICE void store_relaxed(u32* p, u32 v) {
#if defined(FUSEDNN_EMULATE)
  emulation::store_late(p, &v, sizeof v);
#else
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
// 16 bytes, aligned; each of the four words arrives as a whole, in any order.
FUSEDNN_DEVICE void store_relaxed(Bytes16* p, Bytes16 v) {
#if defined(FUSEDNN_EMULATE)
  emulation::store_late(p, &v, sizeof v);
#else
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#endif
}
// To memory of the host that the GPU reaches.
FUSEDNN_DEVICE void store_to_host(u32* p, u32 v) {
#if defined(FUSEDNN_EMULATE)
  *p = v;
#else
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
// Everything that this thread wrote, or saw written across a block barrier, is visible before v.
FUSEDNN_DEVICE void store_release(u32* p, u32 v) {
#if defined(FUSEDNN_EMULATE)
  emulation::land_stores();
  emulation::store_late(p, &v, sizeof v);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
FUSEDNN_DEVICE u32 add_acq_rel(u32* p, u32 v) {
#if defined(FUSEDNN_EMULATE)
  emulation::land_stores();
  const u32 before = *p;
  *p = before + v;
  emulation::acquire();
  return before;
#else
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(v) : "memory");
  return before;
#endif
}
FUSEDNN_DEVICE void fence_gpu() {
#if defined(FUSEDNN_EMULATE)
  emulation::land_stores();
  emulation::acquire();
#else
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Time for bounds on waits: on a GPU in steps of about a microsecond, in the emulation by turns of its threads.
FUSEDNN_DEVICE u64 nanoseconds() {
#if defined(FUSEDNN_EMULATE)
  return emulation::counts().switches;
#else
  u64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#endif
}

// One turn of a polling loop.
FUSEDNN_DEVICE void spin(const char* what) {
#if defined(FUSEDNN_EMULATE)
  emulation::spin(what);
#else
  (void)what;
#endif
}

}  // namespace fusednn::cuda
