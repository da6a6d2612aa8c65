// IEEE half precision.
#pragma once

#include "cuda_runtime.h"

struct __half {
  unsigned short __x;
};

struct alignas(4) __half2 {
  __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }

inline float __half2float(__half x) { return cuda_on_cpu::detail::bit_cast<_Float16>(x.__x); }

inline __half __float2half_rn(float x) {
  if (std::isnan(x)) return {0x7FFF};
  return {cuda_on_cpu::detail::bit_cast<unsigned short>(static_cast<_Float16>(x))};
}

// The first in the lower half.
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
