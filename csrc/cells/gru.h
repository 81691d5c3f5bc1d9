#pragma once

#include "cells/cell.h"

namespace fusednn::cells {

// Gated recurrent unit as in torch.nn.GRU: gates r, z, n; the reset gate acts after the recurrent product:
// n = tanh(x_n + r * (W_hn h + b_hn)), h' = (1 - z) n + z h.
// Source: K. Cho et al., arXiv:1406.1078, in version 1's form, which cuDNN and torch use.
struct Gru : Cell {
  static constexpr const char* kName = "gru";
  static constexpr int G = 3;
  static constexpr int S = 4;  // r, z, n, r_n
  static constexpr bool kSplit = true;

  template <class V>
  FUSEDNN_HD static V forward(const V* x, const V* rec, V h, V&, V* saved) {
    const V r = sigmoid(x[0] + rec[0]);
    const V z = sigmoid(x[1] + rec[1]);
    const V n = tanh(x[2] + r * rec[2]);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = rec[2];
    return n + z * (h - n);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V* saved, V, V h_prev, V, V dh, V&, V* dx, V* dr) {
    const V r = saved[0], z = saved[1], n = saved[2], rec_n = saved[3];
    dx[2] = dh * (1.f - z) * (1.f - n * n);
    dx[1] = dh * (h_prev - n) * z * (1.f - z);
    dx[0] = dx[2] * rec_n * r * (1.f - r);
    dr[0] = dx[0], dr[1] = dx[1], dr[2] = dx[2] * r;
    return dh * z;
  }
};

}  // namespace fusednn::cells
