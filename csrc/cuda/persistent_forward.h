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
  using V = ComputedOf<T>;
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
    const typename Base::Route route = Base::template route<1>();
    for (int column = 0; column < z.columns; ++column) {
      if (items == 0 || Base::first_row(column) >= z.batch) break;
      for (int i = 0; i < items; ++i) {
        const auto it = item(column, i);
        const bool there = it.length >= 0;
        const long from = Base::state_place(it);
        const float h = there ? widen(static_cast<const T*>(a_.h0)[from]) : 0.f;
        kept(kH, column, i) = h;
        if (Cell::kCellState) kept(kC, column, i) = there ? widen(static_cast<const T*>(a_.c0)[from]) : 0.f;
        Base::template put<1>(0, i, Stays<Form>::state(h * Base::factor(a_.asked, it)));
      }
      if (Base::template steps_of<AnyLaunch>(column) > 0) Base::template send<1>(0, Base::channel(column), route);
    }
  }

  // All steps.
  template <class Launch, class Weights, class Late, class Input>
  FUSEDNN_DEVICE void steps(const Weights& weights, const Late& late, const Input& input) {
    constexpr int kRounds = kSecond > 0 ? 2 : 1;
    if (!Launch::kBare) static_cast<Seat&>(*this) = Base::again(z);
    typename Base::Route route = Base::template route<1, Launch>();
    typename Base::Channel channel = Base::channel(0);
    const int columns = Launch::kBare ? 1 : z.columns;
    const int longest = Base::template steps_of<Launch>(0);
    const auto steps_of = [&](int column) { return Launch::kBare ? longest : Base::template steps_of<Launch>(column); };
    for (int step = 0; step < steps_of(0); ++step) {
      for (int column = 0; column < columns; ++column) {
        const int steps = steps_of(column);
        if (step >= steps) break;  // and so do the columns behind it, whose rows are no longer
        if (!Launch::kBare) {
          static_cast<Seat&>(*this) = Base::again(z);
          route = Base::template route<1, Launch>();
          channel = Base::channel(column);
        }
        const int time = track < z.heads ? step : steps - 1 - step;
        const Step s{column, time, Base::template rows_before<Launch>(time)};
        const u32 n = static_cast<u32>(step) * kRounds;
        const auto in = inputs<Launch, 0, kFirst>(s, 0);
        if constexpr (kSecond == 0 && !Launch::kBare) {
          if (below) Base::multiply_below(input, n + 1, column);
        }
        Base::template multiply<Launch>(weights, n, channel, 0);
        const bool more = step + 1 < steps || (!Launch::kBare && Base::above);
        const auto conclude = [&](const auto& out) {
          if (more) Base::template send<1, Launch>(n + kRounds, channel, route);
          Base::write_last(out, writer<Launch>(s));
        };
        if constexpr (kSecond == 0) {
          if (items > 0) conclude(this->step<Launch>(s, in));
        } else {
          if (items > 0) {
            first<Launch>(s, in);
            Base::template send<1, Launch>(n + 1, channel, route);
          }
          const auto in_second = inputs<Launch, kFirst, G>(s, 0);
          Base::template multiply<Launch>(late, n + 1, channel, 1);
          if (items > 0) conclude(second<Launch>(s, in_second));
        }
      }
    }
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

  // The input part of gates [kBegin, kEnd) of the next items; those of an item that is not active mean nothing.
  template <class Launch, int kBegin, int kEnd>
  struct Inputs {
    struct {
      T x[kEnd - kBegin];
      bool active;  // takes this step
    } item[Launch::kItems];
  };
  template <class Launch, int kBegin, int kEnd>
  FUSEDNN_DEVICE Inputs<Launch, kBegin, kEnd> inputs(const Step& s, int first) const {
    Inputs<Launch, kBegin, kEnd> in;
#pragma unroll
    for (int i = 0; i < Launch::kItems; ++i) {
      if (Launch::kBare ? items == 0 : first + i >= items) break;
      const auto it = Base::template item<Launch>(s.column, first + i);
      in.item[i].active = s.time < it.length;
      if (!Launch::kBare && below) continue;
      const long from = in.item[i].active ? Base::place(it, s.rows, G) : 0;
#pragma unroll
      for (int q = kBegin; q < kEnd; ++q) {
        in.item[i].x[q - kBegin] = static_cast<const T*>(a_.gates)[from + q * z.hidden];
      }
    }
    return in;
  }
  template <class Launch, int kBegin, int kEnd>
  FUSEDNN_DEVICE auto loader(const Step& s) const {
    return [this, s](int first) { return inputs<Launch, kBegin, kEnd>(s, first); };
  }

  // What a step leaves of an item.
  struct Output {
    T y, saved[S + 1];
    bool active;
  };
  template <class Launch>
  FUSEDNN_DEVICE auto writer(const Step& s) const {
    return [this, s](const Output& out, int i) {
      if (!out.active) return;
      const auto it = Base::item(s.column, i);
      if (Launch::kBare || !Base::above || z.track_rows > 0) {
        static_cast<T*>(a_.y)[Base::place(it, s.rows, 1)] = out.y;
      }
      if (a_.saved == nullptr) return;
      T* to = static_cast<T*>(a_.saved) + Base::place(it, s.rows, S);
#pragma unroll
      for (int k = 0; k < S; ++k) to[k * z.hidden] = out.saved[k];
    };
  }

  // Behind the product of a cell with one: the new states of all items.
  template <class Launch>
  FUSEDNN_DEVICE auto step(const Step& s, const Inputs<Launch, 0, kFirst>& now) {
    const auto body = [&](const auto& in, int i) {
      V x[G], rec[G], saved[S + 1], c = Cell::kCellState ? kept(kC, s.column, i) : 0.f;
      read<Launch, 0, kFirst>(in.x, i, x, rec);
      const V h = cell_.forward(x, rec, V(kept(kH, s.column, i)), c, saved);
      return arrive<Launch>(s, i, in.active, static_cast<float>(h), static_cast<float>(c), saved);
    };
    return Base::template finish<Launch>(now, loader<Launch, 0, kFirst>(s), body, writer<Launch>(s));
  }

  // Behind the first product of a cell with two: what the second one multiplies.
  template <class Launch>
  FUSEDNN_DEVICE void first(const Step& s, const Inputs<Launch, 0, kFirst>& now) {
    struct Nothing {};
    const auto body = [&](const auto& in, int i) {
      V x[G], rec[G], saved[S + 1];
      read<Launch, 0, kFirst>(in.x, i, x, rec);
      float middle = static_cast<float>(cell_.forward_first(x, rec, V(kept(kH, s.column, i)), saved));
      if (!Launch::kBare) middle *= Base::factor(a_.asked, item(s.column, i));
      Base::template put<1>(0, i, Stays<Form>::state(middle));
      for (int k = 0; k < S; ++k) kept(kSaved + k, s.column, i) = static_cast<float>(saved[k]);
      return Nothing{};
    };
    Base::template finish<Launch>(now, loader<Launch, 0, kFirst>(s), body, [](Nothing, int) {});
  }

  // Behind the second one.
  template <class Launch>
  FUSEDNN_DEVICE auto second(const Step& s, const Inputs<Launch, kFirst, G>& now) {
    const auto body = [&](const auto& in, int i) {
      V x[G], rec[G], saved[S + 1];
      read<Launch, kFirst, G>(in.x, i, x, rec);
      for (int k = 0; k < S; ++k) saved[k] = kept(kSaved + k, s.column, i);
      const V h = cell_.forward_second(x, rec, V(kept(kH, s.column, i)), saved);
      return arrive<Launch>(s, i, in.active, static_cast<float>(h), 0, saved);
    };
    return Base::template finish<Launch>(now, loader<Launch, kFirst, G>(s), body, writer<Launch>(s));
  }

  // The biases of an item's gates [kBegin, kEnd), the first or the second ones: of the tile's 16 units side by side.
  template <int kBegin>
  FUSEDNN_DEVICE float* biases(int place) const {
    return reinterpret_cast<float*>(Base::shared + place) + (tile * G + kBegin) * kTileUnits;
  }
  FUSEDNN_DEVICE int unit_of_tile(int i) const { return Base::element(i) / 2 * 8 + Base::g; }
  // Of [G*H], or of zeros where that is null.
  FUSEDNN_DEVICE void keep_bias(int place, const void* from) const {
    for (int i = 0; i < items; ++i) {
      const int u = Base::unit(i);
      float b[G];
#pragma unroll
      for (int q = 0; q < G; ++q) {
        const bool there = from != nullptr && u < z.hidden;
        b[q] = there ? widen(static_cast<const T*>(from)[static_cast<long>(q) * z.hidden + u]) : 0.f;
      }
      store_values<kFirst, kTileUnits>(biases<0>(place), unit_of_tile(i), b);
      if constexpr (kSecond > 0) {
        store_values<kSecond, kTileUnits>(biases<kFirst>(place), unit_of_tile(i), b + kFirst);
      }
    }
  }

  template <class Launch, int kBegin, int kEnd>
  FUSEDNN_DEVICE void read(const T* in, int i, V* x, V* rec) const {
    constexpr int kCount = kEnd - kBegin;
    float sum[kCount], b[kCount];
    Base::template gather<Launch>(i, sum);
    load_values<kCount, kTileUnits>(biases<kBegin>(z.bias), unit_of_tile(i), b);
#pragma unroll
    for (int q = 0; q < kCount; ++q) x[kBegin + q] = widen(in[q]), rec[kBegin + q] = b[q] + sum[q];
    if (Launch::kBare || !below) return;
    Base::template gather<Launch>(i, sum, z.sums_below);
    load_values<kCount, kTileUnits>(biases<kBegin>(z.bias_below), unit_of_tile(i), b);
#pragma unroll
    for (int q = 0; q < kCount; ++q) x[kBegin + q] = b[q] + sum[q];
  }

  // The new states of an item, h in the next message; a row that takes no step keeps its own.
  template <class Launch>
  FUSEDNN_DEVICE Output arrive(const Step& s, int i, bool active, float h, float c, const V* saved) {
    float factor = 1;
    if (!Launch::kBare && a_.asked.any) factor = with_options(s, item(s.column, i), i, active, h, c);
    Output out;
    out.active = active, out.y = narrow<T>(h);
#pragma unroll
    for (int k = 0; k < S; ++k) out.saved[k] = narrow<T>(static_cast<float>(saved[k]));
    if (active) {
      kept(kH, s.column, i) = widen(out.y);
      if (Cell::kCellState) kept(kC, s.column, i) = c;
    }
    if (Launch::kBare && active) {
      Base::template put<1>(0, i, Stays<Form>::sent(out.y));
    } else {
      Base::template put<1>(0, i, Stays<Form>::state(factor * kept(kH, s.column, i)));
    }
    return out;
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
        static_cast<T*>(a_.states)[Base::place(it, s.rows, 1)] = narrow<T>(Cell::kCellState ? c : own);
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
  Residence<Form, kFirst, kept_chunks<Form>(forward_registers(kRounds), kFirst, kRounds)> weights;
  Residence<Form, kSecond, kept_chunks<Form>(forward_registers(kRounds), kSecond, kRounds)> late;
  Residence<Form, kSecond == 0 ? G : 0, 0> input;  // of a layer above the first
  walk.load(weights, 0, walk.rows_of(walk.weights().w_hh, 0));
  if constexpr (kSecond > 0) {
    walk.load(late, 1, walk.rows_of(walk.weights().w_hh, kFirst));
  } else if (walk.below) {
    walk.load(input, 1, walk.rows_of(walk.weights().w_ih, 0));
  }
  walk.begin();
  walk.choose(a.asked, [&](auto launch) { walk.template steps<decltype(launch)>(weights, late, input); });
  walk.end();
  walk.close();
}

}  // namespace fusednn::cuda
