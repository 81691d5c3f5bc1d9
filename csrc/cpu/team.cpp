#include "cpu/team.h"

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

// Some 1 ms: under load a thread is off its processor for a few, and who sleeps at each meeting gets no further than
// one step a slice of the scheduler. Where the threads of a team share processors, some 10 us.
constexpr int kSpins = 20000, kBriefSpins = 200;
std::atomic<int> spins_allowed = kSpins;

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
    spins_allowed.store(threads > omp_get_num_procs() ? kBriefSpins : kSpins, std::memory_order_relaxed);
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
  const int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1);
    phase_.notify_all();
    return;
  }
  for (int spins = spins_allowed.load(std::memory_order_relaxed); spins > 0; --spins) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    relax();
  }
  phase_.wait(phase);
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
