// The pointwise part of a step, for one unit of one row: what comes behind the recurrent product, whatever made it.
#pragma once

#include "cuda/approximate.h"
#include "cuda/device_cell.h"
#include "cuda/steps.h"

namespace fusednn::cuda {

// Rows that a backward step touches: its own, and those whose gradient arrives from the step handled before.
FUSEDNN_HD int rows_reached(const BackwardStep& s) {
  return s.count > s.before ? s.count : s.before;
}

// How tensors of a dtype are read and written: known when the kernel is compiled, or only when it runs.
template <class T>
struct Stored {
  using A = AccOf<T>;
  FUSEDNN_DEVICE A load(const void* p, long i) const { return widen(static_cast<const T*>(p)[i]); }
  FUSEDNN_DEVICE void store(void* p, long i, A x) const { static_cast<T*>(p)[i] = narrow<T>(x); }
  // body(a value of the type that the cell computes with)
  template <class Body>
  FUSEDNN_DEVICE void compute(Body body) const {
    body(ComputedOf<T>{});
  }
};

template <class Acc>
struct AnyStored;
template <>
struct AnyStored<double> : Stored<double> {
  explicit AnyStored(Dtype) {}
};
template <>
struct AnyStored<float> {
  using A = float;
  Dtype dtype;

  explicit AnyStored(Dtype d) : dtype(d) {}
  FUSEDNN_DEVICE float load(const void* p, long i) const {
    if (dtype == Dtype::kFloat32) return Stored<float>().load(p, i);
    return dtype == Dtype::kBFloat16 ? Stored<BFloat16>().load(p, i) : Stored<Float16>().load(p, i);
  }
  FUSEDNN_DEVICE void store(void* p, long i, float x) const {
    if (dtype == Dtype::kFloat32) return Stored<float>().store(p, i, x);
    if (dtype == Dtype::kBFloat16) return Stored<BFloat16>().store(p, i, x);
    Stored<Float16>().store(p, i, x);
  }
  template <class Body>
  FUSEDNN_DEVICE void compute(Body body) const {
    if (dtype == Dtype::kFloat32) return body(float{});
    body(Approximate{});
  }
};

// Elements of one head of one direction.
struct Index {
  const Sizes& z;
  int batch, head;

  // Of a tensor [., D, values, size]: row b, its k-th value.
  FUSEDNN_DEVICE long row(long b, int values, int k, int size, int u) const {
    return ((b * z.tracks + head) * values + k) * size + u;
  }
  // Of a state [N, B, size].
  FUSEDNN_DEVICE long state(long b, int size, int u) const { return (static_cast<long>(head) * batch + b) * size + u; }
};

template <class Cell, class Io>
struct ForwardCell {
  using A = typename Io::A;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;

  const Cell& cell;
  const Io& io;
  const Sizes& z;
  const ForwardStep& s;
  const Index at;

  // products: W h of the first gates, of unit u of row b.
  FUSEDNN_DEVICE void first(long b, int u, const A* products) const {
    io.compute([&](auto value) { first_as<decltype(value)>(b, u, products); });
  }

  // products: W of the last gates times what the first ones gave.
  FUSEDNN_DEVICE void second(long b, int u, const A* products) const {
    io.compute([&](auto value) { second_as<decltype(value)>(b, u, products); });
  }

  FUSEDNN_DEVICE void put(long b, int u, A h) const {
    const long state = at.state(b, z.proj, u);
    if (s.h_states != nullptr) io.store(s.h_states, at.row(b, 1, 0, z.hidden, u), h);
    if (s.zoneout.h > 0) h = mixed(s.zoneout.share<A>(cells::kZoneoutH, at.head, b, u), io.load(s.h, state), h);
    io.store(s.y, at.row(b, 1, 0, z.proj, u), h);
    io.store(s.h_next, state, h);
    if (s.h_n != nullptr) io.store(s.h_n, state, h);
    if (s.factor_next != nullptr) io.store(s.factor_next, state, io.load(s.h_next, state) * mask(b, u));
  }

 private:
  template <class V>
  FUSEDNN_DEVICE void first_as(long b, int u, const A* products) const {
    V x[G], rec[G], saved[S + 1];
    read(b, u, 0, kFirst, products, x, rec);
    const V h = Cell::kCellState ? A(0) : io.load(s.h, at.state(b, z.proj, u));
    if constexpr (kSecond > 0) {
      const A middle = static_cast<A>(cell.forward_first(x, rec, h, saved));
      io.store(s.middle, at.state(b, z.hidden, u), s.mask == nullptr ? middle : middle * mask(b, u));
      for (int k = 0; k < S; ++k) kept(b, u)[k * z.hidden] = static_cast<A>(saved[k]);
    } else {
      const A before = Cell::kCellState ? static_cast<A*>(s.c)[at.state(b, z.hidden, u)] : A(0);
      V c_new = before;
      const A next = static_cast<A>(cell.forward(x, rec, h, c_new, saved));
      A c = static_cast<A>(c_new);
      if (Cell::kCellState) {
        if (s.zoneout.c > 0) c = mixed(s.zoneout.share<A>(cells::kZoneoutC, at.head, b, u), before, c);
        static_cast<A*>(s.c)[at.state(b, z.hidden, u)] = c;
        io.store(s.c_n, at.state(b, z.hidden, u), c);
        if (s.c_states != nullptr) io.store(s.c_states, at.row(b, 1, 0, z.hidden, u), c);
      }
      save(b, u, saved);
      if (s.middle != nullptr) {
        io.store(s.middle, at.state(b, z.hidden, u), next);
      } else {
        put(b, u, next);
      }
    }
  }

  template <class V>
  FUSEDNN_DEVICE void second_as(long b, int u, const A* products) const {
    if constexpr (kSecond > 0) {
      V x[G], rec[G], saved[S + 1];
      read(b, u, kFirst, G, products, x, rec);
      for (int k = 0; k < S; ++k) saved[k] = kept(b, u)[k * z.hidden];
      const V h = io.load(s.h, at.state(b, z.proj, u));
      const A next = static_cast<A>(cell.forward_second(x, rec, h, saved));
      save(b, u, saved);
      put(b, u, next);
    }
  }

  FUSEDNN_DEVICE A mask(long b, int u) const { return io.load(s.mask, at.state(b, z.proj, u)); }
  template <class V>
  FUSEDNN_DEVICE void read(long b, int u, int begin, int end, const A* products, V* x, V* rec) const {
    for (int g = 0; g < G; ++g) {
      if (g < begin || g >= end) continue;
      x[g] = io.load(s.gates, at.row(b, G, g, z.hidden, u));
      rec[g] = products[g - begin] +
               (s.b_hh == nullptr ? A(0) : io.load(s.b_hh, static_cast<long>(at.head * G + g) * z.hidden + u));
    }
  }
  FUSEDNN_DEVICE A* kept(long b, int u) const { return static_cast<A*>(s.kept) + at.state(b, S * z.hidden, u); }
  template <class V>
  FUSEDNN_DEVICE void save(long b, int u, const V* saved) const {
    if (s.saved == nullptr) return;
    for (int k = 0; k < S; ++k) io.store(s.saved, at.row(b, S, k, z.hidden, u), static_cast<A>(saved[k]));
  }
};

template <class Cell, class Io>
struct BackwardCell {
  using A = typename Io::A;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;

  const Cell& cell;
  const Io& io;
  const Sizes& z;
  const BackwardStep& s;
  const Index at;

  // The whole gradient of what the cell gave as h_t; product: what passed through W_hh. False: the row has no part in
  // this step, and what passed is kept for the end.
  FUSEDNN_DEVICE bool arrive(long b, int u, A product, A& dh) const {
    const long state = at.state(b, z.proj, u);
    A& carried = static_cast<A*>(s.dh)[state];
    if (s.mask != nullptr) product *= io.load(s.mask, state);
    dh = carried + (b < s.before ? product : A(0));
    if (b >= s.count) {
      carried = dh;
      return false;
    }
    if (s.grad_y != nullptr) dh += io.load(s.grad_y, at.row(b, 1, 0, z.proj, u));
    if (s.kept_h != nullptr) {
      const A share = s.zoneout.share<A>(cells::kZoneoutH, at.head, b, u);
      static_cast<A*>(s.kept_h)[state] = share * dh;
      dh *= A(1) - share;
    }
    return true;
  }

  // What goes on to the step before beside what passes through W_hh.
  FUSEDNN_DEVICE void leave(long b, int u, A direct) const {
    const long state = at.state(b, z.proj, u);
    static_cast<A*>(s.dh)[state] = s.kept_h == nullptr ? direct : direct + static_cast<A*>(s.kept_h)[state];
  }

  // dh: the whole gradient of the cell's output.
  FUSEDNN_DEVICE void first(long b, int u, A dh) const {
    io.compute([&](auto value) { first_as<decltype(value)>(b, u, dh); });
  }

  // dm: gradient of what the last gates multiplied.
  FUSEDNN_DEVICE void second(long b, int u, A dm) const {
    io.compute([&](auto value) { second_as<decltype(value)>(b, u, dm); });
  }

 private:
  template <class V>
  FUSEDNN_DEVICE void first_as(long b, int u, A dh) const {
    V dx[G], dr[G], saved[S + 1];
    read_saved(b, u, saved);
    if constexpr (kSecond > 0) {
      cell.backward_second(saved, V(h_prev(b, u)), V(dh), dx, dr);
      write(b, u, kFirst, G, dx, dr);
      static_cast<A*>(s.dh)[at.state(b, z.proj, u)] = dh;
    } else {
      const V h = Cell::kCellState ? A(0) : io.load(s.y, at.row(b, 1, 0, z.proj, u));
      const V before = Cell::kCellState ? A(0) : h_prev(b, u);
      A dc = Cell::kCellState ? static_cast<A*>(s.dc)[at.state(b, z.hidden, u)] : A(0), kept_c = 0;
      if (Cell::kCellState && s.zoneout.c > 0) {
        kept_c = dc * s.zoneout.share<A>(cells::kZoneoutC, at.head, b, u);
        dc -= kept_c;
      }
      const V c = Cell::kCellState ? c_prev(b, u) : A(0);
      V dc_new = dc;
      const A direct = static_cast<A>(cell.backward(saved, h, before, c, V(dh), dc_new, dx, dr));
      if (Cell::kCellState) static_cast<A*>(s.dc)[at.state(b, z.hidden, u)] = static_cast<A>(dc_new) + kept_c;
      write(b, u, 0, G, dx, dr);
      if (s.d_proj == nullptr) leave(b, u, direct);
    }
  }

  template <class V>
  FUSEDNN_DEVICE void second_as(long b, int u, A dm) const {
    if constexpr (kSecond > 0) {
      V dx[G], dr[G], saved[S + 1];
      read_saved(b, u, saved);
      if (s.mask != nullptr) dm *= io.load(s.mask, at.state(b, z.proj, u));
      const V dh = static_cast<A*>(s.dh)[at.state(b, z.proj, u)];
      leave(b, u, static_cast<A>(cell.backward_first(saved, V(h_prev(b, u)), dh, V(dm), dx, dr)));
      write(b, u, 0, kFirst, dx, dr);
    }
  }

  template <class V>
  FUSEDNN_DEVICE void read_saved(long b, int u, V* saved) const {
    for (int k = 0; k < S; ++k) saved[k] = io.load(s.saved, at.row(b, S, k, z.hidden, u));
  }
  FUSEDNN_DEVICE A h_prev(long b, int u) const {
    return b < s.joined ? io.load(s.y_prev, at.row(b, 1, 0, z.proj, u)) : io.load(s.h0, at.state(b, z.proj, u));
  }
  FUSEDNN_DEVICE A c_prev(long b, int u) const {
    if (b >= s.joined) return io.load(s.c0, at.state(b, z.hidden, u));
    if (s.c_prev != nullptr) return io.load(s.c_prev, at.row(b, 1, 0, z.hidden, u));
    return io.load(s.saved_prev, at.row(b, S, Cell::kSavedC, z.hidden, u));
  }
  template <class V>
  FUSEDNN_DEVICE void write(long b, int u, int begin, int end, const V* dx, const V* dr) const {
    for (int g = 0; g < G; ++g) {
      if (g < begin || g >= end) continue;
      const long gate = at.row(b, G, g, z.hidden, u);
      io.store(s.d_gates, gate, static_cast<A>(dx[g]));
      if (Cell::kSplit) io.store(s.d_recurrent, gate, static_cast<A>(dr[g]));
    }
  }
};

}  // namespace fusednn::cuda
