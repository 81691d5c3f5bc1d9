#include "cuda/geometry.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>

#include "cuda/launch.h"
#include "cuda/ring.h"

namespace fusednn::cuda {
namespace {

constexpr int kPieceBytes = 16;

thread_local std::string why;

int up(int value, int grain) {
  return (value + grain - 1) / grain;
}

int power_below(int value) {  // the largest power of two that is not above
  int power = 1;
  while (2 * power <= value) power *= 2;
  return power;
}

// Offsets in shared memory, in the order in which they are asked for.
struct Shared {
  int pieces = 0;
  int take(size_t bytes) {
    const int at = pieces;
    pieces += static_cast<int>((bytes + kPieceBytes - 1) / kPieceBytes);
    return at;
  }
};

// Where everything lies in shared memory; the bytes of it.
size_t place(Geometry& z, const Needs& needs) {
  const int warps = z.tiles * z.slices, finishers = std::min(z.slices, kMostItems), products = z.layers > 1 ? 2 : 1;
  int most_tiles = 0, most_parts = 0;
  for (int r = 0; r < z.rounds; ++r) {
    most_tiles = std::max(most_tiles, needs.round[r].tiles), most_parts = std::max(most_parts, needs.round[r].parts);
  }
  z.buffer = z.columns * z.message * 32;
  Shared shared;
  shared.take(size_t{512} * static_cast<size_t>(z.rung == Rung::kGrid ? warps * z.fetched : 2 * z.columns * z.message));
  z.sums_below = warps * most_tiles * 128;
  z.sums_of_turn = products * z.sums_below * 4 / kPieceBytes;
  z.sums = shared.take(static_cast<size_t>(2 * z.sums_of_turn) * kPieceBytes);
  z.kept = shared.take(size_t{512} * static_cast<size_t>(needs.states * z.columns * z.tiles));
  const size_t bias = sizeof(float) * static_cast<size_t>(z.tiles * needs.bias * kTileUnits);
  z.bias = shared.take(bias);
  if (z.layers > 1) z.bias_below = shared.take(bias);
  const int part_places = most_parts == 3 ? 4 : most_parts;  // exchange.h counts them with bits
  const size_t staged = static_cast<size_t>(part_places * (kMostItems / finishers) * 32) * needs.element;
  z.staged_of_warp = static_cast<int>(staged / kPieceBytes);
  z.staged = shared.take(staged * static_cast<size_t>(z.tiles * finishers));
  z.barriers = shared.take(sizeof(u64) * 2 * static_cast<size_t>(z.columns));
  for (int r = 0; r < z.rounds; ++r) {
    const int rest = std::max(0, z.round[r].run - needs.round[r].kept) * needs.round[r].tiles;
    z.rest[r] = shared.take(size_t{1024} * static_cast<size_t>(rest * warps));
  }
  return static_cast<size_t>(shared.pieces) * kPieceBytes;
}

// Rounds of a geometry whose tiles are known: how k is cut.
void cut(Geometry& z, const Needs& needs) {
  const int chunk_units = 64 / static_cast<int>(needs.element);
  z.rounds = needs.rounds, z.message = 0, z.fetched = 0;
  for (int r = 0; r < z.rounds; ++r) {
    z.round[r].parts = needs.round[r].parts;
    z.round[r].chunks = up(needs.round[r].parts * z.unit_tiles * kTileUnits, chunk_units);
    z.message = std::max(z.message, z.round[r].chunks);
  }
  z.slices = power_below(std::min(kMostWarps / z.tiles, z.message));
  z.slice_bits = std::countr_zero(static_cast<unsigned>(z.slices));
  for (int r = 0; r < z.rounds; ++r) {
    z.round[r].run = up(z.round[r].chunks, z.slices);
    z.round[r].bytes = static_cast<unsigned>(z.round[r].parts * z.unit_tiles * kTileUnits * kColumnRows) *
                       static_cast<unsigned>(needs.element);
    z.fetched = std::max(z.fetched, z.round[r].run);
  }
}

const char* refuse(const std::string& reason) {
  why = reason;
  return why.c_str();
}

std::string kib(size_t bytes) {
  return std::to_string((bytes + 1023) / 1024) + " KiB";
}

// With clusters of at most `cluster` blocks.
const char* lay_out_within(int cluster, const RecurrentShape& s, const Needs& needs, Layout& out) {
  const Limits& gpu = limits();
  Geometry& z = out.geometry;
  z = Geometry{};
  z.rung = std::strcmp(s.strategy, "block") == 0     ? Rung::kBlock
           : std::strcmp(s.strategy, "cluster") == 0 ? Rung::kCluster
                                                     : Rung::kGrid;
  z.hidden = static_cast<int>(s.hidden), z.batch = static_cast<int>(s.batch);
  z.steps = s.rows > 0 ? static_cast<int>(s.steps) : 0;  // of a packed sequence no row may have one
  z.layers = s.layers;
  z.heads = static_cast<int>(s.heads * s.layers), z.tracks = static_cast<int>(s.tracks() * s.layers);
  z.tracks_of_row = z.tracks / z.layers, z.track_rows = z.layers > 1 ? static_cast<int>(s.rows) : 1;
  z.unit_tiles = up(z.hidden, kTileUnits);
  const std::string layers = z.layers > 1 ? std::to_string(z.layers) + " layers of " : "";
  const std::string what = layers + s.cell + " with H = " + std::to_string(s.hidden);
  if (s.rows > std::numeric_limits<int>::max() / z.tracks) {
    return refuse(
        what + ": one launch counts at most 2^31 rows of all directions and layers, got N = " + std::to_string(s.rows));
  }
  int launched = 1;  // blocks of a group
  if (z.rung == Rung::kBlock) {
    if (z.unit_tiles > kMostWarps)
      return refuse("one block holds at most 128 units, got H = " + std::to_string(s.hidden));
    z.tiles = z.unit_tiles, z.blocks = 1;
  } else if (z.rung == Rung::kCluster) {
    if (cluster == 0) return refuse("clusters need a GPU of compute capability 9.0 or later");
    // Two unit tiles a block as long as blocks last; then more of them.
    launched = 2;
    while (launched < cluster && 2 * launched < z.unit_tiles) launched *= 2;
    z.tiles = up(z.unit_tiles, launched), z.blocks = up(z.unit_tiles, z.tiles);
  } else {
    z.tiles = up(z.unit_tiles, std::max(gpu.multiprocessors / z.layers, 1));
    z.blocks = launched = up(z.unit_tiles, z.tiles);
  }
  if (z.tiles > kMostWarps) {
    return refuse(what + " needs " + std::to_string(z.unit_tiles) + " unit tiles, and " + std::to_string(launched) +
                  " blocks hold " + std::to_string(launched * kMostWarps));
  }
  cut(z, needs);
  const int64_t messages = int64_t{z.layers > 1 ? 1 : z.rounds} * z.steps + 1;
  const bool kept = z.layers > 1 || messages <= kRing;
  z.depth = static_cast<int>(kept ? messages : kRing), z.depth_mask = kept ? ~0u : kRing - 1;

  LaunchShape& shape = out.shape;
  shape = LaunchShape{};
  shape.grid[0] = static_cast<unsigned>(launched);
  shape.threads = static_cast<unsigned>(32 * z.tiles * z.slices);
  shape.cluster = z.rung == Rung::kCluster ? static_cast<unsigned>(launched) : 1;
  shape.cooperative = z.rung == Rung::kGrid;

  // As many groups as run together, and columns for the rows that are left.
  z.columns = 1;
  shape.shared_bytes = place(z, needs);
  const auto fits = [&] { return shape.shared_bytes <= static_cast<size_t>(gpu.shared_bytes); };
  if (!fits()) {
    return refuse(what + ": " + kib(shape.shared_bytes) +
                  " of shared memory a block for weights beyond the registers," + " this GPU has " +
                  kib(static_cast<size_t>(gpu.shared_bytes)));
  }
  const int rows = up(std::max(z.batch, 1), kColumnRows), active = gpu.active(needs, shape);
  shape.resident = static_cast<unsigned>(active);
  const int together = z.rung == Rung::kGrid ? active / launched : active;  // groups
  if (together < z.layers) {
    if (launched > 2 && z.rung == Rung::kCluster) return lay_out_within(launched / 2, s, needs, out);
    return refuse(what + ": no " + std::to_string(launched * z.layers) +
                  " blocks of it are resident together on this GPU");
  }
  const int tracks = z.rung == Rung::kGrid ? std::min(z.tracks, together) : z.tracks;  // of one launch
  out.launches = up(z.tracks, tracks);
  const int groups = std::max(1, together / tracks);
  z.columns = up(rows, groups);
  shape.shared_bytes = place(z, needs);
  while (!fits() && z.rung != Rung::kGrid && z.columns > 1) {  // more groups than run together follow one another
    --z.columns;
    shape.shared_bytes = place(z, needs);
  }
  if (!fits()) {
    return refuse(what + " and B = " + std::to_string(s.batch) + ": " + kib(shape.shared_bytes) +
                  " of shared memory a block, this GPU has " + kib(static_cast<size_t>(gpu.shared_bytes)));
  }
  shape.grid[1] = static_cast<unsigned>(up(rows, z.columns));
  shape.grid[2] = static_cast<unsigned>(tracks);
  if (z.rung == Rung::kGrid) {
    const size_t columns = static_cast<size_t>(z.tracks) * shape.grid[1] * static_cast<size_t>(z.columns);
    out.mail_bytes = columns * static_cast<size_t>(z.depth) * static_cast<size_t>(z.message) * 512;
  } else {
    out.mail_bytes = 0;
  }
  return nullptr;
}

}  // namespace

const char* lay_out(const RecurrentShape& s, const Needs& asked, Layout& out) {
  Needs needs = asked;
  if (s.layers > 1) {  // W_ih is multiplied by a message as W_hh is, and lies in shared memory alone
    if (needs.rounds > 1) return refuse(std::string(s.cell) + " has two products a step, and so no wavefront");
    if (s.layers > kMostLayers) {
      return refuse("one launch holds at most " + std::to_string(kMostLayers) + " layers, got " +
                    std::to_string(s.layers));
    }
    needs.round[needs.rounds++] = {needs.round[0].tiles, needs.round[0].parts, 0};
  }
  return lay_out_within(std::min(limits().cluster, kMostCluster), s, needs, out);
}

#if defined(FUSEDNN_EMULATE)

Limits& limits() {
  static Limits h200{132, 227 * 1024, 16, [](const Needs&, const LaunchShape& shape) {
                       return h200.multiprocessors / static_cast<int>(shape.cluster);
                     }};
  return h200;
}

#else

namespace {

int count_active(const Needs& needs, const LaunchShape& shape) {
  cudaLaunchAttribute cluster;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid[0]), config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  int found = 0;
  if (allow(needs.kernel, shape) != cudaSuccess) return 0;
  if (shape.cluster > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension, cluster.val.clusterDim = {shape.cluster, 1, 1};
    config.attrs = &cluster, config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(&found, needs.kernel, &config) == cudaSuccess ? found : 0;
  }
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &found, needs.kernel, static_cast<int>(shape.threads), shape.shared_bytes);
  return error == cudaSuccess ? found * limits().multiprocessors : 0;
}

// The question takes longer than a launch.
int active_on_gpu(const Needs& needs, const LaunchShape& shape) {
  thread_local std::map<std::tuple<int, const void*, unsigned, unsigned, size_t>, int> known;
  int device = 0;
  cudaGetDevice(&device);
  const auto [found, first] =
      known.try_emplace({device, needs.kernel, shape.cluster, shape.threads, shape.shared_bytes});
  if (first) found->second = count_active(needs, shape);
  return found->second;
}

Limits ask(int device) {
  int major = 0;
  Limits gpu{};
  gpu.active = active_on_gpu;
  cudaDeviceGetAttribute(&gpu.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&gpu.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  gpu.cluster = major >= 9 ? kMostCluster : 0;
  return gpu;
}

}  // namespace

Limits& limits() {
  thread_local std::map<int, Limits> of;
  int device = 0;
  cudaGetDevice(&device);
  const auto found = of.find(device);
  return found != of.end() ? found->second : of[device] = ask(device);
}

#endif

}  // namespace fusednn::cuda
