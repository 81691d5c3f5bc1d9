#include "cpu/dropout.h"

#include "api.h"
#include "cells/zoneout.h"
#include "cpu/team.h"

namespace fusednn {
namespace cpu {

uint32_t dropout_limit(double probability) {
  return cells::limit_of(probability);
}

// Word j % 4 of counter (j / 4, i, head, 0) decides on key j.
void keep_row(int64_t seed, uint32_t limit, int64_t head, int64_t i, int64_t first, int64_t end, bool* keep) {
  for (int64_t group = first / 4; group * 4 < end; ++group) {
    const cells::Words drawn =
        cells::philox({{static_cast<uint32_t>(group), static_cast<uint32_t>(i), static_cast<uint32_t>(head), 0}},
                      static_cast<uint64_t>(seed));
    for (int64_t j = group * 4; j < group * 4 + 4; ++j) {
      if (j >= first && j < end) keep[j - first] = drawn.word[j % 4] >= limit;
    }
  }
}

void draw_zoneout(int64_t seed, uint32_t limit, uint32_t stream, int64_t t, int64_t b, int64_t first, int64_t count,
                  bool* kept) {
  for (int64_t u = first / 4 * 4; u < first + count; u += 4) {
    const cells::Words drawn = cells::zoneout_words(seed, stream, t, b, u);
    for (int64_t v = u; v < u + 4; ++v) {
      if (v >= first && v < first + count) kept[v - first] = drawn.word[v % 4] < limit;
    }
  }
}

}  // namespace cpu

void dropout_keep(const DropoutKeep& args) {
  cpu::run_team(
      args.threads,
      [](void* context, int thread, int threads) {
        const DropoutKeep& a = *static_cast<DropoutKeep*>(context);
        const int64_t queries = a.end_query - a.first_query, keys = a.end_key - a.first_key, rows = a.count * queries;
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
          cpu::keep_row(a.seed, a.limit, a.heads[row / queries], a.first_query + row % queries, a.first_key, a.end_key,
                        a.keep + row * keys);
        }
      },
      const_cast<DropoutKeep*>(&args));
}

}  // namespace fusednn
