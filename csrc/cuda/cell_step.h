// The pointwise part of a step, for one unit of one row: what comes behind the recurrent product, whatever made it.
#pragma once

#include "cuda/device_cell.h"
#include "cuda/primitives/numbers.h"
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
};

template <class Cell, class Io>
struct ForwardCell {
  using A = typename Io::A;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;

  const Cell& cell;
  const Io& io;
  const Sizes& z;
  const ForwardStep& s;

  // products: W h of the first gates, of unit u of row b.
  FUSEDNN_DEVICE void first(long b, int u, const A* products) const {
    A x[G], rec[G], saved[S + 1];
    read(b, u, 0, kFirst, products, x, rec);
    const A h = Cell::kCellState ? A(0) : io.load(s.h, b * z.proj + u);
    if constexpr (kSecond > 0) {
      io.store(s.middle, b * z.hidden + u, cell.forward_first(x, rec, h, saved));
      for (int k = 0; k < S; ++k) kept(b, u)[k * z.hidden] = saved[k];
    } else {
      A c = Cell::kCellState ? static_cast<A*>(s.c)[b * z.hidden + u] : A(0);
      const A next = cell.forward(x, rec, h, c, saved);
      if (Cell::kCellState) {
        static_cast<A*>(s.c)[b * z.hidden + u] = c;
        io.store(s.c_n, b * z.hidden + u, c);
      }
      save(b, u, saved);
      if (s.middle != nullptr) {
        io.store(s.middle, b * z.hidden + u, next);
      } else {
        put(b, u, next);
      }
    }
  }

  // products: W of the last gates times what the first ones gave.
  FUSEDNN_DEVICE void second(long b, int u, const A* products) const {
    if constexpr (kSecond > 0) {
      A x[G], rec[G], saved[S + 1];
      read(b, u, kFirst, G, products, x, rec);
      for (int k = 0; k < S; ++k) saved[k] = kept(b, u)[k * z.hidden];
      const A next = cell.forward_second(x, rec, io.load(s.h, b * z.proj + u), saved);
      save(b, u, saved);
      put(b, u, next);
    }
  }

  FUSEDNN_DEVICE void put(long b, int u, A h) const {
    io.store(s.y, b * z.directions * z.proj + u, h);
    io.store(s.h_next, b * z.proj + u, h);
    if (s.h_n != nullptr) io.store(s.h_n, b * z.proj + u, h);
  }

 private:
  FUSEDNN_DEVICE void read(long b, int u, int begin, int end, const A* products, A* x, A* rec) const {
    for (int g = 0; g < G; ++g) {
      if (g < begin || g >= end) continue;
      x[g] = io.load(s.gates, (b * z.directions * G + g) * z.hidden + u);
      rec[g] = products[g - begin] + (s.b_hh == nullptr ? A(0) : io.load(s.b_hh, g * z.hidden + u));
    }
  }
  FUSEDNN_DEVICE A* kept(long b, int u) const { return static_cast<A*>(s.kept) + b * S * z.hidden + u; }
  FUSEDNN_DEVICE void save(long b, int u, const A* saved) const {
    if (s.saved == nullptr) return;
    for (int k = 0; k < S; ++k) io.store(s.saved, (b * z.directions * S + k) * z.hidden + u, saved[k]);
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

  // The whole gradient of h_t; product: what passed through W_hh. False: the row has no part in this step, and what
  // passed is kept for the end.
  FUSEDNN_DEVICE bool arrive(long b, int u, A product, A& dh) const {
    A& carried = static_cast<A*>(s.dh)[b * z.proj + u];
    dh = carried + (b < s.before ? product : A(0));
    if (b >= s.count) {
      carried = dh;
      return false;
    }
    if (s.grad_y != nullptr) dh += io.load(s.grad_y, b * z.directions * z.proj + u);
    return true;
  }

  // dh: the whole gradient of the cell's output.
  FUSEDNN_DEVICE void first(long b, int u, A dh) const {
    A dx[G], dr[G], saved[S + 1];
    read_saved(b, u, saved);
    if constexpr (kSecond > 0) {
      cell.backward_second(saved, h_prev(b, u), dh, dx, dr);
      write(b, u, kFirst, G, dx, dr);
      static_cast<A*>(s.dh)[b * z.proj + u] = dh;
    } else {
      const A h = Cell::kCellState ? A(0) : io.load(s.y, b * z.directions * z.proj + u);
      const A before = Cell::kCellState ? A(0) : h_prev(b, u);
      A dc = Cell::kCellState ? static_cast<A*>(s.dc)[b * z.hidden + u] : A(0);
      const A direct = cell.backward(saved, h, before, Cell::kCellState ? c_prev(b, u) : A(0), dh, dc, dx, dr);
      if (Cell::kCellState) static_cast<A*>(s.dc)[b * z.hidden + u] = dc;
      write(b, u, 0, G, dx, dr);
      if (s.d_proj == nullptr) static_cast<A*>(s.dh)[b * z.proj + u] = direct;
    }
  }

  // dm: gradient of what the last gates multiplied.
  FUSEDNN_DEVICE void second(long b, int u, A dm) const {
    if constexpr (kSecond > 0) {
      A dx[G], dr[G], saved[S + 1];
      read_saved(b, u, saved);
      A& dh = static_cast<A*>(s.dh)[b * z.proj + u];
      dh = cell.backward_first(saved, h_prev(b, u), dh, dm, dx, dr);
      write(b, u, 0, kFirst, dx, dr);
    }
  }

 private:
  FUSEDNN_DEVICE void read_saved(long b, int u, A* saved) const {
    for (int k = 0; k < S; ++k) saved[k] = io.load(s.saved, (b * z.directions * S + k) * z.hidden + u);
  }
  FUSEDNN_DEVICE A h_prev(long b, int u) const {
    return b < s.joined ? io.load(s.y_prev, b * z.directions * z.proj + u) : io.load(s.h0, b * z.proj + u);
  }
  FUSEDNN_DEVICE A c_prev(long b, int u) const {
    return b < s.joined ? io.load(s.saved_prev, (b * z.directions * S + Cell::kSavedC) * z.hidden + u)
                        : io.load(s.c0, b * z.hidden + u);
  }
  FUSEDNN_DEVICE void write(long b, int u, int begin, int end, const A* dx, const A* dr) const {
    for (int g = 0; g < G; ++g) {
      if (g < begin || g >= end) continue;
      const long at = (b * z.directions * G + g) * z.hidden + u;
      io.store(s.d_gates, at, dx[g]);
      if (Cell::kSplit) io.store(s.d_recurrent, at, dr[g]);
    }
  }
};

}  // namespace fusednn::cuda
