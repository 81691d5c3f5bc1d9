// The functions that cells are written in, for any value type V: a host scalar, a CUDA scalar, or a vector of lanes.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FUSEDNN_HD __host__ __device__ __forceinline__
#else
#define FUSEDNN_HD inline __attribute__((always_inline))
#endif

namespace fusednn::cells {

// How one value type computes. Scalars are below; csrc/cpu/vector_math.h adds the vector types.
template <class V>
struct Math;

template <>
struct Math<float> {
  FUSEDNN_HD static float exp(float x) { return ::expf(x); }
  FUSEDNN_HD static float tanh(float x) { return ::tanhf(x); }
  FUSEDNN_HD static float sigmoid(float x) {
    const float e = ::expf(x < 0.f ? x : -x);  // never overflows
    return (x < 0.f ? e : 1.f) / (1.f + e);
  }
};

template <>
struct Math<double> {
  FUSEDNN_HD static double exp(double x) { return ::exp(x); }
  FUSEDNN_HD static double tanh(double x) { return ::tanh(x); }
  FUSEDNN_HD static double sigmoid(double x) {
    const double e = ::exp(x < 0. ? x : -x);
    return (x < 0. ? e : 1.) / (1. + e);
  }
};

template <class V>
FUSEDNN_HD V tanh(V x) {
  return Math<V>::tanh(x);
}

template <class V>
FUSEDNN_HD V sigmoid(V x) {
  return Math<V>::sigmoid(x);
}

// Of x <= 0.
template <class V>
FUSEDNN_HD V exp(V x) {
  return Math<V>::exp(x);
}

// Written so that a NaN passes through, as torch.relu does: a comparison with NaN is false.
template <class V>
FUSEDNN_HD V relu(V x) {
  return x < V{} ? V{} : x;
}

// d where y = relu(x) lets the gradient through; y = NaN lets it through, as in torch.
template <class V>
FUSEDNN_HD V relu_backward(V y, V d) {
  return y <= V{} ? V{} : d;
}

}  // namespace fusednn::cells
