#pragma once

#include "cells/cell.h"

namespace fusednn::cells {

// Elman's network with relu, as in torch.nn.RNN(nonlinearity="relu"): h' = max(x + r, 0).
// Source: Q. V. Le, N. Jaitly, G. E. Hinton, "A simple way to initialize recurrent networks of rectified linear units",
// arXiv:1504.00941.
struct RnnRelu : Cell {
  static constexpr const char* kName = "rnn_relu";
  static constexpr int G = 1;
  static constexpr int S = 0;

  template <class V>
  FUSEDNN_HD static V forward(const V* x, const V* r, V, V&, V*) {
    return relu(x[0] + r[0]);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V*, V h, V, V, V dh, V&, V* dx, V* dr) {
    dx[0] = dr[0] = relu_backward(h, dh);
    return V{};
  }
};

}  // namespace fusednn::cells
