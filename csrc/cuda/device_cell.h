// Cells as CUDA kernels take them: a value, whose fields are what a kernel learns when it runs. Fewer kernels to
// compile.
#pragma once

#include "cells/registry.h"

namespace fusednn::cuda {

// Elman's network with either nonlinearity.
struct Rnn : cells::RnnTanh {
  bool relu;

  template <class V>
  FUSEDNN_HD V forward(const V* x, const V* r, V h, V& c, V* saved) const {
    return relu ? cells::RnnRelu::forward(x, r, h, c, saved) : cells::RnnTanh::forward(x, r, h, c, saved);
  }

  template <class V>
  FUSEDNN_HD V backward(const V* saved, V h, V h_prev, V c_prev, V dh, V& dc, V* dx, V* dr) const {
    return relu ? cells::RnnRelu::backward(saved, h, h_prev, c_prev, dh, dc, dx, dr)
                : cells::RnnTanh::backward(saved, h, h_prev, c_prev, dh, dc, dx, dr);
  }
};

// The value that stands for a cell of the registry.
template <class Cell>
constexpr Cell device_cell(Cell) {
  return {};
}
constexpr Rnn device_cell(cells::RnnTanh) {
  return {{}, false};
}
constexpr Rnn device_cell(cells::RnnRelu) {
  return {{}, true};
}

template <class Cell>
using DeviceCell = decltype(device_cell(Cell{}));

}  // namespace fusednn::cuda
