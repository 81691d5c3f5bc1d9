// Zoneout in a kernel: docs/kernels/recurrent_options.md.
#pragma once

#include "api.h"
#include "cells/zoneout.h"
#include "cuda/primitives/device.h"

namespace fusednn::cuda {

// What a step draws, or expects.
struct Zoneout {
  double h, c;           // probabilities; 0: none
  u32 limit_h, limit_c;  // what a word must be below
  const int64_t* seed;   // of the direction; null: the expectation
  int64_t t;             // the number of the step

  // How much of its old state unit u of row b keeps.
  template <class A>
  FUSEDNN_DEVICE A share(cells::ZoneoutState which, int head, long b, int u) const {
    const bool of_h = which == cells::kZoneoutH;
    const double probability = of_h ? h : c;
    if (seed == nullptr || probability == 0) return static_cast<A>(probability);
    const cells::Words drawn = cells::zoneout_words(*seed, cells::zoneout_stream(head, which), t, b, u);
    const int w = u % 4;  // an array that is indexed with it would lie in memory
    const u32 word = w == 0 ? drawn.word[0] : w == 1 ? drawn.word[1] : w == 2 ? drawn.word[2] : drawn.word[3];
    return word < (of_h ? limit_h : limit_c) ? A(1) : A(0);
  }
};

// Of direction d at the step of number `time`.
FUSEDNN_HD Zoneout zoneout_at(const RecurrentOptions& o, int64_t d, int64_t time) {
  return {o.zoneout_h,
          o.zoneout_c,
          cells::limit_of(o.zoneout_h),
          cells::limit_of(o.zoneout_c),
          o.seed == nullptr ? nullptr : o.seed + d,
          o.first + time};
}

template <class A>
FUSEDNN_DEVICE A mixed(A share, A before, A after) {
  return share * before + (A(1) - share) * after;
}

}  // namespace fusednn::cuda
