// Threads that stay together for a whole sequence, and the barrier they meet at.
#pragma once

#include <atomic>

#include "cpu/workspace.h"

namespace fusednn::cpu {

// Runs body(context, thread, threads) on at most `threads` threads of the OpenMP pool, which torch shares. The body
// must take `threads` from its argument: the pool may give fewer than asked for (nested calls, limits).
void run_team(int threads, void (*body)(void* context, int thread, int threads), void* context);

// A cache line that threads meet at. All waits spin, then sleep: who waits for long waits for a thread that another
// process keeps from running. A sleeper leaves its processor to others and, having used less than its share, is put in
// front of them when it wakes.
class alignas(kCacheLine) Barrier {
 public:
  void wait(int threads);  // of all threads, at this one barrier

 private:
  friend class Seat;
  std::atomic<unsigned> arrived_ = 0;
  std::atomic<unsigned> phase_ = 0;
};

// A thread's place in a row of barriers, one of each thread that it meets. It counts its meetings in its own line and
// reads the others', so that all lines travel at once; at one barrier they would take turns.
class Seat {
 public:
  Seat(Barrier* row, int place) : row_(row), place_(place) {}
  void wait(int threads) const;
  const Seat* operator->() const { return this; }

 private:
  Barrier* row_;
  int place_;
};

Barrier* take_barriers(Workspace& space, int count);

}  // namespace fusednn::cpu
