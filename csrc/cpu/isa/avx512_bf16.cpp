// AVX-512 with dot products of bfloat16 (BF16): the recurrent kernels for tensors of that dtype; the rest is avx512's.
#include "cpu/isa/common.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2,lzcnt,popcnt,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2,lzcnt,popcnt,f16c")
#endif

#define FUSEDNN_ISA avx512_bf16
#define FUSEDNN_BFLOAT16_PAIRS
#define FUSEDNN_VECTOR_BYTES 64
#define FUSEDNN_ACCUMULATORS 24
#include "cpu/isa/recurrent.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fusednn::cpu {
namespace {

Kernels with_pairs() {
  Kernels kernels = avx512_bfloat16;
  kernels.forward = avx512_bf16::run_cell<avx512_bf16::Forwards, BFloat16, RecurrentForward>;
  kernels.backward = avx512_bf16::run_cell<avx512_bf16::Backwards, BFloat16, RecurrentBackward>;
  kernels.linear_backward = avx512_bf16::linear_backward_of<BFloat16>;
  return kernels;
}

}  // namespace

const Kernels avx512_bf16_bfloat16 = with_pairs();

}  // namespace fusednn::cpu

#endif
