#include "cuda/lengths.h"

#include <algorithm>

#include "cuda/launch.h"

namespace fusednn::cuda {

constexpr int kThreads = 256;

// Rows whose lengths travel as an argument of one launch.
template <int kRows>
struct Lengths {
  int first, count;
  int length[kRows];
};

// A thread a time: a row has had min(length, t) steps before t.
template <int kRows>
__global__ void __launch_bounds__(kThreads)
    lengths_kernel(Lengths<kRows> part, int times, int* lengths, int64_t* offsets) {
  const int t = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (t < part.count) lengths[part.first + t] = part.length[t];
  if (t >= times) return;
  int64_t rows = part.first == 0 ? 0 : offsets[t];
  for (int i = 0; i < part.count; ++i) rows += part.length[i] < t ? part.length[i] : t;
  offsets[t] = rows;
}

const char* put_lengths(const RecurrentShape& s, int* lengths, int64_t* offsets) {
  constexpr int kRows = 960;  // of 4 KiB of arguments
  const int times = static_cast<int>(s.steps) + 1;
  int64_t steps = s.steps;  // of the row at hand: no more than those of the row in front
  Lengths<kRows> part{};
  for (int row = 0; row < s.batch; ++row) {
    while (steps > 0 && s.batch_sizes[steps - 1] <= row) --steps;
    part.length[part.count++] = static_cast<int>(steps);
    if (part.count < kRows && row + 1 < s.batch) continue;
    LaunchShape shape;
    shape.grid[0] = static_cast<unsigned>((std::max(times, part.count) + kThreads - 1) / kThreads);
    shape.threads = kThreads;
    if (const char* error = launch<lengths_kernel<kRows>>(shape, s.stream, part, times, lengths, offsets)) return error;
    part.first += part.count, part.count = 0;
  }
  return nullptr;
}

}  // namespace fusednn::cuda
