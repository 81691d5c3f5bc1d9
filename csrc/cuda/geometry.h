// How a persistent launch is laid out: who owns which units, rows and k, and what lies where in shared memory.
//
// A group of blocks owns some rows of the batch and a whole copy of W_hh. A block owns unit tiles, 16 hidden units each
// with all their gates; `slices` warps share the k of a unit tile. The rows of a group come in columns, 8 rows each,
// that take their steps one after the other: while one column's states travel, the next one is multiplied.
//
// Several layers walk as a wavefront: each is a track with groups of its own, and takes h_t of the track in front as
// its x_t. All messages of a layer are kept, so no layer waits for the one above.
#pragma once

#include "api.h"
#include "cuda/primitives/device.h"
#include "cuda/primitives/memory.h"
#include "cuda/primitives/warp.h"

namespace fusednn::cuda {

enum class Rung : int { kBlock, kCluster, kGrid };

constexpr int kTileUnits = 16, kColumnRows = 8, kMostWarps = 8, kMostItems = 4, kMostCluster = 16;
constexpr int kMostLayers = 8;

// A step has a round for each of its products. The message that a round waits for holds `parts` values of each unit.
struct Round {
  int parts;
  int chunks;  // of k
  int run;     // of them, those of one warp; the last warps may have fewer
  unsigned bytes;
};

struct Geometry {
  Rung rung;
  int hidden, batch, steps, heads, tracks, first_track;  // heads of a direction, tracks of both
  int layers;                                            // 1, or as many as there are tracks
  int unit_tiles;                                        // of the layer
  int blocks, tiles, slices, columns;  // blocks that own units; unit tiles of a block; warps of a tile; of a group
  int rounds;
  Round round[2];
  int slice_bits;  // slices are a power of two
  int message;     // chunks of the longest message
  int buffer;      // 16-byte pieces from message n to message n + 1 of a column
  int fetched;     // `grid`: of the longest run
  // In a tensor [N, D, values, H], or of layers [L, N, values, H]: D or 1, and from track to track 1 or N.
  int tracks_of_row, track_rows;

  // Offsets in shared memory, in pieces of 16 bytes.
  int sums, sums_of_turn, kept, bias, bias_below, staged, staged_of_warp, barriers, rest[2];
  int sums_below;  // of the product with x_t, behind those with h_{t-1}; fp32 values

  // `grid`: [track, group, depth, column, message * 32]. Message n is kept in place n & depth_mask.
  int depth;
  u32 depth_mask;
  Bytes16* mail;
  // Packed input: the length of each row and, at [t], the rows of all steps before t; null: all rows have all steps.
  const int* lengths;
  const int64_t* offsets;
  u64 patience;  // nanoseconds
  u32* fault;    // of the host, set where a wait took longer
};

// What is known of a launch when the loop over its steps is compiled: nothing, or all that a step would ask for. A bare
// launch has one layer, no options and one column; its rung and slices are fixed too, and whether its rows have
// lengths.
struct AnyLaunch {
  static constexpr bool kBare = false, kPadded = false;
  static constexpr Rung kRung = Rung::kBlock;
  static constexpr int kItemBits = 0, kItems = 1, kSlices = 0;
};
template <Rung kTheRung, int kTheSlices, bool kIsPadded>
struct BareLaunch {
  static constexpr bool kBare = true, kPadded = kIsPadded;
  static constexpr Rung kRung = kTheRung;
  static constexpr int kSlices = kTheSlices;
  static constexpr int kItemBits = kSlices >= 4 ? 0 : 3 - kSlices, kItems = 1 << kItemBits;
};

// Who a warp, and a lane of it, is.
struct Seat {
  int lane, g, t;          // lane (g, t) of mma.h
  int warp, tile, slice;   // tile of the block
  int rank, group, track;  // block in its group
  int unit_tile;           // of the layer
  bool works;              // the unit tile exists
  bool below;              // there is a layer below, which x_t comes from
  bool above;              // and one above, which h_t goes to
  int item_bits;           // of a tile's four sums a lane finishes 1 << item_bits, so that several warps share them:
  int finishers;           // the first ones, by number of slice
  int items;               // that this lane finishes, each a unit of a row; 0: its warp finishes none
  int first_element;       // which of the four sums of a lane the first item is

  FUSEDNN_DEVICE explicit Seat(const Geometry& z)
      : Seat(z, static_cast<int>(lane_of_warp()), told(static_cast<int>(warp_of_block())), static_cast<int>(blockIdx.x),
             static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z) + z.first_track) {}
  FUSEDNN_DEVICE Seat(const Geometry& z, int lane, int warp, int rank, int group, int track)
      : lane(lane),
        g(lane / 4),
        t(lane % 4),
        warp(warp),
        tile(warp >> z.slice_bits),
        slice(warp & (z.slices - 1)),
        rank(rank),
        group(group),
        track(track),
        unit_tile(rank * z.tiles + tile),
        works(unit_tile < z.unit_tiles),
        below(z.layers > 1 && track > 0),
        above(track + 1 < z.layers),
        item_bits(z.slices >= 4 ? 0 : 3 - z.slices),
        finishers(kMostItems >> item_bits),
        items(works && slice < finishers ? 1 << item_bits : 0),
        first_element(slice << item_bits) {}

  // The same: in a loop that has no registers to spare, what follows from it is computed where it is used.
  FUSEDNN_DEVICE Seat again(const Geometry& z) const {
    const int own = static_cast<int>(shuffle(static_cast<u32>(lane), static_cast<unsigned>(lane)));
    return Seat(z, own, told(warp), told(rank), told(group), told(track));
  }

  // A number that all lanes of a warp have, which the compiler learns here; nor does it look through a shuffle.
  static FUSEDNN_DEVICE int told(int number) { return static_cast<int>(shuffle(static_cast<u32>(number), 0)); }

  // That of the i-th item, which says its unit and row (mma.h).
  FUSEDNN_DEVICE int element(int i) const { return first_element + i; }
  FUSEDNN_DEVICE int unit(int i) const { return unit_tile * kTileUnits + element(i) / 2 * 8 + g; }
  FUSEDNN_DEVICE int row(int i) const { return 2 * t + element(i) % 2; }
};

// ------- on the host

struct RoundNeeds {
  int tiles, parts, kept;  // row tiles of a warp; values of a unit in a message; chunks that fit into registers
};

// What a kernel of one cell and number form needs of a geometry.
struct Needs {
  size_t element;  // bytes
  int rounds;
  RoundNeeds round[2];
  int states;  // fp32 values of a unit and row that stay from step to step
  int bias;    // fp32 values of a unit
  const void* kernel;
};

struct Layout {
  Geometry geometry;
  LaunchShape shape;
  int launches;  // tracks that are not resident together follow one another
  size_t mail_bytes;
};

// Null, or why the rung cannot serve the sizes; the message lives until the thread's next call.
const char* lay_out(const RecurrentShape& s, const Needs& needs, Layout& out);

// What the GPU offers; in the emulation what an H200 does, and tests may ask for less.
struct Limits {
  int multiprocessors, shared_bytes;
  int cluster;  // blocks of the largest cluster; 0: none
  // Clusters, or with 1 blocks, of a kernel that are resident together.
  int (*active)(const Needs& needs, const LaunchShape& shape);
};
Limits& limits();

}  // namespace fusednn::cuda
