// Where each step of a sequence finds its tensors: asked by the host for a launch, and by a kernel for recorded ones.
#pragma once

#include "cuda/steps.h"

namespace fusednn::cuda {

// What forward and backward share. Steps are numbered in the order of forward, whose i-th step of the second direction
// is at time T - 1 - i; -1 and T are no steps.
struct Track {
  int64_t size, acc;          // bytes of an element and of an accumulator
  int64_t T, B, H, P, D;      // as in api.h
  int64_t heads;              // of a direction
  int64_t G, S, late, first;  // of the cell: gates, saved values, gates of the second product and of the first
  bool split, gemm;           // dr differs from dx; products by a library GEMM
  const int64_t* offsets;     // [T + 1], rows of all steps before t; null: padded

  // null + offset stays null, and const is given back: arguments hold inputs and outputs side by side.
  static FUSEDNN_HD void* at(const void* base, int64_t elements, int64_t bytes) {
    if (base == nullptr) return nullptr;
    return const_cast<char*>(static_cast<const char*>(base)) + elements * bytes;
  }

  FUSEDNN_HD int64_t time_of(int64_t d, int64_t i) const { return d == 0 ? i : T - 1 - i; }
  FUSEDNN_HD int count(int64_t d, int64_t i) const {
    if (i < 0 || i >= T) return 0;
    const int64_t t = time_of(d, i);
    return static_cast<int>(offsets == nullptr ? B : offsets[t + 1] - offsets[t]);
  }
  // Row 0 of direction d's first head at the i-th step in a tensor [N, D, width].
  FUSEDNN_HD void* row(const void* tensor, int64_t d, int64_t i, int64_t width) const {
    if (i < 0 || i >= T) return nullptr;
    const int64_t t = time_of(d, i), before = offsets == nullptr ? t * B : offsets[t];
    return at(tensor, (before * D + d * heads) * width, size);
  }
  // Direction d's first head in a tensor [D, width] of elements of some bytes.
  FUSEDNN_HD void* of(const void* tensor, int64_t d, int64_t width, int64_t bytes) const {
    return at(tensor, d * heads * width, bytes);
  }
};

struct ForwardTrack : Track {
  using Step = ForwardStep;

  RecurrentForward a;
  void *h[2], *factor[2], *c, *middle, *kept, *product;  // of the workspace

  FUSEDNN_HD int64_t product_size() const { return B * (first * H > P ? first * H : P); }

  // The n-th step to be handled; beyond the last one, a step without rows.
  FUSEDNN_HD int64_t steps() const { return T; }
  FUSEDNN_HD ForwardStep handled(int64_t d, int64_t n) const { return n < T ? step(d, n) : ForwardStep{}; }

  FUSEDNN_HD ForwardStep step(int64_t d, int64_t i) const {
    ForwardStep f{};
    f.count = count(d, i), f.batch = static_cast<int>(B);
    f.gates = row(a.gates, d, i, G * H);
    f.b_hh = of(a.b_hh, d, G * H, size);
    f.w = of(a.w_hh, d, G * H * P, size);
    void* h_n = of(a.h_n, d, B * P, size);
    f.h = gemm ? h_n : of(h[i % 2], d, B * P, size);
    f.h_next = gemm ? h_n : of(h[1 - i % 2], d, B * P, size);
    f.h_n = gemm ? nullptr : h_n;
    const RecurrentOptions& o = a.shape.options;
    f.mask = of(o.mask, d, B * P, size);
    f.factor = f.mask == nullptr ? f.h : of(factor[i % 2], d, B * P, size);
    f.factor_next = of(factor[1 - i % 2], d, B * P, size);
    f.c = of(c, d, B * H, acc);
    f.c_n = of(a.c_n, d, B * H, size);
    f.y = row(a.y, d, i, P);
    f.saved = row(a.saved, d, i, S * H);
    (a.c0 == nullptr ? f.h_states : f.c_states) = row(a.states, d, i, H);
    f.zoneout = zoneout_at(o, d, time_of(d, i));
    f.middle = of(middle, d, B * H, size);
    f.kept = of(kept, d, B * S * H, acc);
    f.product = of(product, d, product_size(), size), f.product_size = product_size();
    return f;
  }
};

struct BackwardTrack : Track {
  using Step = BackwardStep;

  RecurrentBackward a;
  void *dh, *dc, *kept_h, *product, *middle, *w_t, *w_t_late;  // of the workspace

  // From the last one to the step -1, which has no rows: what is still to pass through W_hh arrives there. With library
  // GEMMs it has passed already.
  FUSEDNN_HD int64_t steps() const { return gemm ? T : T + 1; }
  FUSEDNN_HD BackwardStep handled(int64_t d, int64_t n) const { return n <= T ? step(d, T - 1 - n) : BackwardStep{}; }

  FUSEDNN_HD BackwardStep step(int64_t d, int64_t i) const {
    BackwardStep b{};
    b.count = count(d, i), b.before = count(d, i + 1), b.joined = count(d, i - 1);
    b.batch = static_cast<int>(B);
    b.grad_y = row(a.grad_y, d, i, P);
    b.y = row(a.y, d, i, P), b.y_prev = row(a.y, d, i - 1, P);
    b.saved = row(a.saved, d, i, S * H), b.saved_prev = row(a.saved, d, i - 1, S * H);
    if (a.states != nullptr && a.c0 != nullptr) b.c_prev = row(a.states, d, i - 1, H);
    if (a.states != nullptr && a.c0 == nullptr) b.y = row(a.states, d, i, H);
    const RecurrentOptions& o = a.shape.options;
    b.mask = of(o.mask, d, B * P, size);
    b.zoneout = zoneout_at(o, d, time_of(d, i));
    b.kept_h = of(kept_h, d, B * P, acc);
    b.h0 = of(a.h0, d, B * P, size), b.c0 = of(a.c0, d, B * H, size);
    b.w_t = of(w_t, d, P * first * H, size), b.w_t_late = of(w_t_late, d, H * late * H, size);
    b.d_before = row(split ? a.d_recurrent : a.d_gates, d, i + 1, G * H);
    b.product = of(product, d, B * P, size), b.middle = of(middle, d, B * H, size);
    b.dh = of(dh, d, B * P, acc), b.dc = of(dc, d, B * H, acc);
    b.d_gates = row(a.d_gates, d, i, G * H);
    b.d_recurrent = row(a.d_recurrent, d, i, G * H);
    b.d_proj = row(a.d_proj, d, i, P);
    return b;
  }
};

}  // namespace fusednn::cuda
