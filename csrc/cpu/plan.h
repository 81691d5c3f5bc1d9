// How the threads of a team divide a recurrence.
#pragma once

#include "cpu/timeline.h"

namespace fusednn::cpu {

// What a step costs, for the choice between splitting the batch and splitting the units.
struct StepCost {
  long rows;            // of the batch
  long blocks;          // of hidden units: the grain of a split by units
  double flops;         // of one row in one block
  double weight_bytes;  // of one block
  double sent_bytes;    // of one row in one block: what the threads that own other units read of it
};

// The threads of one track form row_parts groups of unit_parts threads. A group owns rows of the batch and its
// threads meet at a barrier each step; groups never wait for one another.
struct Split {
  int row_parts, unit_parts;

  int threads() const { return row_parts * unit_parts; }
};

// Bytes a microsecond that one core reads of the cache behind its own. Measured: 90e3 where the cores of a chip share
// caches by groups (AMD, Zen 4), 30e3 where one is spread over all of them (Intel, Cascade Lake).
double far_bytes_per_us();

Split choose_split(const StepCost& cost, int threads, double far_bytes_per_us);

// Of `threads`, those that a recurrence is divided among: others would only cost time.
int useful_threads(const StepCost& cost, int tracks, int threads);

// What one thread does: tracks [first, last), and in each of them a part of the rows and of the units.
struct Share {
  int first_track, last_track;
  int row_part, unit_part;
  Split split;

  bool idle() const { return first_track == last_track; }
};

Share make_share(const StepCost& cost, int tracks, int thread, int threads);

}  // namespace fusednn::cpu
