#include "cuda/states.h"

#include "cuda/cell_step.h"
#include "cuda/launch.h"
#include "cuda/primitives/barrier.h"

namespace fusednn::cuda {

constexpr int kThreads = 256, kTransposed = 32;

template <class A>
__global__ void __launch_bounds__(kThreads) spread_kernel(const void* from, AnyStored<A> io, long n, Spread to) {
  const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const A x = from == nullptr ? A(0) : io.load(from, i);
  if (to.acc != nullptr) static_cast<A*>(to.acc)[i] = x;
  for (void* same : to.same) {
    if (same != nullptr) io.store(same, i, x);
  }
  for (void* masked : to.masked) {
    if (masked != nullptr) io.store(masked, i, x * io.load(to.mask, i));
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const A* acc, AnyStored<A> io, long n, const void* product, const void* mask, long passed, void* to) {
  const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  A through = product != nullptr && i < passed ? io.load(product, i) : A(0);
  if (mask != nullptr) through *= io.load(mask, i);
  io.store(to, i, acc[i] + through);
}

template <int kTile, class Bits>
FUSEDNN_DEVICE void transpose_tile(const Bits* from, long m, long k, Bits* to) {
  // A padded row, so that the reads down a column meet all banks.
  Bits* tile = shared_memory<Bits>();
  const long m0 = static_cast<long>(blockIdx.y) * kTile, k0 = static_cast<long>(blockIdx.x) * kTile;
  const int x = static_cast<int>(threadIdx.x) % kTile, y0 = static_cast<int>(threadIdx.x) / kTile;
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    if (m0 + y < m && k0 + x < k) tile[y * (kTile + 1) + x] = from[(m0 + y) * k + k0 + x];
  }
  block_sync();
  for (int y = y0; y < kTile; y += kThreads / kTile) {
    if (k0 + y < k && m0 + x < m) to[(k0 + y) * m + m0 + x] = tile[x * (kTile + 1) + y];
  }
}

// For elements of so many bytes.
template <int kTile>
__global__ void __launch_bounds__(kThreads) transpose_kernel(int bytes, const void* from, long m, long k, void* to) {
  if (bytes == 8) return transpose_tile<kTile>(static_cast<const u64*>(from), m, k, static_cast<u64*>(to));
  if (bytes == 4) return transpose_tile<kTile>(static_cast<const u32*>(from), m, k, static_cast<u32*>(to));
  transpose_tile<kTile>(static_cast<const u16*>(from), m, k, static_cast<u16*>(to));
}

namespace {

LaunchShape over(int64_t n) {
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((n + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  return shape;
}

template <class A>
const char* spread(const void* from, Dtype dtype, int64_t n, const Spread& to, void* stream) {
  return launch<spread_kernel<A>>(over(n), stream, from, AnyStored<A>(dtype), static_cast<long>(n), to);
}

template <class A>
const char* gather(const void* acc, Dtype dtype, int64_t n, const void* product, const void* mask, int64_t passed,
                   void* to, void* stream) {
  return launch<gather_kernel<A>>(over(n), stream, static_cast<const A*>(acc), AnyStored<A>(dtype),
                                  static_cast<long>(n), product, mask, static_cast<long>(passed), to);
}

const char* transpose_bytes(int bytes, const void* from, int64_t m, int64_t k, void* to, void* stream) {
  LaunchShape shape;
  constexpr int kTile = kTransposed;
  shape.grid[0] = static_cast<unsigned>((k + kTile - 1) / kTile);
  shape.grid[1] = static_cast<unsigned>((m + kTile - 1) / kTile);
  shape.threads = kThreads;
  shape.shared_bytes = sizeof(u64) * kTile * (kTile + 1);
  return launch<transpose_kernel<kTile>>(shape, stream, bytes, from, static_cast<long>(m), static_cast<long>(k), to);
}

}  // namespace

const char* spread_state(const void* from, Dtype dtype, int64_t n, const Spread& to, void* stream) {
  if (n == 0) return nullptr;
  return dtype == Dtype::kFloat64 ? spread<double>(from, dtype, n, to, stream)
                                  : spread<float>(from, dtype, n, to, stream);
}

const char* gather_state(const void* acc, Dtype dtype, int64_t n, const void* product, const void* mask, int64_t rows,
                         int64_t width, void* to, void* stream) {
  if (n == 0) return nullptr;
  return dtype == Dtype::kFloat64 ? gather<double>(acc, dtype, n, product, mask, rows * width, to, stream)
                                  : gather<float>(acc, dtype, n, product, mask, rows * width, to, stream);
}

const char* transpose(const void* from, Dtype dtype, int64_t m, int64_t k, void* to, void* stream) {
  switch (dtype) {
    case Dtype::kFloat64:
      return transpose_bytes(8, from, m, k, to, stream);
    case Dtype::kFloat32:
      return transpose_bytes(4, from, m, k, to, stream);
    default:
      return transpose_bytes(2, from, m, k, to, stream);
  }
}

}  // namespace fusednn::cuda
