// The recurrence as plain loops over doubles, one unit after the other: what the kernels are compared with. It shares
// with them the cells' equations, which test_cells.cpp checks by finite differences, and nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "api.h"
#include "cells/registry.h"
#include "cells/zoneout.h"

namespace fusednn::testing {

using Values = std::vector<double>;

struct Problem {
  long batch, steps, hidden, proj, directions;  // with heads: all of them, those of the first direction first
  std::vector<int64_t> batch_sizes;             // empty: padded
  bool bias, projection;
  bool library_gemm = false;  // gives the provider one, for single steps
  bool from_zero = false;     // gives the provider no h0 and c0
  long inputs = 0;            // I > 0: the provider gets x, w_ih and b_ih, and the gates are what they make
  Values x, w_ih, b_ih;
  Values gates, h0, c0, w_hh, b_hh, w_hr;
  Values grad_y, grad_h_n, grad_c_n;
  long heads = 1;
  Values mask, norm;  // [D, B, P], [D, G*H]; empty: none
  double zoneout_h = 0, zoneout_c = 0;
  std::vector<int64_t> seeds;  // of zoneout, one a direction; empty: the expectation
  std::vector<Problem> above;  // layers that take y of the one below, in the same call

  bool zones() const { return zoneout_h > 0 || zoneout_c > 0; }
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

// With layers: those of all, one after the other.
struct Outputs {
  Values y, h_n, c_n, saved;
  Values states;        // with zoneout
  Values normed, rstd;  // with layer norm; of the naive loops alone
};

struct Gradients {
  Values d_gates, d_recurrent, d_h0, d_c0, d_proj;
  Values d_products;  // with layer norm
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
    if (p.zones()) out.states.resize(n * units);
    if (!p.norm.empty()) {
      out.normed.resize(n * Cell::G * units), out.rstd.resize(n * kProducts);
      grad.d_products.resize(n * Cell::G * units);
    }
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
  static constexpr int kProducts = Cell::kSecondGates > 0 ? 2 : 1;

  std::vector<long> steps_of(long d, long b) const {
    std::vector<long> order;
    for (long s = 0; s < p.steps; ++s) {
      const long t = d < p.heads ? s : p.steps - 1 - s;
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

  // The recurrent part of gates [from, to), [to - from, H]: b + W v, or with layer norm b + gain LN(W v).
  Values recurrent(long d, long t, long b, int from, int to, const Values& v) {
    const long size = static_cast<long>(v.size()), lines = (to - from) * p.hidden, first = (d * G + from) * p.hidden;
    Values sums(static_cast<size_t>(lines));
    for (long i = 0; i < lines; ++i) {
      for (long k = 0; k < size; ++k) {
        sums[static_cast<size_t>(i)] += p.w_hh[static_cast<size_t>((first + i) * size + k)] * v[static_cast<size_t>(k)];
      }
    }
    if (!p.norm.empty()) {
      double mean = 0, variance = 0;
      for (double x : sums) mean += x / static_cast<double>(lines);
      for (double x : sums) variance += (x - mean) * (x - mean) / static_cast<double>(lines);
      const double rstd = 1 / std::sqrt(variance + kNormEps);
      row(out.rstd, d, t, b, kProducts)[from > 0] = rstd;
      for (long i = 0; i < lines; ++i) {
        double& x = sums[static_cast<size_t>(i)];
        x = row(out.normed, d, t, b, G * p.hidden)[from * p.hidden + i] = (x - mean) * rstd;
        x *= p.norm[static_cast<size_t>(first + i)];
      }
    }
    for (long i = 0; i < lines && p.bias; ++i) {
      sums[static_cast<size_t>(i)] += p.b_hh[static_cast<size_t>(first + i)];
    }
    return sums;
  }

  void mask(long d, long b, Values& v) const {
    if (p.mask.empty()) return;
    for (long u = 0; u < p.proj; ++u) {
      v[static_cast<size_t>(u)] *= p.mask[static_cast<size_t>((d * p.batch + b) * p.proj + u)];
    }
  }

  // How much of its old state a unit keeps.
  double kept(cells::ZoneoutState which, long d, long t, long b, long u) const {
    const double probability = which == cells::kZoneoutH ? p.zoneout_h : p.zoneout_c;
    if (p.seeds.empty() || probability == 0) return probability;
    const cells::Words drawn = cells::zoneout_words(p.seeds[static_cast<size_t>(d / p.heads)],
                                                    cells::zoneout_stream(d % p.heads, which), t, b, u);
    return drawn.word[u % 4] < cells::limit_of(probability) ? 1 : 0;
  }

  void step(long d, long t, long b) {
    double* h_state = state(out.h_n, d, b, p.proj);
    const Values h(h_state, h_state + p.proj);
    double* c_state = Cell::kCellState ? state(out.c_n, d, b, p.hidden) : nullptr;
    const double* x_row = row(p.gates, d, t, b, G * p.hidden);
    const size_t units = static_cast<size_t>(p.hidden);
    Values next(units), middle(units), values(units * (S + 1)), factor = h;
    mask(d, b, factor);
    const Values first = recurrent(d, t, b, 0, kFirst, factor);
    for (long u = 0; u < p.hidden; ++u) {
      double x[G], rec[G], c = Cell::kCellState ? c_state[u] : 0;
      double* saved = values.data() + u * (S + 1);
      for (int g = 0; g < G; ++g) x[g] = x_row[g * p.hidden + u];
      for (int g = 0; g < kFirst; ++g) rec[g] = first[static_cast<size_t>(g * p.hidden + u)];
      if constexpr (Cell::kSecondGates > 0) {
        middle[static_cast<size_t>(u)] = Cell::forward_first(x, rec, h[static_cast<size_t>(u)], saved);
      } else {
        const double h_prev = Cell::kCellState ? 0 : h[static_cast<size_t>(u)];
        next[static_cast<size_t>(u)] = Cell::forward(x, rec, h_prev, c, saved);
        if (Cell::kCellState) {
          const double k = kept(cells::kZoneoutC, d, t, b, u);
          c_state[u] = k * c_state[u] + (1 - k) * c;
          if (p.zones()) row(out.states, d, t, b, p.hidden)[u] = c_state[u];
        }
      }
    }
    if constexpr (Cell::kSecondGates > 0) {
      mask(d, b, middle);
      const Values second = recurrent(d, t, b, kFirst, G, middle);
      for (long u = 0; u < p.hidden; ++u) {
        double x[G], rec[G];
        for (int g = kFirst; g < G; ++g) {
          x[g] = x_row[g * p.hidden + u];
          rec[g] = second[static_cast<size_t>((g - kFirst) * p.hidden + u)];
        }
        next[static_cast<size_t>(u)] =
            Cell::forward_second(x, rec, h[static_cast<size_t>(u)], values.data() + u * (S + 1));
      }
    }
    if (p.projection) next = project(d, next);
    for (long u = 0; u < p.proj; ++u) {
      const double k = kept(cells::kZoneoutH, d, t, b, u), own = next[static_cast<size_t>(u)];
      if (!Cell::kCellState && p.zones()) row(out.states, d, t, b, p.hidden)[u] = own;
      row(out.y, d, t, b, p.proj)[u] = h_state[u] = round(k * h_state[u] + (1 - k) * own);
    }
    for (long u = 0; u < p.hidden; ++u) {
      for (int k = 0; k < S; ++k)
        row(out.saved, d, t, b, S * p.hidden)[k * p.hidden + u] = values[static_cast<size_t>(u * (S + 1) + k)];
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
    Values kept_h(dh.size()), kept_c(static_cast<size_t>(p.hidden));
    for (long i = 0; i < p.proj; ++i) {
      double& whole = dh[static_cast<size_t>(i)];
      whole += row(p.grad_y, d, t, b, p.proj)[i];
      const double k = kept(cells::kZoneoutH, d, t, b, i);
      kept_h[static_cast<size_t>(i)] = k * whole;
      whole *= 1 - k;
    }
    for (long u = 0; u < p.hidden && Cell::kCellState; ++u) {
      const double k = kept(cells::kZoneoutC, d, t, b, u);
      kept_c[static_cast<size_t>(u)] = k * dc_state[u];
      dc_state[u] *= 1 - k;
    }
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
    Values dx(width), dr(width), dp, direct(static_cast<size_t>(p.hidden)), dm(static_cast<size_t>(p.hidden));
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
      dp = of_products(d, t, b, kFirst, G, dr);
      for (int g = kFirst; g < G; ++g) {
        for (long u = 0; u < p.hidden; ++u) {
          for (long k = 0; k < p.hidden; ++k)
            dm[static_cast<size_t>(k)] += weight(g, u, k) * dp[static_cast<size_t>(g * p.hidden + u)];
        }
      }
      mask(d, b, dm);
      for (long u = 0; u < p.hidden; ++u) {
        load_saved(u, saved);
        direct[static_cast<size_t>(u)] =
            Cell::backward_first(saved, h_prev_row[u], dh[static_cast<size_t>(u)], dm[static_cast<size_t>(u)], x1, r1);
        put(u, 0, kFirst);
      }
    } else {
      for (long u = 0; u < p.hidden; ++u) {
        load_saved(u, saved);
        const Values& own = p.zones() && !Cell::kCellState ? out.states : out.y;
        const double h = p.projection ? 0 : row(own, d, t, b, p.proj)[u], h_prev = p.projection ? 0 : h_prev_row[u];
        double c_prev = 0, dc = 0;
        if (Cell::kCellState) {
          c_prev = prev < 0    ? state(p.c0, d, b, p.hidden)[u]
                   : p.zones() ? row(out.states, d, prev, b, p.hidden)[u]
                               : row(out.saved, d, prev, b, S * p.hidden)[Cell::kSavedC * p.hidden + u];
          dc = dc_state[u];
        }
        direct[static_cast<size_t>(u)] =
            Cell::backward(saved, h, h_prev, c_prev, dh[static_cast<size_t>(u)], dc, x1, r1);
        if (Cell::kCellState) dc_state[u] = dc + kept_c[static_cast<size_t>(u)];
        put(u, 0, G);
      }
    }
    dp = of_products(d, t, b, 0, kFirst, dr);
    Values through(static_cast<size_t>(p.proj));
    for (long k = 0; k < p.proj; ++k) {
      for (int g = 0; g < kFirst; ++g) {
        for (long u = 0; u < p.hidden; ++u) {
          through[static_cast<size_t>(k)] += weight(g, u, k) * dp[static_cast<size_t>(g * p.hidden + u)];
        }
      }
    }
    mask(d, b, through);
    for (long k = 0; k < p.proj; ++k) {
      dh_state[k] = through[static_cast<size_t>(k)] + kept_h[static_cast<size_t>(k)] +
                    (p.projection ? 0 : direct[static_cast<size_t>(k)]);
    }
    for (size_t j = 0; j < width; ++j) {
      row(grad.d_gates, d, t, b, G * p.hidden)[j] = dx[j];
      row(grad.d_recurrent, d, t, b, G * p.hidden)[j] = dr[j];
    }
  }

  // Gradients of the products of gates [from, to) from those of the recurrent part, in its place among all gates.
  Values of_products(long d, long t, long b, int from, int to, const Values& dr) {
    if (p.norm.empty()) return dr;
    Values dp(dr.size());
    const double* n = row(out.normed, d, t, b, G * p.hidden);
    const double rstd = row(out.rstd, d, t, b, kProducts)[from > 0],
                 count = static_cast<double>((to - from) * p.hidden);
    double mean = 0, dot = 0;
    const auto gradient = [&](long i) {
      return dr[static_cast<size_t>(i)] * p.norm[static_cast<size_t>(d * G * p.hidden + i)];
    };
    for (long i = from * p.hidden; i < to * p.hidden; ++i)
      mean += gradient(i) / count, dot += gradient(i) * n[i] / count;
    for (long i = from * p.hidden; i < to * p.hidden; ++i) {
      dp[static_cast<size_t>(i)] = rstd * (gradient(i) - mean - n[i] * dot);
      row(grad.d_products, d, t, b, G * p.hidden)[i] = dp[static_cast<size_t>(i)];
    }
    return dp;
  }

  const Problem& p;
  Rounding round;
  Outputs out;
  Gradients grad;
};

}  // namespace fusednn::testing
