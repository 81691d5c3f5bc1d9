#include "cuda/ring.h"

#include "cuda/geometry.h"
#include "cuda/launch.h"

namespace fusednn::cuda {

// A thread a piece.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) clear_kernel(const __grid_constant__ Geometry z, long pieces, int vector) {
  const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= pieces) return;
  const int place = static_cast<int>(i % (z.message * 32)), message = static_cast<int>(i / z.buffer % z.depth);
  const int k = (place / 32 * 4 + place % 4) * vector;
  const bool sent = k < z.round[message % z.rounds].parts * z.unit_tiles * kTileUnits;
  z.mail[i] = sent ? absent() : Bytes16{{0, 0, 0, 0}};
}

const char* clear_mail(const Geometry& z, size_t mail_bytes, int vector, void* stream) {
  constexpr int kThreads = 256;
  const size_t pieces = mail_bytes / sizeof(Bytes16);
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((pieces + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  return launch<clear_kernel<kThreads>>(shape, stream, z, static_cast<long>(pieces), vector);
}

}  // namespace fusednn::cuda
