// The rungs `block`, `cluster` and `grid`: one launch for all steps, forward and backward, for one number form.
//
// W_hh stays in registers and shared memory (residence.h) while the steps pass; between the blocks of a group only h,
// or in backward the gradients of the gates, moves (exchange.h). The sums of the warps of a unit tile meet in shared
// memory once a round, in the order of the warps; a lane then finishes fixed units of fixed rows, whose state never
// leaves the block. A row stands still before its first and after its last step.
#pragma once

#include <algorithm>

#include "cuda/device_cell.h"
#include "cuda/exchange.h"
#include "cuda/launch.h"

namespace fusednn::cuda {

constexpr int kMostThreads = 32 * kMostWarps;

struct PersistentForward {
  const void* gates;  // as in api.h
  const void* h0;
  const void* c0;
  const void* w_hh;
  const void* b_hh;
  void* y;
  void* h_n;
  void* c_n;
  void* saved;
};

struct PersistentBackward {
  const void* grad_y;
  const void* grad_h_n;
  const void* grad_c_n;
  const void* y;
  const void* saved;
  const void* h0;
  const void* c0;
  const void* w_hh;
  void* d_gates;
  void* d_recurrent;
  void* d_h0;
  void* d_c0;
};

// Chunks of a product with `tiles` row tiles that stay in a lane's registers: 8 registers a chunk and tile.
template <class Form>
constexpr int kept_chunks(int tiles, int share) {
  const int sums = std::is_same_v<Form, Float32> ? 16 * tiles : 16;
  return tiles == 0 ? 1 : std::max(1, (176 - sums) / share / (8 * tiles));
}

// What both directions of the recurrence share: the rounds of a step, and where rows and their states lie.
template <class Form>
struct Walk {
  using T = typename Form::T;

  const Geometry& z;
  const Seat at;
  Exchange<Form> exchange;
  Bytes16* shared;
  int turn = 0;

  FUSEDNN_DEVICE explicit Walk(const Geometry& geometry)
      : z(geometry), at(geometry), exchange(geometry, at), shared(shared_memory<Bytes16>()) {}

  // ------- rows

  FUSEDNN_DEVICE int first_row(int column) const { return (at.group * z.columns + column) * kColumnRows; }
  FUSEDNN_DEVICE int length(int row) const { return z.lengths == nullptr ? z.steps : z.lengths[row]; }
  // Of the longest row, its first; 0 beyond the batch.
  FUSEDNN_DEVICE int steps_of(int column) const {
    const int row = first_row(column);
    return row < z.batch ? length(row) : 0;
  }
  // Row `row` at a time in a tensor [N, D, width].
  FUSEDNN_DEVICE long place(int time, int row, int width) const {
    const long rows = z.offsets == nullptr ? static_cast<long>(time) * z.batch : static_cast<long>(z.offsets[time]);
    return ((rows + row) * z.directions + at.direction) * width;
  }
  FUSEDNN_DEVICE long state_place(int row) const { return (static_cast<long>(at.direction) * z.batch + row) * z.hidden; }

  // The i-th item in a column: a unit of a row.
  struct Item {
    int unit, row, length;
    bool exists;
  };
  FUSEDNN_DEVICE Item item(int column, int i) const {
    Item it{at.unit(i), first_row(column) + at.row(i), 0, false};
    it.exists = it.unit < z.hidden && it.row < z.batch;
    if (it.exists) it.length = length(it.row);
    return it;
  }

  FUSEDNN_DEVICE float& kept(int state, int column, int i) const {
    float* states = reinterpret_cast<float*>(shared + z.kept);
    return states[((state * z.columns + column) * z.tiles + at.tile) * 128 + at.element(i) * 32 + at.lane];
  }

  // ------- one round: the product with message n, its sums where those who finish units find them

  template <int kTiles, int kKept>
  FUSEDNN_DEVICE void multiply(const Residence<Form, kTiles, kKept>& weights, u32 n, int column, const Round& round) {
    turn ^= 1;
    if (at.works) {
      const Bytes16* states = exchange.receive(n, column, round);
      float sum[kTiles][4];
      weights.multiply(states, sum);
      const bool lost = ballot(exchange.lost()) != 0;
      float* mine = sums() + at.warp * kTiles * 128 + at.lane;
#pragma unroll
      for (int q = 0; q < kTiles; ++q) {
#pragma unroll
        for (int e = 0; e < 4; ++e) mine[q * 128 + e * 32] = lost ? bits_as<float>(0x7fc00000u) : sum[q][e];
      }
    }
    block_sync();
  }

  // Tile q's sum of the i-th item.
  template <int kTiles>
  FUSEDNN_DEVICE float product(int q, int i) const {
    const float* first = sums() + (at.tile * z.slices * kTiles + q) * 128 + at.element(i) * 32 + at.lane;
    float sum = 0;
#pragma unroll
    for (int slice = 0; slice < kMostWarps; ++slice) {
      if (slice < z.slices) sum += first[slice * kTiles * 128];
    }
    return sum;
  }

  template <class Weights, class Fetch>
  FUSEDNN_DEVICE void load(Weights& weights, int round, Fetch fetch) const {
    const Round& r = z.round[round];
    const int first = at.slice * r.run, left = r.chunks - first, chunks = left < r.run ? left : r.run;
    const int rest = (r.run > Weights::kInRegisters ? r.run - Weights::kInRegisters : 0) * Weights::kChunkPieces;
    weights.load(shared + z.rest[round] + at.warp * rest, first, at.works && chunks > 0 ? chunks : 0, at.lane, fetch);
  }

 private:
  FUSEDNN_DEVICE float* sums() const { return reinterpret_cast<float*>(shared + z.sums + turn * z.sums_of_turn); }
};

// ------- forward

template <class Cell, class Form>
__global__ void __launch_bounds__(kMostThreads, 1) persistent_forward(Cell cell, const __grid_constant__ Geometry z, PersistentForward a) {
  using T = typename Form::T;
  constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond, kRounds = 1 + (kSecond > 0);
  Walk<Form> walk(z);
  const Seat& at = walk.at;
  walk.exchange.open();
  if (at.rank >= z.blocks) return walk.exchange.close();

  const T* w = static_cast<const T*>(a.w_hh) + static_cast<long>(at.direction) * G * z.hidden * z.hidden;
  const auto rows_of = [&](int first_gate) {
    return [&, first_gate](int q, int row, int k) {
      const int u = at.unit_tile * kTileUnits + row;
      const T* from = w + (static_cast<long>(first_gate + q) * z.hidden + u) * z.hidden;
      return piece<T, true>(u < z.hidden ? from : nullptr, k, z.hidden, aligned_rows(w, z.hidden));
    };
  };
  Residence<Form, kFirst, kept_chunks<Form>(kFirst, kRounds)> weights;
  Residence<Form, kSecond, kept_chunks<Form>(kSecond, kRounds)> late;
  walk.load(weights, 0, rows_of(0));
  if constexpr (kSecond > 0) walk.load(late, 1, rows_of(kFirst));

  float* bias = reinterpret_cast<float*>(walk.shared + z.bias) + at.tile * G * kTileUnits;
  const auto bias_of = [&](int q, int i) -> float& { return bias[q * kTileUnits + at.element(i) / 2 * 8 + at.g]; };
  at.each_item([&](int i) {
    for (int q = 0; q < G; ++q) {
      const bool there = a.b_hh != nullptr && at.unit(i) < z.hidden;
      const long from = (static_cast<long>(at.direction) * G + q) * z.hidden + at.unit(i);
      bias_of(q, i) = there ? widen(static_cast<const T*>(a.b_hh)[from]) : 0.f;
    }
  });

  // h as a tensor of the dtype holds it, and c: of each item
  enum { kH, kC };
  for (int j = 0; j < z.columns; ++j) {
    if (at.items == 0 || walk.first_row(j) >= z.batch) break;
    at.each_item([&](int i) {
      const auto it = walk.item(j, i);
      const long from = walk.state_place(it.row) + it.unit;
      const float h = it.exists ? widen(static_cast<const T*>(a.h0)[from]) : 0.f;
      walk.kept(kH, j, i) = h;
      if (Cell::kCellState) walk.kept(kC, j, i) = it.exists ? widen(static_cast<const T*>(a.c0)[from]) : 0.f;
      walk.exchange.put(0, i, Stays<Form>::state(h));
    });
    walk.exchange.template send<1>(0, j);
  }

  for (int step = 0; step < walk.steps_of(0); ++step) {
    for (int j = 0; j < z.columns; ++j) {
      const int steps = walk.steps_of(j);
      if (step >= steps) break;  // and so the columns behind it, whose rows are no longer
      const int time = at.direction == 0 ? step : steps - 1 - step;
      const u32 n = static_cast<u32>(step) * kRounds;
      u32 active = 0;  // items that take this step
      T x[kMostItems][G] = {};
      at.each_item([&](int i) {
        const auto it = walk.item(j, i);
        if (!it.exists || time >= it.length) return;
        active |= 1u << i;
        const T* from = static_cast<const T*>(a.gates) + walk.place(time, it.row, G * z.hidden) + it.unit;
#pragma unroll
        for (int q = 0; q < G; ++q) x[i][q] = from[q * z.hidden];
      });
      const auto inputs = [&](int i, float (&wide)[G]) {
#pragma unroll
        for (int q = 0; q < G; ++q) wide[q] = widen(x[i][q]);
      };

      // The new h of an item: kept, written, and on its way.
      const auto arrive = [&](int i, float next, float c, const float* saved) {
        if ((active >> i & 1) != 0) {
          const auto it = walk.item(j, i);
          const T stored = narrow<T>(next);
          walk.kept(kH, j, i) = widen(stored);
          if (Cell::kCellState) walk.kept(kC, j, i) = c;
          static_cast<T*>(a.y)[walk.place(time, it.row, z.hidden) + it.unit] = stored;
          if (a.saved != nullptr) {
            T* to = static_cast<T*>(a.saved) + walk.place(time, it.row, S * z.hidden) + it.unit;
#pragma unroll
            for (int k = 0; k < S; ++k) to[k * z.hidden] = narrow<T>(saved[k]);
          }
        }
        walk.exchange.put(0, i, Stays<Form>::state(walk.kept(kH, j, i)));
      };

      walk.multiply(weights, n, j, z.round[0]);
      if (at.items == 0 && kSecond == 0) continue;
      float saved[kMostItems][S + 1];
      at.each_item([&](int i) {
        float wide[G], rec[G], c = Cell::kCellState ? walk.kept(kC, j, i) : 0.f;
        inputs(i, wide);
#pragma unroll
        for (int q = 0; q < kFirst; ++q) rec[q] = bias_of(q, i) + walk.template product<kFirst>(q, i);
        const float h = walk.kept(kH, j, i);
        if constexpr (kSecond == 0) {
          const float next = cell.forward(wide, rec, h, c, saved[i]);
          arrive(i, next, c, saved[i]);
        } else {
          walk.exchange.put(0, i, Stays<Form>::state(cell.forward_first(wide, rec, h, saved[i])));
        }
      });
      if constexpr (kSecond > 0) {
        if (at.items > 0) walk.exchange.template send<1>(n + 1, j);
        walk.multiply(late, n + 1, j, z.round[1]);
        at.each_item([&](int i) {
          float wide[G], rec[G];
          inputs(i, wide);
#pragma unroll
          for (int q = kFirst; q < G; ++q) {
            rec[q] = bias_of(q, i) + walk.template product<kSecond>(q - kFirst, i);
          }
          arrive(i, cell.forward_second(wide, rec, walk.kept(kH, j, i), saved[i]), 0.f, saved[i]);
        });
      }
      if (at.items > 0 && step + 1 < steps) walk.exchange.template send<1>(n + kRounds, j);
    }
  }

  for (int j = 0; j < z.columns; ++j) {
    at.each_item([&](int i) {
      const auto it = walk.item(j, i);
      if (!it.exists) return;
      const long to = walk.state_place(it.row) + it.unit;
      static_cast<T*>(a.h_n)[to] = narrow<T>(walk.kept(kH, j, i));
      if (Cell::kCellState) static_cast<T*>(a.c_n)[to] = narrow<T>(walk.kept(kC, j, i));
    });
  }
  walk.exchange.close();
}

// ------- backward

template <class Cell, class Form>
__global__ void __launch_bounds__(kMostThreads, 1) persistent_backward(Cell cell, const __grid_constant__ Geometry z, PersistentBackward a) {
  using T = typename Form::T;
  constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond, kRounds = 1 + (kSecond > 0);
  constexpr bool kNeedsH = !Cell::kCellState;
  using OfGates = float[G];
  using OfSaved = float[S + 1];
  Walk<Form> walk(z);
  const Seat& at = walk.at;
  walk.exchange.open();
  if (at.rank >= z.blocks) return walk.exchange.close();

  // Rows of W_hh^T: unit u's weights towards the gates of all units.
  const T* w = static_cast<const T*>(a.w_hh) + static_cast<long>(at.direction) * G * z.hidden * z.hidden;
  const auto columns_of = [&](int first_gate, int gates) {
    return [&, first_gate, gates](int, int row, int k) {
      const int u = at.unit_tile * kTileUnits + row, part = k / (z.unit_tiles * kTileUnits);
      const int v = k % (z.unit_tiles * kTileUnits);
      struct Numbers {
        T value[Form::kVector];
      } numbers;
#pragma unroll
      for (int i = 0; i < Form::kVector; ++i) {
        const bool there = u < z.hidden && part < gates && v + i < z.hidden;
        const long from = (static_cast<long>(first_gate + part) * z.hidden + v + i) * z.hidden + u;
        numbers.value[i] = there ? w[from] : narrow<T>(0.f);
      }
      return bits_as<Bytes16>(numbers);
    };
  };
  Residence<Form, 1, kept_chunks<Form>(1, kRounds)> weights;
  Residence<Form, (kSecond > 0), kept_chunks<Form>(kSecond > 0, kRounds)> late;
  walk.load(weights, 0, columns_of(0, kFirst));
  if constexpr (kSecond > 0) walk.load(late, 1, columns_of(kFirst, kSecond));

  // Gradients of each item's h, as far as it does not pass through W_hh, and of its c.
  enum { kDh, kDc };
  for (int j = 0; j < z.columns; ++j) {
    if (at.items == 0 || walk.first_row(j) >= z.batch) break;
    at.each_item([&](int i) {
      const auto it = walk.item(j, i);
      const long from = walk.state_place(it.row) + it.unit;
      const auto state_gradient = [&](const void* of) {
        return it.exists && of != nullptr ? widen(static_cast<const T*>(of)[from]) : 0.f;
      };
      walk.kept(kDh, j, i) = state_gradient(a.grad_h_n);
      if (Cell::kCellState) walk.kept(kDc, j, i) = state_gradient(a.grad_c_n);
#pragma unroll
      for (int q = 0; q < kFirst; ++q) walk.exchange.put(q, i, narrow<T>(0.f));
    });
    walk.exchange.template send<kFirst>(0, j);
  }

  // After the last step one product is left, for the gradient of h0.
  for (int step = 0; step <= walk.steps_of(0); ++step) {
    for (int j = 0; j < z.columns; ++j) {
      const int steps = walk.steps_of(j);
      if (step > steps || walk.first_row(j) >= z.batch) break;
      const bool forth = at.direction == 0;  // in forward; here time runs against it
      const int time = forth ? steps - 1 - step : step, handled = forth ? time + 1 : time - 1;
      const u32 n = static_cast<u32>(step) * kRounds;
      u32 active = 0, passed = 0;  // items that take this step; that took the one handled before
      T saved[kMostItems][S + 1] = {}, grad_y[kMostItems] = {}, y[kMostItems] = {}, h_prev[kMostItems] = {},
                        c_prev[kMostItems] = {};
      at.each_item([&](int i) {
        const auto it = walk.item(j, i);
        if (step > 0 && handled < it.length) passed |= 1u << i;
        if (!it.exists || step == steps || time >= it.length) return;
        active |= 1u << i;
        const int before = forth ? time - 1 : time + 1;
        const bool joined = before >= 0 && before < it.length;
        const long here = walk.place(time, it.row, z.hidden) + it.unit, state = walk.state_place(it.row) + it.unit;
        if (a.grad_y != nullptr) grad_y[i] = static_cast<const T*>(a.grad_y)[here];
        const T* from = static_cast<const T*>(a.saved) + walk.place(time, it.row, S * z.hidden) + it.unit;
#pragma unroll
        for (int k = 0; k < S; ++k) saved[i][k] = from[k * z.hidden];
        if (kNeedsH) {
          y[i] = static_cast<const T*>(a.y)[here];
          h_prev[i] = joined ? static_cast<const T*>(a.y)[walk.place(before, it.row, z.hidden) + it.unit]
                             : static_cast<const T*>(a.h0)[state];
        }
        if (Cell::kCellState) {
          const long there = walk.place(joined ? before : time, it.row, S * z.hidden) + Cell::kSavedC * z.hidden;
          c_prev[i] = joined ? static_cast<const T*>(a.saved)[there + it.unit] : static_cast<const T*>(a.c0)[state];
        }
      });
      const auto wide_saved = [&](int i, OfSaved& wide) {
#pragma unroll
        for (int k = 0; k < S; ++k) wide[k] = widen(saved[i][k]);
      };
      // Gradients of gates [begin, end): written, and those of the recurrent part on their way.
      const auto put = [&](int i, int begin, int end, const float* dx, const float* dr, bool there) {
        const auto it = walk.item(j, i);
        const long to = there ? walk.place(time, it.row, G * z.hidden) + it.unit : 0;
#pragma unroll
        for (int q = 0; q < G; ++q) {
          if (q < begin || q >= end) continue;
          const T x = narrow<T>(dx[q]), r = narrow<T>(dr[q]);
          if (there) static_cast<T*>(a.d_gates)[to + q * z.hidden] = x;
          if (there && Cell::kSplit) static_cast<T*>(a.d_recurrent)[to + q * z.hidden] = r;
          walk.exchange.put(q - begin, i, Stays<Form>::state(there ? widen(r) : 0.f));
        }
      };

      walk.multiply(weights, n, j, z.round[0]);
      at.each_item([&](int i) {
        const bool there = (active >> i & 1) != 0;
        OfGates dx = {}, dr = {};
        OfSaved wide;
        float dh = walk.kept(kDh, j, i);
        if ((passed >> i & 1) != 0) dh += walk.template product<1>(0, i);
        wide_saved(i, wide);
        if (there) dh += widen(grad_y[i]);
        if constexpr (kSecond > 0) {
          if (there) cell.backward_second(wide, widen(h_prev[i]), dh, dx, dr);
          put(i, kFirst, G, dx, dr, there);
        } else {
          float dc = Cell::kCellState ? walk.kept(kDc, j, i) : 0.f;
          if (there) dh = cell.backward(wide, widen(y[i]), widen(h_prev[i]), widen(c_prev[i]), dh, dc, dx, dr);
          if (Cell::kCellState) walk.kept(kDc, j, i) = dc;
          put(i, 0, G, dx, dr, there);
        }
        walk.kept(kDh, j, i) = dh;
      });
      if (step == steps) continue;
      if constexpr (kSecond > 0) {
        if (at.items > 0) walk.exchange.template send<kSecond>(n + 1, j);
        walk.multiply(late, n + 1, j, z.round[1]);
        at.each_item([&](int i) {
          OfGates dx = {}, dr = {};
          OfSaved wide;
          wide_saved(i, wide);
          const bool there = (active >> i & 1) != 0;
          float& dh = walk.kept(kDh, j, i);
          if (there) dh = cell.backward_first(wide, widen(h_prev[i]), dh, walk.template product<1>(0, i), dx, dr);
          put(i, 0, kFirst, dx, dr, there);
        });
      }
      if (at.items > 0) walk.exchange.template send<kFirst>(n + kRounds, j);
    }
  }

  for (int j = 0; j < z.columns; ++j) {
    at.each_item([&](int i) {
      const auto it = walk.item(j, i);
      if (!it.exists) return;
      const long to = walk.state_place(it.row) + it.unit;
      static_cast<T*>(a.d_h0)[to] = narrow<T>(walk.kept(kDh, j, i));
      if (Cell::kCellState) static_cast<T*>(a.d_c0)[to] = narrow<T>(walk.kept(kDc, j, i));
    });
  }
  walk.exchange.close();
}

// ------- launches, of a cell known by its type

struct PersistentKernels {
  Needs forward_needs, backward_needs;
  const char* (*forward)(const LaunchShape&, void* stream, const Geometry&, const PersistentForward&);
  const char* (*backward)(const LaunchShape&, void* stream, const Geometry&, const PersistentBackward&);
};

template <class Registered, class Form>
struct PersistentOf {
  using Cell = DeviceCell<Registered>;
  static constexpr Cell kCell = device_cell(Registered{});
  static constexpr int G = Cell::G, kSecond = Cell::kSecondGates, kFirst = G - kSecond, kRounds = 1 + (kSecond > 0);
  static constexpr int kStates = Cell::kCellState ? 2 : 1;

  static Needs forward_needs() {
    const auto round = [](int tiles) { return RoundNeeds{tiles, 1, kept_chunks<Form>(tiles, kRounds)}; };
    return {sizeof(typename Form::T), kRounds, {round(kFirst), round(kSecond)}, kStates, G,
            reinterpret_cast<const void*>(persistent_forward<Cell, Form>)};
  }
  static Needs backward_needs() {
    const auto round = [](int parts) { return RoundNeeds{parts > 0, parts, kept_chunks<Form>(parts > 0, kRounds)}; };
    return {sizeof(typename Form::T), kRounds, {round(kFirst), round(kSecond)}, kStates, 0,
            reinterpret_cast<const void*>(persistent_backward<Cell, Form>)};
  }
  static const char* forward(const LaunchShape& shape, void* stream, const Geometry& z, const PersistentForward& a) {
    return launch<persistent_forward<Cell, Form>>(shape, stream, kCell, z, a);
  }
  static const char* backward(const LaunchShape& shape, void* stream, const Geometry& z, const PersistentBackward& a) {
    return launch<persistent_backward<Cell, Form>>(shape, stream, kCell, z, a);
  }
};

// Null: no such cell.
template <class Form>
const PersistentKernels* persistent_kernels(const char* cell) {
#define FUSEDNN_PERSISTENT(C)                                                                             \
  if (__builtin_strcmp(cell, cells::C::kName) == 0) {                                                     \
    using Of = PersistentOf<cells::C, Form>;                                                              \
    static const PersistentKernels kernels{Of::forward_needs(), Of::backward_needs(), Of::forward, Of::backward}; \
    return &kernels;                                                                                      \
  }
  FUSEDNN_CELLS(FUSEDNN_PERSISTENT)
#undef FUSEDNN_PERSISTENT
  return nullptr;
}

// Each in its own file, so that they compile side by side.
const PersistentKernels* persistent_float32(const char* cell);
const PersistentKernels* persistent_tf32(const char* cell);
const PersistentKernels* persistent_bfloat16(const char* cell);
const PersistentKernels* persistent_float16(const char* cell);

}  // namespace fusednn::cuda
