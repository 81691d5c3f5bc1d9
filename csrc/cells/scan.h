// Cells whose gates see the input alone, so that h_t = a_t h_{t-1} + b_t is linear in h and can be computed by a scan.
// Source: L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs All We Needed?", arXiv:2410.01201.
//
//   static constexpr const char* kName, int G     as in cell.h
//   template <class V> static V forward(const V* x, V h)
//       h_t from the pre-activations x[G] and h_{t-1}
//   template <class V> static V backward(const V* x, V h_prev, V dh, V* dx)
//       dh is the whole gradient that reaches h_t; fills dx[G]; returns the gradient of h_{t-1}
//
// a and b come without cancellation and without logarithms: 1 - sigmoid(x) is sigmoid(-x), and a ratio of sigmoids is
// taken after their common power of e is out (`Share`).
#pragma once

#include "cells/math.h"

namespace fusednn::cells {

// The candidate's activation: positive, so that h is a mean of positive values, x + 1/2 above 0 and sigmoid(x) below.
template <class V>
FUSEDNN_HD V positive(V x) {
  const V s = sigmoid(x);
  return x < V{} ? s : x + 0.5f;
}
template <class V>
FUSEDNN_HD V positive_backward(V x, V d) {
  const V s = sigmoid(x);
  return x < V{} ? d * s * (1.f - s) : d;
}

// z = sigmoid(x_z), h' = (1 - z) h + z g(x_h).
struct MinGru {
  static constexpr const char* kName = "min_gru";
  static constexpr int G = 2;

  template <class V>
  FUSEDNN_HD static V forward(const V* x, V h) {
    return sigmoid(-x[0]) * h + sigmoid(x[0]) * positive(x[1]);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V* x, V h_prev, V dh, V* dx) {
    const V z = sigmoid(x[0]), keep = sigmoid(-x[0]);
    dx[0] = dh * (positive(x[1]) - h_prev) * z * keep;
    dx[1] = positive_backward(x[1], dh * z);
    return dh * keep;
  }
};

// f and i, normalised: sigmoid(x_f) / (sigmoid(x_f) + sigmoid(x_i)) and the rest.
template <class V>
struct Share {
  V f, i;

  FUSEDNN_HD Share(V x_f, V x_i) {
    // sigmoid(x) = exp(min(x, 0)) sigmoid(|x|), whose second factor is at least 1/2.
    const V low_f = x_f < V{} ? x_f : V{}, low_i = x_i < V{} ? x_i : V{};
    const V high = low_f < low_i ? low_i : low_f;
    const V weight_f = exp(low_f - high) * sigmoid(x_f < V{} ? -x_f : x_f);
    const V weight_i = exp(low_i - high) * sigmoid(x_i < V{} ? -x_i : x_i);
    const V one = 1.f / (weight_f + weight_i);
    f = weight_f * one, i = weight_i * one;
  }
};

// f = sigmoid(x_f), i = sigmoid(x_i), both divided by their sum; h' = f h + i g(x_h).
struct MinLstm {
  static constexpr const char* kName = "min_lstm";
  static constexpr int G = 3;

  template <class V>
  FUSEDNN_HD static V forward(const V* x, V h) {
    const Share<V> share(x[0], x[1]);
    return share.f * h + share.i * positive(x[2]);
  }

  template <class V>
  FUSEDNN_HD static V backward(const V* x, V h_prev, V dh, V* dx) {
    const Share<V> share(x[0], x[1]);
    const V d = dh * (h_prev - positive(x[2])) * share.f * share.i;  // of log f - log i
    dx[0] = d * sigmoid(-x[0]);
    dx[1] = -d * sigmoid(-x[1]);
    dx[2] = positive_backward(x[2], dh * share.i);
    return dh * share.f;
  }
};

#define FUSEDNN_SCAN_CELLS(X) \
  X(MinGru)                   \
  X(MinLstm)

}  // namespace fusednn::cells
