// The kernels of one instruction set and dtype: each csrc/cpu/isa/*.cpp gives one table.
#pragma once

#include "api.h"
#include "cpu/linear_backward.h"

namespace fusednn::cpu {

// Vector functions for the tests of their accuracy: y[i] = f(x[i]), in the table's dtype.
enum class Function : int { kTanh, kSigmoid, kExp };  // exp: of x <= 0

struct Kernels {
  void (*forward)(const RecurrentForward&);
  void (*backward)(const RecurrentBackward&);
  void (*linear_backward)(const LinearBackward&);
  void (*scan_forward)(const ScanForward&);
  void (*scan_backward)(const ScanBackward&);
  void (*additive_forward)(const AdditiveForward&);
  void (*additive_backward)(const AdditiveBackward&);
  void (*attention_forward)(const AttentionForward&);
  void (*attention_backward)(const AttentionBackward&);
  void (*evaluate)(Function, const void* x, void* y, long n);
};

extern const Kernels baseline_float64, baseline_float32, baseline_bfloat16, baseline_float16;
#if defined(__x86_64__)
extern const Kernels avx2_float64, avx2_float32, avx2_bfloat16, avx2_float16;
extern const Kernels avx512_float64, avx512_float32, avx512_bfloat16, avx512_float16;
extern const Kernels avx512_bf16_bfloat16;
#endif

const Kernels& chosen_kernels(Dtype dtype);

}  // namespace fusednn::cpu
