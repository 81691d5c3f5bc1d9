// Threads that stay together for a whole sequence, and the barrier they meet at.
#pragma once

#include <atomic>

#include "cpu/workspace.h"

namespace fusednn::cpu {

// Runs body(context, thread, threads) on at most `threads` threads of the OpenMP pool, which torch shares. The body
// must take `threads` from its argument: the pool may give fewer than asked for (nested calls, limits).
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context);

// Spins, then sleeps: who waits for long waits for a thread that another process keeps from running. A sleeper leaves
// its processor to others and, having used less than its share, is put in front of them when it wakes.
class alignas(64) Barrier {
 public:
  void wait(int threads);

 private:
  std::atomic<int> arrived_ = 0;
  std::atomic<int> phase_ = 0;
};

Barrier* take_barriers(Workspace& space, int count);

}  // namespace fusednn::cpu
