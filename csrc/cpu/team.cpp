#include "cpu/team.h"

#include <sched.h>

#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "api.h"

namespace fusednn {

bool built_with_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

namespace cpu {
namespace {

constexpr int kSpins = 1000;  // some 50 us, longer than any step that is worth splitting

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

void run_team(int threads, void (*body)(void*, int, int), void* context) {
#if defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(context, omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  body(context, 0, 1);
}

void Barrier::wait(int threads) {
  if (threads == 1) return;
  const int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == threads) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      sched_yield();
    }
  }
}

Barrier* take_barriers(Workspace& space, int count) {
  void* memory = space.take(sizeof(Barrier) * static_cast<size_t>(count));
  if (memory == nullptr) return nullptr;  // the counting pass
  Barrier* barriers = static_cast<Barrier*>(memory);
  for (int i = 0; i < count; ++i) new (barriers + i) Barrier();
  return barriers;
}

}  // namespace cpu
}  // namespace fusednn
