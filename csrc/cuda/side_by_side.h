// kCount values of each of kLanes lanes, where the lanes meet in no bank and an access takes 4, 2 or 1 values: those of
// a lane lie side by side in fours, then twos, then alone. Such a place is aligned to 16 bytes.
#pragma once

#include "cuda/primitives/device.h"

namespace fusednn::cuda {

template <int kCount>
constexpr int kAtOnce = kCount >= 4   ? 4
                        : kCount >= 2 ? 2
                                      : 1;

template <int kWidth>
struct alignas(4 * kWidth) SideBySide {
  float value[kWidth];
};

template <int kCount, int kLanes>
FUSEDNN_DEVICE void store_values(float* place, int lane, const float* values) {
  constexpr int kWidth = kAtOnce<kCount>;
  SideBySide<kWidth> wide;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) wide.value[i] = values[i];
  reinterpret_cast<SideBySide<kWidth>*>(place)[lane] = wide;
  if constexpr (kCount > kWidth) store_values<kCount - kWidth, kLanes>(place + kWidth * kLanes, lane, values + kWidth);
}

template <int kCount, int kLanes>
FUSEDNN_DEVICE void load_values(const float* place, int lane, float* values) {
  constexpr int kWidth = kAtOnce<kCount>;
  const SideBySide<kWidth> wide = reinterpret_cast<const SideBySide<kWidth>*>(place)[lane];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] = wide.value[i];
  if constexpr (kCount > kWidth) load_values<kCount - kWidth, kLanes>(place + kWidth * kLanes, lane, values + kWidth);
}

}  // namespace fusednn::cuda
