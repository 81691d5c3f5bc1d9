// The storage types in device code: to and from the type that computes.
#pragma once

#include "cuda/primitives/device.h"
#include "elements.h"

#if !defined(FUSEDNN_EMULATE)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fusednn::cuda {

template <class To, class From>
FUSEDNN_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

FUSEDNN_DEVICE double widen(double x) {
  return x;
}
FUSEDNN_DEVICE float widen(float x) {
  return x;
}
FUSEDNN_DEVICE float widen(BFloat16 x) {
  return bits_as<float>(static_cast<u32>(x.bits) << 16);
}
FUSEDNN_DEVICE float widen(Float16 x) {
#if defined(FUSEDNN_EMULATE)
  const u32 sign = static_cast<u32>(x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, digits = x.bits & 1023u;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | digits << 13);
  if (exponent > 0) return bits_as<float>(sign | (exponent + 112) << 23 | digits << 13);
  const float small = static_cast<float>(digits) * 0x1p-24f;
  return sign != 0 ? -small : small;
#else
  return __half2float(__ushort_as_half(x.bits));
#endif
}

// To nearest, ties to even.
template <class T>
struct Narrow;
template <>
struct Narrow<double> {
  static FUSEDNN_DEVICE double from(double x) { return x; }
};
template <>
struct Narrow<float> {
  static FUSEDNN_DEVICE float from(float x) { return x; }
};
template <>
struct Narrow<BFloat16> {
  static FUSEDNN_DEVICE BFloat16 from(float x) {
#if defined(FUSEDNN_EMULATE)
    const u32 bits = bits_as<u32>(x);
    if (x != x) return {static_cast<u16>(bits >> 16 | 0x40u)};
    return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#else
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
  }
};
template <>
struct Narrow<Float16> {
  static FUSEDNN_DEVICE Float16 from(float x) {
#if defined(FUSEDNN_EMULATE)
    const u32 bits = bits_as<u32>(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    u32 out;
    if (size > 0x7f800000u) {
      out = 0x7e00u;
    } else if (size >= 0x47800000u) {  // 2^16 and more
      out = 0x7c00u;
    } else if (size < 0x38800000u) {  // below 2^-14: adding 1/2 shifts the digits to where they belong, rounded
      out = bits_as<u32>(bits_as<float>(size) + 0.5f) - 0x3f000000u;
    } else {
      out = (size + 0xc8000fffu + (size >> 13 & 1u)) >> 13;  // -112 in the exponent, and half a last digit
    }
    return {static_cast<u16>(sign | out)};
#else
    return {__half_as_ushort(__float2half_rn(x))};
#endif
  }
};

template <class T>
FUSEDNN_DEVICE T narrow(AccOf<T> x) {
  return Narrow<T>::from(x);
}

}  // namespace fusednn::cuda
