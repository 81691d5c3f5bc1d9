// What a call would launch, from its sizes alone: for `explain`, the occupancy page and the machine-code table.
#pragma once

#include <string>
#include <vector>

#include "api.h"

namespace fusednn {

struct Sequence {
  std::string cell;
  Dtype dtype;
  std::string strategy;
  bool allow_tf32;
  int64_t batch, steps, hidden, proj, directions, heads;  // proj 0: no projection; both of one head
  int layers;                                             // that walk together
  bool packed;                                            // as packed input is, with rows of equal length
  bool norm;                                              // layer norm of the gates
};

struct Launched {
  std::string kernel;
  LaunchShape shape;
};

// Of forward, saving for backward where `training`, and then of backward; in order. Throws std::invalid_argument where
// the provider refuses the call.
std::vector<Launched> launches(const Provider& provider, const Sequence& sequence, bool training);

}  // namespace fusednn
