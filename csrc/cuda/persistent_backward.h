// The recurrence, backward: one kernel for `block`, `cluster` and `grid`. It gives the gradients of the gates; what
// follows from them for all steps at once is left to library GEMMs.
//
// A message holds the gradients of the recurrent parts of a step; message 0 stands for the step behind the last one and
// is zero.
#pragma once

#include "cuda/device_cell.h"
#include "cuda/walk.h"

namespace fusednn::cuda {

struct PersistentBackward {  // as in api.h
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
  const void* states;
  Asked asked;
};

template <class Cell, class Form>
class BackwardWalk : public Walk<Form> {
 public:
  using T = typename Form::T;
  using V = ComputedOf<T>;
  using Base = Walk<Form>;
  using Base::track, Base::items, Base::item, Base::kept, Base::z;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;
  // Of each item: the gradient of h as far as it does not pass through W_hh, and that of c.
  static constexpr int kDh = 0, kDc = 1, kStates = 1 + Cell::kCellState;

  FUSEDNN_DEVICE BackwardWalk(const Cell& cell, const Geometry& z, const PersistentBackward& a)
      : Base(z), cell_(cell), a_(a) {}

  // Rows of W_hh^T, as fetch of residence.h: a unit's weights towards `gates` gates of all units, from `first` on.
  FUSEDNN_DEVICE auto weights_of(int first, int gates) const {
    const T* w = static_cast<const T*>(a_.w_hh) + static_cast<long>(track) * G * z.hidden * z.hidden;
    return [this, w, first, gates](int, int row, int k) {
      const int padded = z.unit_tiles * kTileUnits, gate = k / padded, v = k % padded;
      const int u = Base::unit_tile * kTileUnits + row;
      struct Numbers {
        T of[Form::kVector];
      } numbers;
#pragma unroll
      for (int i = 0; i < Form::kVector; ++i) {
        const bool there = u < z.hidden && gate < gates && v + i < z.hidden;
        const long from = (static_cast<long>(first + gate) * z.hidden + v + i) * z.hidden + u;
        numbers.of[i] = there ? w[from] : narrow<T>(0.f);
      }
      return bits_as<Bytes16>(numbers);
    };
  }

  FUSEDNN_DEVICE void begin() {
    for (int column = 0; column < z.columns; ++column) {
      if (items == 0 || Base::first_row(column) >= z.batch) break;
      for (int i = 0; i < items; ++i) {
        const auto it = item(column, i);
        kept(kDh, column, i) = state_gradient(a_.grad_h_n, it);
        if (Cell::kCellState) kept(kDc, column, i) = state_gradient(a_.grad_c_n, it);
        for (int q = 0; q < kFirst; ++q) Base::template put<kFirst>(q, i, narrow<T>(0.f));
      }
      if (z.steps > 0) Base::template send<kFirst>(0, Base::channel(column), Base::template route<kFirst>());
    }
  }

  // All steps, of which there are some: inputs reads a row in any case.
  template <class Launch, class Weights, class Late>
  FUSEDNN_DEVICE void steps(const Weights& weights, const Late& late) {
    constexpr bool kTwo = kSecond > 0;
    constexpr int kRounds = 1 + kTwo;
    typename Base::Route route = Base::template route<kFirst, Launch>();
    typename Base::Channel channel = Base::channel(0);
    const int columns = Launch::kBare ? 1 : z.columns;
    const int longest = Base::template steps_of<Launch>(0);
    const auto steps_of = [&](int column) { return Launch::kBare ? longest : Base::template steps_of<Launch>(column); };
    for (int step = 0; step <= steps_of(0); ++step) {
      for (int column = 0; column < columns; ++column) {
        const int steps = steps_of(column);
        if (step > steps || Base::first_row(column) >= z.batch) break;
        if (!Launch::kBare) {
          static_cast<Seat&>(*this) = Base::again(z);
          route = Base::template route<kFirst, Launch>();
          channel = Base::channel(column);
        }
        const int time = track < z.heads ? steps - 1 - step : step;
        const Step s{column, time, rows_before<Launch>(time)};
        const u32 n = static_cast<u32>(step) * kRounds;
        const auto in = inputs<Launch>(s, 0);
        Base::template multiply<Launch>(weights, n, channel, 0);
        if (step == steps) {
          if (items > 0) last<Launch>(s, in);
          continue;
        }
        if constexpr (kTwo) {
          if (items > 0) {
            const auto late_gates = first<Launch>(s, in);
            Base::template send<kSecond, Launch>(n + 1, channel, Base::template route<kSecond, Launch>());
            Base::write_last(late_gates, writer<kFirst, G>(s));
          }
          const auto in_second = inputs<Launch>(s, 0);
          Base::template multiply<Launch>(late, n + 1, channel, 1);
          if (items > 0) {
            const auto first_gates = second<Launch>(s, in_second);
            Base::template send<kFirst, Launch>(n + kRounds, channel, route);
            Base::write_last(first_gates, writer<0, kFirst>(s));
          }
        } else if (items > 0) {
          const auto gates = this->step<Launch>(s, in);
          Base::template send<kFirst, Launch>(n + kRounds, channel, route);
          Base::write_last(gates, writer<0, G>(s));
        }
      }
    }
  }

  FUSEDNN_DEVICE void end() const {
    for (int column = 0; column < z.columns; ++column) {
      for (int i = 0; i < items; ++i) {
        const auto it = item(column, i);
        if (it.length < 0) continue;
        static_cast<T*>(a_.d_h0)[Base::state_place(it)] = narrow<T>(kept(kDh, column, i));
        if (Cell::kCellState) static_cast<T*>(a_.d_c0)[Base::state_place(it)] = narrow<T>(kept(kDc, column, i));
      }
    }
  }

 private:
  using Item = typename Base::Item;

  // Any number of a time that the column has not.
  template <class Launch>
  FUSEDNN_DEVICE int rows_before(int time) const {
    const int within = time < 0 ? 0 : time < z.steps ? time : z.steps;
    return Base::template rows_before<Launch>(Launch::kPadded ? time : within);
  }

  // What forward left of the next items. h and h_prev where the cell uses them, else c_prev.
  template <class Launch>
  struct Inputs {
    struct {
      T grad_y, h, h_prev, c_prev, saved[S + 1];
      bool active : 1, passed : 1;  // takes this step; took the one that was handled before
    } item[Launch::kItems];
  };
  template <class Launch>
  FUSEDNN_DEVICE Inputs<Launch> inputs(const Step& s, int first) const {
    Inputs<Launch> in;
    const int onward = track < z.heads ? 1 : -1;  // in the time of forward
    const int before = s.time - onward, rows = rows_before<Launch>(before);
#pragma unroll
    for (int i = 0; i < Launch::kItems; ++i) {
      if (Launch::kBare ? items == 0 : first + i >= items) break;
      const auto it = Base::template item<Launch>(s.column, first + i);
      const int after = s.time + onward;
      auto& of = in.item[i];
      of.passed = after >= 0 && after < it.length;
      of.active = s.time >= 0 && s.time < it.length;
      const bool joined = before >= 0 && before < it.length, starts = of.active && !joined;
      const Item at = of.active ? it : Item{};  // any row serves one that is not active
      const int here = of.active ? s.rows : 0, there = of.active && joined ? rows : here;
      const T* saved = static_cast<const T*>(a_.saved);
      const T* states = Launch::kBare ? nullptr : static_cast<const T*>(a_.states);
      of.grad_y = a_.grad_y == nullptr ? narrow<T>(0.f) : static_cast<const T*>(a_.grad_y)[Base::place(at, here, 1)];
#pragma unroll
      for (int k = 0; k < S; ++k) of.saved[k] = saved[Base::place(at, here, S) + k * z.hidden];
      if constexpr (Cell::kCellState) {
        const T* c = states == nullptr ? saved + Cell::kSavedC * z.hidden : states;
        const T* c_there = c + Base::place(at, there, states == nullptr ? S : 1);
        of.c_prev = *(starts ? static_cast<const T*>(a_.c0) + Base::state_place(at) : c_there);
      } else {
        of.h = (states == nullptr ? static_cast<const T*>(a_.y) : states)[Base::place(at, here, 1)];
        const T* h_there = static_cast<const T*>(a_.y) + Base::place(at, there, 1);
        of.h_prev = *(starts ? static_cast<const T*>(a_.h0) + Base::state_place(at) : h_there);
      }
    }
    return in;
  }

  template <class Launch>
  FUSEDNN_DEVICE auto loader(const Step& s) const {
    return [this, s](int first) { return inputs<Launch>(s, first); };
  }

  // What a round leaves of an item: the gradients of gates [kBegin, kEnd), and of their recurrent parts.
  template <int kBegin, int kEnd>
  struct Output {
    T dx[kEnd - kBegin], dr[kEnd - kBegin];
    bool active;
  };
  template <int kBegin, int kEnd>
  FUSEDNN_DEVICE auto writer(const Step& s) const {
    return [this, s](const Output<kBegin, kEnd>& out, int i) {
      if (!out.active) return;
      const long to = Base::place(Base::item(s.column, i), s.rows, G);
#pragma unroll
      for (int q = kBegin; q < kEnd; ++q) {
        static_cast<T*>(a_.d_gates)[to + q * z.hidden] = out.dx[q - kBegin];
        if (Cell::kSplit) static_cast<T*>(a_.d_recurrent)[to + q * z.hidden] = out.dr[q - kBegin];
      }
    };
  }

  // Behind the product with the gradients of the step that was handled before, of a cell with one product.
  template <class Launch>
  FUSEDNN_DEVICE auto step(const Step& s, const Inputs<Launch>& now) {
    const auto body = [&](const auto& in, int i) {
      V dx[G] = {}, dr[G] = {};
      const Options of = options<Launch>(s, in, i);
      float dh = arrived<Launch>(s, in, i, of);
      if (in.active) {
        V saved[S + 1];
        float dc = Cell::kCellState ? kept(kDc, s.column, i) : 0.f;
        const float by_h = past(of.keeps_h, dh), by_c = past(of.keeps_c, dc);
        read(in.saved, saved);
        V dc_new = dc;
        const V h = widen(in.h), h_prev = widen(in.h_prev), c_prev = widen(in.c_prev);
        dh = static_cast<float>(cell_.backward(saved, h, h_prev, c_prev, V(dh), dc_new, dx, dr)) + by_h;
        if (Cell::kCellState) kept(kDc, s.column, i) = static_cast<float>(dc_new) + by_c;
      }
      kept(kDh, s.column, i) = dh;
      return put_gates<0, G>(in.active, i, dx, dr);
    };
    return Base::template finish<Launch>(now, loader<Launch>(s), body, writer<0, G>(s));
  }

  // The same of a cell with two products: the gradients of its last gates.
  template <class Launch>
  FUSEDNN_DEVICE auto first(const Step& s, const Inputs<Launch>& now) {
    const auto body = [&](const auto& in, int i) {
      V dx[G] = {}, dr[G] = {};
      const Options of = options<Launch>(s, in, i);
      float dh = kept(kDh, s.column, i) = arrived<Launch>(s, in, i, of);
      if (in.active) {
        V saved[S + 1];
        past(of.keeps_h, dh);
        read(in.saved, saved);
        cell_.backward_second(saved, V(widen(in.h_prev)), V(dh), dx, dr);
      }
      return put_gates<kFirst, G>(in.active, i, dx, dr);
    };
    return Base::template finish<Launch>(now, loader<Launch>(s), body, writer<kFirst, G>(s));
  }

  // Behind its other product: the gradients of the first gates.
  template <class Launch>
  FUSEDNN_DEVICE auto second(const Step& s, const Inputs<Launch>& now) {
    const auto body = [&](const auto& in, int i) {
      V dx[G] = {}, dr[G] = {};
      if (in.active) {
        const Options of = options<Launch>(s, in, i);
        V saved[S + 1];
        float dh = kept(kDh, s.column, i), passed[1];
        const float by_h = past(of.keeps_h, dh);
        Base::template gather<Launch>(i, passed);
        read(in.saved, saved);
        const V dm = of.factor * passed[0], h_prev = widen(in.h_prev);
        kept(kDh, s.column, i) = static_cast<float>(cell_.backward_first(saved, h_prev, V(dh), dm, dx, dr)) + by_h;
      }
      return put_gates<0, kFirst>(in.active, i, dx, dr);
    };
    return Base::template finish<Launch>(now, loader<Launch>(s), body, writer<0, kFirst>(s));
  }

  // Behind the product with the gradients of the first step: nothing but the gradient of h_0 is left.
  template <class Launch>
  FUSEDNN_DEVICE void last(const Step& s, const Inputs<Launch>& now) {
    struct Nothing {};
    const auto body = [&](const auto& in, int i) {
      kept(kDh, s.column, i) = arrived<Launch>(s, in, i, options<Launch>(s, in, i));
      return Nothing{};
    };
    Base::template finish<Launch>(now, loader<Launch>(s), body, [](Nothing, int) {});
  }

  FUSEDNN_DEVICE float state_gradient(const void* of, const Item& it) const {
    return it.length >= 0 && of != nullptr ? widen(static_cast<const T*>(of)[Base::state_place(it)]) : 0.f;
  }

  FUSEDNN_DEVICE static void read(const T* in, V* saved) {
#pragma unroll
    for (int k = 0; k < S; ++k) saved[k] = widen(in[k]);
  }

  // What multiplies the gradients that passed through W_hh, and the shares of the old states that an item keeps.
  struct Options {
    float factor = 1, keeps_h = 0, keeps_c = 0;
  };
  template <class Launch, class In>
  FUSEDNN_DEVICE Options options(const Step& s, const In& in, int i) const {
    Options of;
    if (!Launch::kBare && a_.asked.any) {
      const auto it = item(s.column, i);
      of.factor = Base::factor(a_.asked, it);
      if (in.active) of.keeps_h = Base::share(a_.asked, cells::kZoneoutH, it, s.time);
      if (in.active && Cell::kCellState) of.keeps_c = Base::share(a_.asked, cells::kZoneoutC, it, s.time);
    }
    return of;
  }

  // The part of a gradient that passes by the cell; the rest is left. With no share -0, which added changes no bit.
  FUSEDNN_DEVICE static float past(float share, float& gradient) {
    const float by = share > 0 ? share * gradient : -0.f;
    gradient *= 1 - share;
    return by;
  }

  // The whole gradient of an item's h.
  template <class Launch, class In>
  FUSEDNN_DEVICE float arrived(const Step& s, const In& in, int i, const Options& of) const {
    float dh = kept(kDh, s.column, i), passed[1];
    Base::template gather<Launch>(i, passed);
    if (in.passed) dh += of.factor * passed[0];
    return in.active ? dh + widen(in.grad_y) : dh;
  }

  // The gradients of gates [kBegin, kEnd), and in the next message those of their recurrent parts; zero where the row
  // takes no step.
  template <int kBegin, int kEnd>
  FUSEDNN_DEVICE Output<kBegin, kEnd> put_gates(bool active, int i, const V* dx, const V* dr) {
    Output<kBegin, kEnd> out;
    out.active = active;
#pragma unroll
    for (int q = kBegin; q < kEnd; ++q) {
      out.dx[q - kBegin] = narrow<T>(static_cast<float>(dx[q]));
      out.dr[q - kBegin] = narrow<T>(static_cast<float>(dr[q]));
      Base::template put<kEnd - kBegin>(q - kBegin, i, Stays<Form>::sent(out.dr[q - kBegin]));
    }
    return out;
  }

  const Cell& cell_;
  const PersistentBackward& a_;
};

template <class Cell, class Form>
__global__ void __launch_bounds__(32 * kMostWarps, 1)
    persistent_backward(const __grid_constant__ Cell cell, const __grid_constant__ Geometry z,
                        const __grid_constant__ PersistentBackward a) {
  using Backward = BackwardWalk<Cell, Form>;
  constexpr int kSecond = Backward::kSecond, kFirst = Backward::kFirst, kTwo = kSecond > 0, kRounds = 1 + kTwo;
  Backward walk(cell, z, a);
  walk.open();
  if (walk.rank >= z.blocks) return walk.close();
  Residence<Form, 1, kept_chunks<Form>(backward_registers(kRounds), 1, kRounds)> weights;
  Residence<Form, kTwo, kept_chunks<Form>(backward_registers(kRounds), kTwo, kRounds)> late;
  walk.load(weights, 0, walk.weights_of(0, kFirst));
  if constexpr (kTwo) walk.load(late, 1, walk.weights_of(kFirst, kSecond));
  walk.begin();
  if (z.steps > 0) walk.choose(a.asked, [&](auto launch) { walk.template steps<decltype(launch)>(weights, late); });
  walk.end();
  walk.close();
}

}  // namespace fusednn::cuda
