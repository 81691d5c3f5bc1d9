// What a cell is. Everything else in csrc is generic over it: a cell is one header here and its lines in registry.h.
//
// A cell is the pointwise part of a recurrent layer: it receives, for one hidden unit of one batch row, the input part
// x[g] (W_ih x + b_ih) and the recurrent part r[g] (W_hh h + b_hh) of each gate's pre-activation, and gives the new h.
// It holds no loop and no pointer into a tensor. V is a scalar or a vector of units.
//
//   static constexpr const char* kName      the name in Python
//   static constexpr int G                  gates, in the order of the rows of the weights
//   static constexpr int S                  values saved for backward per unit, in the dtype of the tensors
//   template <class V> static V forward(const V* x, const V* r, V h, V& c, V* saved)
//       returns h_t; h is h_{t-1}; c comes in as c_{t-1} and leaves as c_t; fills saved[S]
//   template <class V> static V backward(const V* saved, V h, V h_prev, V c_prev, V dh, V& dc, V* dx, V* dr)
//       h is h_t; dh and dc are the whole gradients that reach h_t and c_t; fills the gradients dx[G] and dr[G] of the
//       two parts; dc leaves as the gradient of c_{t-1}; returns the part of dh_{t-1} that does not pass through W_hh
//
// A cell derives from Cell and overrides what differs. A cell with kSecondGates > 0 is described at gru_reset_before.h.
#pragma once

#include "cells/math.h"

namespace fusednn::cells {

struct Cell {
  // The cell carries c beside h. Then saved[kSavedC] must be c_t, and the cell must not use h and h_prev themselves
  // (with a projection h has another width).
  static constexpr bool kCellState = false;
  static constexpr int kSavedC = 0;
  // dr differs from dx, so that the weight and bias gradients of the two sides need two tensors.
  static constexpr bool kSplit = false;
  // The last kSecondGates gates multiply not h but a vector that the first gates produce.
  static constexpr int kSecondGates = 0;
};

}  // namespace fusednn::cells
