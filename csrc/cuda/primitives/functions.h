// The hardware's own functions: one instruction each, and not exact.
#pragma once

#include "cuda/primitives/numbers.h"

#if defined(FUSEDNN_EMULATE)
#include <cmath>
#endif

namespace fusednn::cuda {

// The largest relative errors that PTX documents.
constexpr double kExp2Error = 0x1p-22, kReciprocalError = 0x1p-23;

#if defined(FUSEDNN_EMULATE)
namespace host {

inline float without_subnormal(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
}

// As far from the exact value as documented, up or down by the bits of x.
inline float inexact(double exact, float x, double error) {
  const bool up = (bits_as<u32>(x) * 0x9E3779B9u >> 31) != 0;
  error -= 0x1p-24;  // the rounding to fp32
  return without_subnormal(static_cast<float>(exact * (up ? 1 + error : 1 - error)));
}

}  // namespace host
#endif

// 2^x; subnormal numbers count as zero.
FUSEDNN_DEVICE float exp2_approximate(float x) {
#if defined(FUSEDNN_EMULATE)
  x = host::without_subnormal(x);
  return host::inexact(std::exp2(static_cast<double>(x)), x, kExp2Error);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1 / x; subnormal numbers count as zero.
FUSEDNN_DEVICE float reciprocal_approximate(float x) {
#if defined(FUSEDNN_EMULATE)
  x = host::without_subnormal(x);
  return host::inexact(1 / static_cast<double>(x), x, kReciprocalError);
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace fusednn::cuda
