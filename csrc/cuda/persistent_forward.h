// The recurrence, forward: one kernel for `block`, `cluster` and `grid`, there also for several layers.
#pragma once

#include "cuda/device_cell.h"
#include "cuda/walk.h"

namespace fusednn::cuda {

struct PersistentForward {  // as in api.h
  const void* gates;
  const void* h0;
  const void* c0;
  const void* w_hh;
  const void* b_hh;
  void* y;
  void* h_n;
  void* c_n;
  void* saved;
  void* states;
  Asked asked;
  LayerWeights above[kMostLayers - 1];
};

template <class Cell, class Form>
class ForwardWalk : public Walk<Form> {
 public:
  using T = typename Form::T;
  using Base = Walk<Form>;
  using Base::track, Base::below, Base::items, Base::item, Base::kept, Base::tile, Base::z;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;
  // Of each item: h as a tensor of the dtype holds it, c, and between two products what is to be saved.
  static constexpr int kH = 0, kC = 1, kSaved = 1, kStates = 1 + Cell::kCellState + (kSecond > 0 ? S : 0);

  FUSEDNN_DEVICE ForwardWalk(const Cell& cell, const Geometry& z, const PersistentForward& a)
      : Base(z), cell_(cell), a_(a) {}

  // Those of this track, or layer; what makes the gates of the first layer is not among them.
  FUSEDNN_DEVICE LayerWeights weights() const {
    if (below) return a_.above[track - 1];
    const long lines = static_cast<long>(track) * G * z.hidden;
    const T *w_hh = static_cast<const T*>(a_.w_hh) + lines * z.hidden, *b_hh = static_cast<const T*>(a_.b_hh);
    return {nullptr, w_hh, nullptr, b_hh == nullptr ? nullptr : b_hh + lines};
  }

  // Rows of a matrix [G*H, H], those of gates from `first` on, as fetch of residence.h.
  FUSEDNN_DEVICE auto rows_of(const void* matrix, int first) const {
    const T* w = static_cast<const T*>(matrix);
    return [this, w, first](int q, int row, int k) {
      const int u = Base::unit_tile * kTileUnits + row;
      const T* from = w + (static_cast<long>(first + q) * z.hidden + u) * z.hidden;
      return piece<T, true>(u < z.hidden ? from : nullptr, k, z.hidden, aligned_rows(w, z.hidden));
    };
  }

  // Message 0 is h_0. A message that nobody receives is not sent: a block may not end while one is under way to it.
  FUSEDNN_DEVICE void begin() {
    keep_bias(z.bias, weights().b_hh);
    if (below) keep_bias(z.bias_below, weights().b_ih);
    for (int column = 0; column < z.columns; ++column) {
      if (items == 0 || Base::first_row(column) >= z.batch) break;
      for (int i = 0; i < items; ++i) {
        const auto it = item(column, i);
        const bool there = it.length >= 0;
        const long from = Base::state_place(it);
        const float h = there ? widen(static_cast<const T*>(a_.h0)[from]) : 0.f;
        kept(kH, column, i) = h;
        if (Cell::kCellState) kept(kC, column, i) = there ? widen(static_cast<const T*>(a_.c0)[from]) : 0.f;
        Base::put(0, i, Stays<Form>::state(h * Base::factor(a_.asked, it)));
      }
      if (Base::steps_of(column) > 0) Base::template send<1>(0, column);
    }
  }

  // The input part of gates [kBegin, kEnd) of kItemsAtOnce items.
  template <int kBegin, int kEnd>
  struct Inputs {
    struct {
      T x[kEnd - kBegin];
      bool active;  // takes this step
    } item[kItemsAtOnce];
  };
  template <int kBegin, int kEnd>
  FUSEDNN_DEVICE Inputs<kBegin, kEnd> inputs(const Step& s, int first) const {
    Inputs<kBegin, kEnd> in{};
#pragma unroll
    for (int i = 0; i < kItemsAtOnce; ++i) {
      if (first + i >= items) break;
      const auto it = item(s.column, first + i);
      if (s.time >= it.length) continue;
      in.item[i].active = true;
      if (below) continue;
      const T* from = static_cast<const T*>(a_.gates) + Base::place(it, s.time, G);
#pragma unroll
      for (int q = kBegin; q < kEnd; ++q) in.item[i].x[q - kBegin] = from[q * z.hidden];
    }
    return in;
  }

  // Behind the product of a cell with one: the new states of all items.
  FUSEDNN_DEVICE void step(const Step& s, const Inputs<0, kFirst>& now) {
    Base::finish(now, loader<0, kFirst>(s), [&](const auto& in, int i) {
      float x[G], rec[G], saved[S + 1], c = Cell::kCellState ? kept(kC, s.column, i) : 0.f;
      read<0, kFirst>(in.x, i, x, rec);
      const float h = cell_.forward(x, rec, kept(kH, s.column, i), c, saved);
      arrive(s, i, in.active, h, c, saved);
    });
  }

  // Behind the first product of a cell with two: what the second one multiplies.
  FUSEDNN_DEVICE void first(const Step& s, const Inputs<0, kFirst>& now) {
    Base::finish(now, loader<0, kFirst>(s), [&](const auto& in, int i) {
      float x[G], rec[G], saved[S + 1];
      read<0, kFirst>(in.x, i, x, rec);
      const float middle = cell_.forward_first(x, rec, kept(kH, s.column, i), saved);
      Base::put(0, i, Stays<Form>::state(middle * Base::factor(a_.asked, item(s.column, i))));
      for (int k = 0; k < S; ++k) kept(kSaved + k, s.column, i) = saved[k];
    });
  }

  // Behind the second one.
  FUSEDNN_DEVICE void second(const Step& s, const Inputs<kFirst, G>& now) {
    Base::finish(now, loader<kFirst, G>(s), [&](const auto& in, int i) {
      float x[G], rec[G], saved[S + 1];
      read<kFirst, G>(in.x, i, x, rec);
      for (int k = 0; k < S; ++k) saved[k] = kept(kSaved + k, s.column, i);
      arrive(s, i, in.active, cell_.forward_second(x, rec, kept(kH, s.column, i), saved), 0, saved);
    });
  }

  FUSEDNN_DEVICE void end() const {
    for (int column = 0; column < z.columns; ++column) {
      for (int i = 0; i < items; ++i) {
        const auto it = item(column, i);
        if (it.length < 0) continue;
        static_cast<T*>(a_.h_n)[Base::state_place(it)] = narrow<T>(kept(kH, column, i));
        if (Cell::kCellState) static_cast<T*>(a_.c_n)[Base::state_place(it)] = narrow<T>(kept(kC, column, i));
      }
    }
  }

 private:
  using Item = typename Base::Item;

  template <int kBegin, int kEnd>
  FUSEDNN_DEVICE auto loader(const Step& s) const {
    return [this, s](int first) { return inputs<kBegin, kEnd>(s, first); };
  }

  FUSEDNN_DEVICE float& bias(int place, int q, int i) const {
    float* all = reinterpret_cast<float*>(Base::shared + place);
    return all[(tile * G + q) * kTileUnits + Base::element(i) / 2 * 8 + Base::g];
  }
  // Of [G*H], or of zeros where that is null.
  FUSEDNN_DEVICE void keep_bias(int place, const void* from) const {
    for (int i = 0; i < items; ++i) {
      for (int q = 0; q < G; ++q) {
        const int u = Base::unit(i);
        const bool there = from != nullptr && u < z.hidden;
        bias(place, q, i) = there ? widen(static_cast<const T*>(from)[static_cast<long>(q) * z.hidden + u]) : 0.f;
      }
    }
  }

  template <int kBegin, int kEnd>
  FUSEDNN_DEVICE void read(const T* in, int i, float* x, float* rec) const {
#pragma unroll
    for (int q = kBegin; q < kEnd; ++q) {
      x[q] = below ? bias(z.bias_below, q, i) + Base::template sum_of<kEnd - kBegin>(q - kBegin, i, z.sums_below)
                   : widen(in[q - kBegin]);
      rec[q] = bias(z.bias, q, i) + Base::template sum_of<kEnd - kBegin>(q - kBegin, i);
    }
  }

  // The new states of an item, h in the next message; a row that takes no step keeps its own.
  FUSEDNN_DEVICE void arrive(const Step& s, int i, bool active, float h, float c, const float* saved) {
    const auto it = item(s.column, i);
    const float factor = a_.asked.any ? with_options(s, it, i, active, h, c) : 1.f;
    if (active) {
      const T stored = narrow<T>(h);
      kept(kH, s.column, i) = widen(stored);
      if (Cell::kCellState) kept(kC, s.column, i) = c;
      if (!Base::above || z.track_rows > 0) static_cast<T*>(a_.y)[Base::place(it, s.time, 1)] = stored;
      if (a_.saved != nullptr) {
        T* to = static_cast<T*>(a_.saved) + Base::place(it, s.time, S);
#pragma unroll
        for (int k = 0; k < S; ++k) to[k * z.hidden] = narrow<T>(saved[k]);
      }
    }
    Base::put(0, i, Stays<Form>::state(factor * kept(kH, s.column, i)));
  }

  // Zoneout of the states that the cell gave; what recurrent dropout multiplies h with.
  FUSEDNN_DEVICE float with_options(const Step& s, const Item& it, int i, bool active, float& h, float& c) const {
    if (active) {
      const float own = h;
      if (a_.asked.zoneout.h > 0) {
        h = mixed(Base::share(a_.asked, cells::kZoneoutH, it, s.time), kept(kH, s.column, i), h);
      }
      if (Cell::kCellState && a_.asked.zoneout.c > 0) {
        c = mixed(Base::share(a_.asked, cells::kZoneoutC, it, s.time), kept(kC, s.column, i), c);
      }
      if (a_.states != nullptr) {
        static_cast<T*>(a_.states)[Base::place(it, s.time, 1)] = narrow<T>(Cell::kCellState ? c : own);
      }
    }
    return Base::factor(a_.asked, it);
  }

  const Cell& cell_;
  const PersistentForward& a_;
};

template <class Cell, class Form>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    persistent_forward(const __grid_constant__ Cell cell, const __grid_constant__ Geometry z,
                       const __grid_constant__ PersistentForward a) {
  using Forward = ForwardWalk<Cell, Form>;
  constexpr int G = Cell::G, kSecond = Forward::kSecond, kFirst = Forward::kFirst, kRounds = kSecond > 0 ? 2 : 1;
  Forward walk(cell, z, a);
  walk.open();
  if (walk.rank >= z.blocks) return walk.close();
  Residence<Form, kFirst, kept_chunks<Form>(kForwardRegisters, kFirst, kRounds)> weights;
  Residence<Form, kSecond, kept_chunks<Form>(kForwardRegisters, kSecond, kRounds)> late;
  Residence<Form, kSecond == 0 ? G : 0, 0> input;  // of a layer above the first
  walk.load(weights, 0, walk.rows_of(walk.weights().w_hh, 0));
  if constexpr (kSecond > 0) {
    walk.load(late, 1, walk.rows_of(walk.weights().w_hh, kFirst));
  } else if (walk.below) {
    walk.load(input, 1, walk.rows_of(walk.weights().w_ih, 0));
  }
  walk.begin();
  for (int step = 0; step < walk.steps_of(0); ++step) {
    for (int column = 0; column < z.columns; ++column) {
      const int steps = walk.steps_of(column);
      if (step >= steps) break;  // and so do the columns behind it, whose rows are no longer
      const Step s{column, walk.track < z.heads ? step : steps - 1 - step, steps};
      const u32 n = static_cast<u32>(step) * kRounds;
      const auto in = walk.template inputs<0, kFirst>(s, 0);
      if constexpr (kSecond == 0) {
        if (walk.below) walk.multiply_below(input, n + 1, column);
      }
      walk.multiply(weights, n, column, 0);
      if constexpr (kSecond == 0) {
        walk.step(s, in);
      } else {
        walk.first(s, in);
        walk.template send<1>(n + 1, column);
        const auto in_second = walk.template inputs<kFirst, G>(s, 0);
        walk.multiply(late, n + 1, column, 1);
        walk.second(s, in_second);
      }
      if (step + 1 < steps || walk.above) walk.template send<1>(n + kRounds, column);
    }
  }
  walk.end();
  walk.close();
}

}  // namespace fusednn::cuda
