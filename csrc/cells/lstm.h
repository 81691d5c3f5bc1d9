#pragma once

#include "cells/cell.h"

namespace fusednn::cells {

// Long short-term memory with a forget gate, in the gate order of torch.nn.LSTM: i, f, g, o.
// Source: S. Hochreiter, J. Schmidhuber, Neural Computation 9 (1997); the forget gate: F. A. Gers, J. Schmidhuber,
// F. Cummins, Neural Computation 12 (2000).
struct Lstm : Cell {
  static constexpr const char* kName = "lstm";
  static constexpr int G = 4;
  static constexpr int S = 5;  // i, f, g, o, c'
  static constexpr bool kCellState = true;
  static constexpr int kSavedC = 4;

  template <class V>
  FUSEDNN_HD static V forward(const V* x, const V* r, V, V& c, V* saved) {
    const V i = sigmoid(x[0] + r[0]);
    const V f = sigmoid(x[1] + r[1]);
    const V g = tanh(x[2] + r[2]);
    const V o = sigmoid(x[3] + r[3]);
    c = f * c + i * g;
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
    return o * tanh(c);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V* saved, V, V, V c_prev, V dh, V& dc, V* dx, V* dr) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(saved[4]);
    const V d = dc + dh * o * (1.f - tanh_c * tanh_c);  // dL/dc', with what comes through h'
    dx[0] = d * g * i * (1.f - i);
    dx[1] = d * c_prev * f * (1.f - f);
    dx[2] = d * i * (1.f - g * g);
    dx[3] = dh * tanh_c * o * (1.f - o);
    for (int k = 0; k < G; ++k) dr[k] = dx[k];
    dc = d * f;
    return V{};
  }
};

}  // namespace fusednn::cells
