// Philox4x32-10, random words from a counter: four for each 128-bit counter and 64-bit key. Source: Salmon et al. 2011,
// Parallel random numbers: as easy as 1, 2, 3.
#pragma once

#include <cmath>
#include <cstdint>

#include "cells/math.h"

namespace fusednn::cells {

struct Words {
  uint32_t word[4];
};

FUSEDNN_HD Words philox(Words counter, uint64_t key) {
  uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * counter.word[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ low, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ high, static_cast<uint32_t>(a)}};
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return counter;
}

// A word below this is drawn with `probability`.
FUSEDNN_HD uint32_t limit_of(double probability) {
  const double words = std::nearbyint(probability * 4294967296.0);  // ties as Python rounds
  return words < 4294967295.0 ? static_cast<uint32_t>(words) : 4294967295u;
}

}  // namespace fusednn::cells
