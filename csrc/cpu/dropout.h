// Random numbers of attention's dropout. Compiled once, for any machine: the draw is not what takes the time.
#pragma once

#include <cstdint>

namespace fusednn::cpu {

uint32_t dropout_limit(double probability);  // words below it are dropped

// Whether query i of a head keeps its keys from first to end - 1.
void keep_row(int64_t seed, uint32_t limit, int64_t head, int64_t i, int64_t first, int64_t end, bool* keep);

}  // namespace fusednn::cpu
