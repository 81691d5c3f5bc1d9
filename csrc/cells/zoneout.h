// Zoneout: at each step a unit keeps its h, or its c, with a given probability. Source: D. Krueger et al., "Zoneout:
// Regularizing RNNs by Randomly Preserving Hidden Activations", arXiv:1606.01305.
#pragma once

#include "cells/philox.h"

namespace fusednn::cells {

enum ZoneoutState : uint32_t { kZoneoutH, kZoneoutC };

// Each direction has a seed of its own, and in it each head two streams.
FUSEDNN_HD uint32_t zoneout_stream(int64_t head, ZoneoutState state) {
  return static_cast<uint32_t>(2 * head) + state;
}

// Unit u of row b at step t draws word u % 4 of the counter (u / 4, b, t, stream), and keeps its state where that is
// below limit_of(probability): nothing is stored, and every kernel draws the same.
FUSEDNN_HD Words zoneout_words(int64_t seed, uint32_t stream, int64_t t, int64_t b, int64_t u) {
  return philox({{static_cast<uint32_t>(u / 4), static_cast<uint32_t>(b), static_cast<uint32_t>(t), stream}},
                static_cast<uint64_t>(seed));
}

}  // namespace fusednn::cells
