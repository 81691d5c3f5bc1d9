// AVX2 with FMA.
#include "cpu/isa/common.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,lzcnt,popcnt,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt,f16c")
#endif

#define FUSEDNN_ISA avx2
#define FUSEDNN_VECTOR_BYTES 32
#define FUSEDNN_ACCUMULATORS 12
#include "cpu/isa/all.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
