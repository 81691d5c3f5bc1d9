#pragma once

#include "cells/cell.h"

namespace fusednn::cells {

// Gated recurrent unit whose reset gate acts before the recurrent product: gates r, z, n;
// n = tanh(x_n + W_hn (r * h) + b_hn), h' = (1 - z) h + z n. z has the opposite role of torch's.
// Source: K. Cho et al., arXiv:1406.1078v3, equations 5 to 8, with z as in J. Chung et al., arXiv:1412.3555.
//
// It takes two products a step, so it has the two-product form of a cell. Forward: forward_first receives rec[g] of the
// first gates, fills their part of saved, and returns what the last kSecondGates gates multiply; forward_second then
// receives their rec[g]. Backward runs the other way: backward_second gives dx, dr of the last gates; backward_first
// receives dm, the gradient of what forward_first returned, and gives the rest as Cell's backward does.
struct GruResetBefore : Cell {
  static constexpr const char* kName = "gru_reset_before";
  static constexpr int G = 3;
  static constexpr int S = 3;  // r, z, n
  static constexpr int kSecondGates = 1;

  template <class V>
  FUSEDNN_HD static V forward_first(const V* x, const V* rec, V h, V* saved) {
    const V r = sigmoid(x[0] + rec[0]);
    const V z = sigmoid(x[1] + rec[1]);
    saved[0] = r, saved[1] = z;
    return r * h;
  }

  template <class V>
  FUSEDNN_HD static V forward_second(const V* x, const V* rec, V h, V* saved) {
    const V z = saved[1];
    const V n = tanh(x[2] + rec[2]);
    saved[2] = n;
    return h + z * (n - h);
  }

  template <class V>
  FUSEDNN_HD static void backward_second(const V* saved, V, V dh, V* dx, V* dr) {
    const V z = saved[1], n = saved[2];
    dx[2] = dr[2] = dh * z * (1.f - n * n);
  }

  template <class V>
  FUSEDNN_HD static V backward_first(const V* saved, V h_prev, V dh, V dm, V* dx, V* dr) {
    const V r = saved[0], z = saved[1], n = saved[2];
    dx[0] = dr[0] = dm * h_prev * r * (1.f - r);
    dx[1] = dr[1] = dh * (n - h_prev) * z * (1.f - z);
    return dh * (1.f - z) + dm * r;
  }
};

}  // namespace fusednn::cells
