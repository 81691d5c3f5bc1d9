#pragma once

#include "cells/cell.h"

namespace fusednn::cells {

// Elman's network with tanh, as in torch.nn.RNN: h' = tanh(x + r).
// Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
struct RnnTanh : Cell {
  static constexpr const char* kName = "rnn_tanh";
  static constexpr int G = 1;
  static constexpr int S = 0;  // backward needs h' alone, which y holds

  template <class V>
  FUSEDNN_HD static V forward(const V* x, const V* r, V, V&, V*) {
    return tanh(x[0] + r[0]);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V*, V h, V, V, V dh, V&, V* dx, V* dr) {
    dx[0] = dr[0] = dh * (1.f - h * h);
    return V{};
  }
};

}  // namespace fusednn::cells
