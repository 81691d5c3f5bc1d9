// Threads that stay together for a whole sequence, and the barrier they meet at.
#pragma once

#include "cpu/workspace.h"

namespace fusednn::cpu {

// Runs body(context, thread, threads) on at most `threads` threads of the OpenMP pool, which torch shares. The body
// must take `threads` from its argument: the pool may give fewer than asked for (nested calls, limits).
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context);

// Spins, then yields: threads that wait for long must not hold back those they wait for.
class alignas(64) Barrier {
 public:
  void wait(int threads);

 private:
  int arrived_ = 0;
  int phase_ = 0;
};

Barrier* take_barriers(Workspace& space, int count);

}  // namespace fusednn::cpu
