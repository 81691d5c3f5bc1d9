// The kernels of one instruction set: each csrc/cpu/isa_*.cpp gives one table.
#pragma once

#include "api.h"

namespace fusednn::cpu {

// Vector functions for the tests of their accuracy: y[i] = f(x[i]).
enum class Function : int { kTanh, kSigmoid };

struct Kernels {
  void (*forward)(const RecurrentForward&);
  void (*backward)(const RecurrentBackward&);
  void (*evaluate_f32)(Function, const float* x, float* y, long n);
  void (*evaluate_f64)(Function, const double* x, double* y, long n);
};

// Null where the build's architecture has no such instruction set.
const Kernels* baseline_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

const Kernels& chosen_kernels();

}  // namespace fusednn::cpu
