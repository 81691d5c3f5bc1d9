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

// Until a count that only grows, and wraps around, is at least `wanted`.
void await(const std::atomic<unsigned>& count, unsigned wanted, int& spins) {
  for (unsigned seen; static_cast<int>((seen = count.load(std::memory_order_acquire)) - wanted) < 0;) {
    if (spins > 0) {
      --spins;
      relax();
    } else {
      count.wait(seen);
    }
  }
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
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1) + 1 == static_cast<unsigned>(threads)) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1);
    phase_.notify_all();
    return;
  }
  int spins = spins_allowed.load(std::memory_order_relaxed);
  await(phase_, phase + 1, spins);
}

void Seat::wait(int threads) const {
  if (threads == 1) return;
  std::atomic<unsigned>& mine = row_[place_].arrived_;
  const unsigned meeting = mine.load(std::memory_order_relaxed) + 1;
  mine.store(meeting, std::memory_order_release);
  int spins = spins_allowed.load(std::memory_order_relaxed);
  for (int i = 0; i < threads; ++i) {
    if (i != place_) await(row_[i].arrived_, meeting, spins);
  }
  // Sleepers are looked for last, when nobody waits for this thread. Without the fence the look could come before the
  // store, and miss who has looked at the old count and is about to sleep.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  mine.notify_all();
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
