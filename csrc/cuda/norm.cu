#include "cuda/norm.h"

#include <algorithm>
#include <cmath>

#include "cuda/cell_step.h"
#include "cuda/launch.h"
#include "cuda/primitives/barrier.h"

namespace fusednn::cuda {

constexpr int kThreads = 256;

// Of what all threads of the block have, in an order that never changes.
template <class A>
FUSEDNN_DEVICE A block_sum(A mine) {
  A* sums = shared_memory<A>();
  const int thread = static_cast<int>(threadIdx.x);
  block_sync();  // the sum before has been read
  sums[thread] = mine;
  block_sync();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    block_sync();
  }
  return sums[0];
}

// visit(i) for the values of a row that this thread has.
template <class Visit>
FUSEDNN_DEVICE void each(int width, Visit visit) {
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) visit(i);
}

// A row of a head; `values`: where it begins. Twice over it, so that nothing cancels.
template <class A>
FUSEDNN_DEVICE void normalise(const AnyStored<A>& io, const NormRows& r, int width, long values, long gain) {
  A sum = 0, squares = 0;
  each(width, [&](int i) { sum += io.load(r.from, values + i); });
  const A mean = block_sum(sum) / static_cast<A>(width);
  each(width, [&](int i) {
    const A d = io.load(r.from, values + i) - mean;
    squares += d * d;
  });
  const A rstd = A(1) / std::sqrt(block_sum(squares) / static_cast<A>(width) + static_cast<A>(kNormEps));
  each(width, [&](int i) {
    io.store(r.to, values + i, (io.load(r.from, values + i) - mean) * rstd * io.load(r.gain, gain + i));
  });
}

// With n = normed and d its gradient: rstd (d - mean(d) - n mean(d n)).
template <class A>
FUSEDNN_DEVICE void differentiate(const AnyStored<A>& io, const NormRows& r, int width, long values, long gain,
                                  A rstd) {
  const auto gradient = [&](int i) { return io.load(r.from, values + i) * io.load(r.gain, gain + i); };
  A sum = 0, dot = 0;
  each(width, [&](int i) { sum += gradient(i), dot += gradient(i) * io.load(r.normed, values + i); });
  const A mean = block_sum(sum) / static_cast<A>(width), mean_dot = block_sum(dot) / static_cast<A>(width);
  each(width, [&](int i) {
    io.store(r.to, values + i, rstd * (gradient(i) - mean - io.load(r.normed, values + i) * mean_dot));
  });
}

// A block a row of a head, forward and backward.
template <class A>
__global__ void __launch_bounds__(kThreads)
    norm_kernel(AnyStored<A> io, Both<NormRows> both, int heads, int width, long gain_head) {
  const int track = static_cast<int>(blockIdx.y), head = track % heads;
  const NormRows& r = both.step[track / heads];
  const long b = blockIdx.x, values = head * r.head + b * r.row, gain = head * gain_head;
  if (b >= r.count) return;
  if (r.normed == nullptr) {
    normalise(io, r, width, values, gain);
  } else {
    differentiate(io, r, width, values, gain, io.load(r.rstd, head * r.rstd_head + b * r.rstd_row));
  }
}

namespace {

template <class A>
const char* run(const RecurrentShape& s, const Both<NormRows>& both, int64_t width, int64_t gain_head) {
  int rows = 0;
  for (int64_t d = 0; d < s.directions; ++d) rows = std::max(rows, both.step[d].count);
  if (rows == 0) return nullptr;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>(rows), shape.grid[1] = static_cast<unsigned>(s.tracks());
  shape.threads = kThreads;
  shape.shared_bytes = kThreads * sizeof(A);
  return launch<norm_kernel<A>>(shape, s.stream, AnyStored<A>(s.dtype), both, static_cast<int>(s.heads),
                                static_cast<int>(width), static_cast<long>(gain_head));
}

}  // namespace

const char* norm_rows(const RecurrentShape& s, const Both<NormRows>& both, int64_t width, int64_t gain_head) {
  return s.dtype == Dtype::kFloat64 ? run<double>(s, both, width, gain_head) : run<float>(s, both, width, gain_head);
}

}  // namespace fusednn::cuda
