// Random numbers of attention's dropout and of zoneout. Compiled once, for any machine: the draw is not what takes the
// time.
#pragma once

#include <cstdint>

namespace fusednn::cpu {

uint32_t dropout_limit(double probability);  // words below it are drawn

// Whether query i of a head keeps its keys from first to end - 1.
void keep_row(int64_t seed, uint32_t limit, int64_t head, int64_t i, int64_t first, int64_t end, bool* keep);

// Whether units from first on keep their state at step t, `count` of them, in a stream of cells/zoneout.h.
void draw_zoneout(int64_t seed, uint32_t limit, uint32_t stream, int64_t t, int64_t b, int64_t first, int64_t count,
                  bool* kept);

}  // namespace fusednn::cpu
