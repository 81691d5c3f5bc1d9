// The recurrence as plain loops over doubles, one unit after the other: what the kernels are compared with. It shares
// with them the cells' equations, which test_cells.cpp checks by finite differences, and nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "cells/registry.h"

namespace fusednn::testing {

using Values = std::vector<double>;

struct Problem {
  long batch, steps, hidden, proj, directions;
  std::vector<int64_t> batch_sizes;  // empty: padded
  bool bias, projection;
  bool library_gemm = false;  // gives the provider one, for single steps
  long inputs = 0;            // I > 0: the provider gets x, w_ih and b_ih, and the gates are what they make
  Values x, w_ih, b_ih;
  Values gates, h0, c0, w_hh, b_hh, w_hr;
  Values grad_y, grad_h_n, grad_c_n;

  long count(long t) const { return batch_sizes.empty() ? batch : batch_sizes[static_cast<size_t>(t)]; }
  long rows() const {
    long n = 0;
    for (long t = 0; t < steps; ++t) n += count(t);
    return n;
  }
  long offset(long t) const {
    long n = 0;
    for (long s = 0; s < t; ++s) n += count(s);
    return n;
  }
};

struct Outputs {
  Values y, h_n, c_n, saved;
};

struct Gradients {
  Values d_gates, d_recurrent, d_h0, d_c0, d_proj;
};

// The element type in which a state is kept between steps: identity for fp64 and fp32, else rounding to the dtype.
using Rounding = double (*)(double);

template <class Cell>
class Naive {
 public:
  Naive(const Problem& problem, Rounding rounding) : p(problem), round(rounding) {
    const size_t n = static_cast<size_t>(p.rows() * p.directions);
    const size_t units = static_cast<size_t>(p.hidden);
    out.y.resize(n * static_cast<size_t>(p.proj));
    out.saved.resize(n * Cell::S * units);
    out.h_n = p.h0, out.c_n = p.c0;
    grad.d_gates.resize(n * Cell::G * units);
    grad.d_recurrent.resize(n * Cell::G * units);
    grad.d_proj.resize(n * static_cast<size_t>(p.proj));
    grad.d_h0 = p.grad_h_n, grad.d_c0 = p.grad_c_n;
  }

  Outputs forward() {
    for (long d = 0; d < p.directions; ++d) {
      for (long b = 0; b < p.batch; ++b) {
        for (long t : steps_of(d, b)) step(d, t, b);
      }
    }
    return out;
  }

  Gradients backward() {
    forward();
    for (long d = 0; d < p.directions; ++d) {
      for (long b = 0; b < p.batch; ++b) {
        const std::vector<long> order = steps_of(d, b);
        for (size_t i = order.size(); i-- > 0;) back_step(d, order[i], i == 0 ? -1 : order[i - 1], b);
      }
    }
    return grad;
  }

 private:
  static constexpr int G = Cell::G, S = Cell::S, kFirst = G - Cell::kSecondGates;

  std::vector<long> steps_of(long d, long b) const {
    std::vector<long> order;
    for (long s = 0; s < p.steps; ++s) {
      const long t = d == 0 ? s : p.steps - 1 - s;
      if (b < p.count(t)) order.push_back(t);
    }
    return order;
  }

  double* row(Values& tensor, long d, long t, long b, long size) const {
    return tensor.data() + ((p.offset(t) + b) * p.directions + d) * size;
  }
  const double* row(const Values& tensor, long d, long t, long b, long size) const {
    return tensor.data() + ((p.offset(t) + b) * p.directions + d) * size;
  }
  template <class V>
  auto state(V& tensor, long d, long b, long size) const {
    return tensor.data() + (d * p.batch + b) * size;
  }

  // b + W v of gate g, unit u.
  double recurrent(long d, int g, long u, const double* v, long size) const {
    const long line = (d * G + g) * p.hidden + u;
    double sum = p.bias ? p.b_hh[static_cast<size_t>(line)] : 0;
    for (long k = 0; k < size; ++k) sum += p.w_hh[static_cast<size_t>(line * size + k)] * v[k];
    return sum;
  }

  void step(long d, long t, long b) {
    double* h_state = state(out.h_n, d, b, p.proj);
    const Values h(h_state, h_state + p.proj);
    double* c_state = Cell::kCellState ? state(out.c_n, d, b, p.hidden) : nullptr;
    const double* x_row = row(p.gates, d, t, b, G * p.hidden);
    const size_t units = static_cast<size_t>(p.hidden);
    Values next(units), middle(units), kept(units * (S + 1));
    for (long u = 0; u < p.hidden; ++u) {
      double x[G], rec[G], c = Cell::kCellState ? c_state[u] : 0;
      double* saved = kept.data() + u * (S + 1);
      for (int g = 0; g < G; ++g) x[g] = x_row[g * p.hidden + u];
      for (int g = 0; g < kFirst; ++g) rec[g] = recurrent(d, g, u, h.data(), p.proj);
      if constexpr (Cell::kSecondGates > 0) {
        middle[static_cast<size_t>(u)] = Cell::forward_first(x, rec, h[static_cast<size_t>(u)], saved);
      } else {
        const double h_prev = Cell::kCellState ? 0 : h[static_cast<size_t>(u)];
        next[static_cast<size_t>(u)] = Cell::forward(x, rec, h_prev, c, saved);
        if (Cell::kCellState) c_state[u] = c;
      }
    }
    if constexpr (Cell::kSecondGates > 0) {
      for (long u = 0; u < p.hidden; ++u) {
        double x[G], rec[G];
        for (int g = kFirst; g < G; ++g) {
          x[g] = x_row[g * p.hidden + u];
          rec[g] = recurrent(d, g, u, middle.data(), p.hidden);
        }
        next[static_cast<size_t>(u)] =
            Cell::forward_second(x, rec, h[static_cast<size_t>(u)], kept.data() + u * (S + 1));
      }
    }
    if (p.projection) next = project(d, next);
    for (long u = 0; u < p.proj; ++u) row(out.y, d, t, b, p.proj)[u] = h_state[u] = round(next[static_cast<size_t>(u)]);
    for (long u = 0; u < p.hidden; ++u) {
      for (int k = 0; k < S; ++k)
        row(out.saved, d, t, b, S * p.hidden)[k * p.hidden + u] = kept[static_cast<size_t>(u * (S + 1) + k)];
    }
  }

  Values project(long d, const Values& m) const {
    Values h(static_cast<size_t>(p.proj));
    for (long i = 0; i < p.proj; ++i) {
      for (long u = 0; u < p.hidden; ++u) {
        h[static_cast<size_t>(i)] +=
            p.w_hr[static_cast<size_t>((d * p.proj + i) * p.hidden + u)] * m[static_cast<size_t>(u)];
      }
    }
    return h;
  }

  void back_step(long d, long t, long prev, long b) {
    double* dh_state = state(grad.d_h0, d, b, p.proj);
    double* dc_state = Cell::kCellState ? state(grad.d_c0, d, b, p.hidden) : nullptr;
    Values dh(dh_state, dh_state + p.proj);
    for (long i = 0; i < p.proj; ++i) dh[static_cast<size_t>(i)] += row(p.grad_y, d, t, b, p.proj)[i];
    if (p.projection) {
      for (long i = 0; i < p.proj; ++i) row(grad.d_proj, d, t, b, p.proj)[i] = dh[static_cast<size_t>(i)];
      Values dm(static_cast<size_t>(p.hidden));
      for (long i = 0; i < p.proj; ++i) {
        for (long u = 0; u < p.hidden; ++u) {
          dm[static_cast<size_t>(u)] +=
              p.w_hr[static_cast<size_t>((d * p.proj + i) * p.hidden + u)] * dh[static_cast<size_t>(i)];
        }
      }
      dh = dm;
    }
    const double* h_prev_row = prev < 0 ? state(p.h0, d, b, p.proj) : row(out.y, d, prev, b, p.proj);
    const size_t width = static_cast<size_t>(G * p.hidden);
    Values dx(width), dr(width), direct(static_cast<size_t>(p.hidden)), dm(static_cast<size_t>(p.hidden));
    double x1[G], r1[G];
    auto load_saved = [&](long u, double* saved) {
      for (int k = 0; k < S; ++k) saved[k] = row(out.saved, d, t, b, S * p.hidden)[k * p.hidden + u];
    };
    auto put = [&](long u, int from, int to) {
      for (int g = from; g < to; ++g) {
        dx[static_cast<size_t>(g * p.hidden + u)] = x1[g];
        dr[static_cast<size_t>(g * p.hidden + u)] = r1[g];
      }
    };
    auto weight = [&](int g, long u, long k) {
      return p.w_hh[static_cast<size_t>(((d * G + g) * p.hidden + u) * p.proj + k)];
    };
    double saved[S + 1];
    if constexpr (Cell::kSecondGates > 0) {
      for (long u = 0; u < p.hidden; ++u) {
        load_saved(u, saved);
        Cell::backward_second(saved, h_prev_row[u], dh[static_cast<size_t>(u)], x1, r1);
        put(u, kFirst, G);
      }
      for (int g = kFirst; g < G; ++g) {
        for (long u = 0; u < p.hidden; ++u) {
          for (long k = 0; k < p.hidden; ++k)
            dm[static_cast<size_t>(k)] += weight(g, u, k) * dr[static_cast<size_t>(g * p.hidden + u)];
        }
      }
      for (long u = 0; u < p.hidden; ++u) {
        load_saved(u, saved);
        direct[static_cast<size_t>(u)] =
            Cell::backward_first(saved, h_prev_row[u], dh[static_cast<size_t>(u)], dm[static_cast<size_t>(u)], x1, r1);
        put(u, 0, kFirst);
      }
    } else {
      for (long u = 0; u < p.hidden; ++u) {
        load_saved(u, saved);
        const double h = p.projection ? 0 : row(out.y, d, t, b, p.proj)[u], h_prev = p.projection ? 0 : h_prev_row[u];
        double c_prev = 0, dc = 0;
        if (Cell::kCellState) {
          c_prev = prev < 0 ? state(p.c0, d, b, p.hidden)[u]
                            : row(out.saved, d, prev, b, S * p.hidden)[Cell::kSavedC * p.hidden + u];
          dc = dc_state[u];
        }
        direct[static_cast<size_t>(u)] =
            Cell::backward(saved, h, h_prev, c_prev, dh[static_cast<size_t>(u)], dc, x1, r1);
        if (Cell::kCellState) dc_state[u] = dc;
        put(u, 0, G);
      }
    }
    for (long k = 0; k < p.proj; ++k) {
      double sum = p.projection ? 0 : direct[static_cast<size_t>(k)];
      for (int g = 0; g < kFirst; ++g) {
        for (long u = 0; u < p.hidden; ++u) sum += weight(g, u, k) * dr[static_cast<size_t>(g * p.hidden + u)];
      }
      dh_state[k] = sum;
    }
    for (size_t j = 0; j < width; ++j) {
      row(grad.d_gates, d, t, b, G * p.hidden)[j] = dx[j];
      row(grad.d_recurrent, d, t, b, G * p.hidden)[j] = dr[j];
    }
  }

  const Problem& p;
  Rounding round;
  Outputs out;
  Gradients grad;
};

}  // namespace fusednn::testing
