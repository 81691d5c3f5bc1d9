// The rung `step`: one launch a time step (two for a cell with two products), forward and backward, for one number
// form.
//
// A block owns 16 hidden units with all their gates, and kRows rows of the batch. Its warps share k; their sums meet in
// shared memory, in the order of the warps, and each thread then finishes one unit of one row. Under programmatic
// dependent launch the first weights are loaded while the step in front still runs.
#pragma once

#include <algorithm>

#include "cuda/cell_step.h"
#include "cuda/launch.h"
#include "cuda/primitives/dependency.h"
#include "cuda/primitives/warp.h"
#include "cuda/product.h"

namespace fusednn::cuda {

constexpr int kUnits = 16, kColumns = 2, kRows = 8 * kColumns, kWarps = 8, kThreads = 32 * kWarps;

template <class A>
constexpr size_t step_shared_bytes(int tiles) {
  return sizeof(A) * kWarps * static_cast<size_t>(tiles) * kColumns * 128;
}

// The sums of all warps, for one unit of one row: gather(unit, row, out[kTiles]).
template <class Form, int kTiles>
struct BlockProduct {
  using A = typename Form::A;

  template <class Ready>
  FUSEDNN_DEVICE BlockProduct(const Weights<typename Form::T>& w, const States<typename Form::T>& h, Ready ready) {
    const int lane = static_cast<int>(lane_of_warp()), warp = static_cast<int>(warp_of_block());
    Product<Form, kTiles, kColumns> product;
    product.run(w, h, warp, kWarps, lane, ready);
    A* mine = shared_memory<A>() + warp * kTiles * kColumns * 128 + lane * 4;
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) mine[(q * kColumns + n) * 128 + i] = product.sum[q][n][i];
      }
    }
    block_sync();
  }

  FUSEDNN_DEVICE void gather(int unit, int row, A* out) const {
    const int at = row / 8 * 128 + (unit % 8 * 4 + row % 8 / 2) * 4 + unit / 8 * 2 + row % 2;
    const A* sums = shared_memory<A>();
    for (int q = 0; q < kTiles; ++q) {
      A sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[(w * kTiles + q) * kColumns * 128 + at];
      out[q] = sum;
    }
  }
};

// One thread a unit and row of the block's tile.
struct Place {
  int unit, row;         // in the tile
  int first_u, first_b;  // of the tile
  FUSEDNN_DEVICE Place()
      : unit(static_cast<int>(threadIdx.x) % kUnits),
        row(static_cast<int>(threadIdx.x) / kUnits),
        first_u(static_cast<int>(blockIdx.x) * kUnits),
        first_b(static_cast<int>(blockIdx.y) * kRows) {
    static_assert(kUnits * kRows == kThreads);
  }
  FUSEDNN_DEVICE int u() const { return first_u + unit; }
  FUSEDNN_DEVICE int b() const { return first_b + row; }
};

template <class Cell, class Form, bool kLate>
__global__ void __launch_bounds__(kThreads, 1) step_forward(Cell math, Sizes z, Given<ForwardStep> given) {
  using T = typename Form::T;
  using A = typename Form::A;
  constexpr int kSecond = Cell::kSecondGates, kFirst = Cell::G - kSecond, kGates = kLate ? kSecond : kFirst;
  dependency_launch();
  const int track = static_cast<int>(blockIdx.z), head = track % z.heads;
  const ForwardStep s = given.of(track / z.heads);
  const Place at;
  if (at.first_b >= s.count) return dependency_wait();  // the whole block, and a recorded step may have no rows at all
  const int k = kLate ? z.hidden : z.proj;
  const long line = head * Cell::G + (kLate ? kFirst : 0);
  const T* w = static_cast<const T*>(s.w) + line * z.hidden * z.proj;
  const T* h = static_cast<const T*>(kLate ? s.middle : s.factor) + static_cast<long>(head) * s.batch * k;
  const BlockProduct<Form, kGates> product({w, k, z.hidden, at.first_u, z.hidden}, {h, k, at.first_b, s.count},
                                           [] { dependency_wait(); });
  if (at.u() >= z.hidden || at.b() >= s.count) return;
  A sums[kGates];
  product.gather(at.unit, at.row, sums);
  const Stored<T> io;
  const ForwardCell<Cell, Stored<T>> cell{math, io, z, s, {z, s.batch, head}};
  if constexpr (kLate) {
    cell.second(at.b(), at.u(), sums);
  } else {
    cell.first(at.b(), at.u(), sums);
  }
}

template <class Cell, class Form, bool kLate>
__global__ void __launch_bounds__(kThreads, 1) step_backward(Cell math, Sizes z, Given<BackwardStep> given) {
  using T = typename Form::T;
  using A = typename Form::A;
  constexpr int kSecond = Cell::kSecondGates, kFirst = Cell::G - kSecond;
  dependency_launch();
  const int track = static_cast<int>(blockIdx.z), head = track % z.heads;
  const BackwardStep s = given.of(track / z.heads);
  const Place at;
  const int rows = kLate ? s.count : s.before;  // whose gradients pass through the weights
  const int reached = kLate ? s.count : rows_reached(s);
  if (at.first_b >= reached) return dependency_wait();
  const long values = static_cast<long>(Cell::G) * z.hidden, row = z.tracks * values;
  const int k = (kLate ? kSecond : kFirst) * z.hidden;
  const T* own = static_cast<const T*>(Cell::kSplit ? s.d_recurrent : s.d_gates);
  const T* d = kLate ? own + static_cast<long>(kFirst) * z.hidden : static_cast<const T*>(s.d_before);
  const T* w = static_cast<const T*>(kLate ? s.w_t_late : s.w_t) + static_cast<long>(head) * z.hidden * k;
  const BlockProduct<Form, 1> product({w, k, 0, at.first_u, z.hidden}, {d + head * values, row, at.first_b, rows},
                                      [] { dependency_wait(); });
  if (at.u() >= z.hidden || at.b() >= reached) return;
  A sum;
  product.gather(at.unit, at.row, &sum);
  const Stored<T> io;
  const BackwardCell<Cell, Stored<T>> cell{math, io, z, s, {z, s.batch, head}};
  if constexpr (kLate) {
    cell.second(at.b(), at.u(), sum);
  } else {
    A dh;
    if (cell.arrive(at.b(), at.u(), sum, dh)) cell.first(at.b(), at.u(), dh);
  }
}

// ------- launches of one step, of a cell known by its type

struct StepKernels {
  const char* (*forward)(const RecurrentShape&, const Given<ForwardStep>&, bool programmatic);
  const char* (*backward)(const RecurrentShape&, const Given<BackwardStep>&, bool programmatic);
};

// Of a recorded step, as many as any step has.
template <class Step, class Rows>
int most_rows(const RecurrentShape& s, const Given<Step>& given, Rows rows) {
  if (given.recorded != nullptr) return static_cast<int>(s.batch);
  int most = 0;
  for (int64_t d = 0; d < s.directions; ++d) most = std::max(most, rows(given.both.step[d]));
  return most;
}

inline LaunchShape step_shape(const RecurrentShape& s, int rows, size_t shared_bytes, bool programmatic) {
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((s.hidden + kUnits - 1) / kUnits);
  shape.grid[1] = static_cast<unsigned>((rows + kRows - 1) / kRows);
  shape.grid[2] = static_cast<unsigned>(s.tracks());
  shape.threads = kThreads;
  shape.shared_bytes = shared_bytes;
  shape.programmatic = programmatic;
  return shape;
}

template <class Registered, class Form>
struct StepOf {
  using Cell = DeviceCell<Registered>;
  using A = typename Form::A;
  static constexpr Cell kCell = device_cell(Registered{});
  static constexpr int kSecond = Cell::kSecondGates, kFirst = Cell::G - kSecond;

  static const char* forward(const RecurrentShape& s, const Given<ForwardStep>& given, bool programmatic) {
    const int rows = most_rows(s, given, [](const ForwardStep& step) { return step.count; });
    if (rows == 0) return nullptr;
    const char* error = launch<step_forward<Cell, Form, false>>(
        step_shape(s, rows, step_shared_bytes<A>(kFirst), programmatic), s.stream, kCell, sizes_of(s), given);
    if constexpr (kSecond > 0) {
      if (error == nullptr) {
        error = launch<step_forward<Cell, Form, true>>(step_shape(s, rows, step_shared_bytes<A>(kSecond), true),
                                                       s.stream, kCell, sizes_of(s), given);
      }
    }
    return error;
  }

  static const char* backward(const RecurrentShape& s, const Given<BackwardStep>& given, bool programmatic) {
    const int rows = most_rows(s, given, rows_reached);
    if (rows == 0) return nullptr;
    const char* error = launch<step_backward<Cell, Form, false>>(
        step_shape(s, rows, step_shared_bytes<A>(1), programmatic), s.stream, kCell, sizes_of(s), given);
    if constexpr (kSecond > 0) {
      const int active = most_rows(s, given, [](const BackwardStep& step) { return step.count; });
      if (error == nullptr && active > 0) {
        error = launch<step_backward<Cell, Form, true>>(step_shape(s, active, step_shared_bytes<A>(1), true), s.stream,
                                                        kCell, sizes_of(s), given);
      }
    }
    return error;
  }
};

// Null: no such cell.
template <class Form>
const StepKernels* step_kernels(const char* cell) {
#define FUSEDNN_STEP(C)                                                                                  \
  if (__builtin_strcmp(cell, cells::C::kName) == 0) {                                                    \
    static const StepKernels kernels{StepOf<cells::C, Form>::forward, StepOf<cells::C, Form>::backward}; \
    return &kernels;                                                                                     \
  }
  FUSEDNN_CELLS(FUSEDNN_STEP)
#undef FUSEDNN_STEP
  return nullptr;
}

// Each in its own file, so that they compile side by side.
const StepKernels* step_float64(const char* cell);
const StepKernels* step_float32(const char* cell);
const StepKernels* step_tf32(const char* cell);
const StepKernels* step_bfloat16(const char* cell);
const StepKernels* step_float16(const char* cell);

}  // namespace fusednn::cuda
