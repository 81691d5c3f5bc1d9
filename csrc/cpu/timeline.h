// Which rows of the batch take part in which step, and where they lie.
#pragma once

#include "api.h"

namespace fusednn::cpu {

struct Timeline {
  long batch, steps;
  const int64_t* sizes;  // null: padded
  long* offsets;         // [T], where sizes is given

  void fill_offsets() const {
    if (sizes == nullptr) return;
    long sum = 0;
    for (long t = 0; t < steps; sum += sizes[t++]) offsets[t] = sum;
  }
  long count(long t) const { return t < 0 || t >= steps ? 0 : sizes == nullptr ? batch : sizes[t]; }
  long offset(long t) const { return sizes == nullptr ? t * batch : offsets[t]; }
};

// A thread's rows [begin, end) of the batch.
struct Range {
  long begin, end;

  long size() const { return end - begin; }
  // Those that come before `count`.
  Range first(long count) const { return {begin < count ? begin : count, end < count ? end : count}; }
};

inline Range share_of(long n, long part, long parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

}  // namespace fusednn::cpu
