// The value types that cells compute with on a GPU. Tensors of 16 bits round to 2^-11 at best, so their sigmoid and
// tanh come from the hardware's exp2 and reciprocal, whose errors are 2^-22 and 2^-23: a sixth of the instructions.
// fp32 with or without TF32, and fp64, have the accurate functions.
#pragma once

#include "cells/math.h"
#include "cuda/primitives/functions.h"

namespace fusednn::cuda {

// fp32 with those functions.
struct Approximate {
  float value;

  Approximate() = default;
  FUSEDNN_DEVICE Approximate(float x) : value(x) {}
  FUSEDNN_DEVICE explicit operator float() const { return value; }

  friend FUSEDNN_DEVICE Approximate operator+(Approximate a, Approximate b) { return a.value + b.value; }
  friend FUSEDNN_DEVICE Approximate operator-(Approximate a, Approximate b) { return a.value - b.value; }
  friend FUSEDNN_DEVICE Approximate operator*(Approximate a, Approximate b) { return a.value * b.value; }
  friend FUSEDNN_DEVICE bool operator<(Approximate a, Approximate b) { return a.value < b.value; }
  friend FUSEDNN_DEVICE bool operator<=(Approximate a, Approximate b) { return a.value <= b.value; }
};

// What the values of a tensor of T become.
template <class T>
struct Computed {
  using type = AccOf<T>;
};
template <>
struct Computed<BFloat16> {
  using type = Approximate;
};
template <>
struct Computed<Float16> {
  using type = Approximate;
};
template <class T>
using ComputedOf = typename Computed<T>::type;

}  // namespace fusednn::cuda

namespace fusednn::cells {

// Infinity and NaN pass as they do through the exact functions: exp2 reaches 0 and infinity, reciprocal takes both.
template <>
struct Math<cuda::Approximate> {
  static constexpr float kLog2E = 1.44269504f;

  static FUSEDNN_DEVICE cuda::Approximate sigmoid(cuda::Approximate x) {
    return cuda::reciprocal_approximate(1.f + cuda::exp2_approximate(-kLog2E * x.value));
  }

  // 1 - 2 / (1 + e^2x), which has an absolute error of about 2^-21; near zero the series, whose relative error is
  // below 2^-18 there.
  static FUSEDNN_DEVICE cuda::Approximate tanh(cuda::Approximate x) {
    const float v = x.value;
    const float far = 1.f - 2.f * cuda::reciprocal_approximate(1.f + cuda::exp2_approximate(2 * kLog2E * v));
    const float near = v + v * (v * v * (-1.f / 3));
    return v * v < 0x1p-8f ? near : far;
  }
};

}  // namespace fusednn::cells
