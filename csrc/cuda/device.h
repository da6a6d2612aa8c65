// What every kernel needs: shared memory, 16-bit numbers, and accesses of up to 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "common/operand.h"

namespace d2lops {

// A block's dynamic shared memory as a T, the only kind of shared memory that kernels use.
template <typename T>
__device__ __forceinline__ T& shared_memory() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return *reinterpret_cast<T*>(shared_bytes);
}

// Numbers as kernels compute with them, and back: to nearest, ties to even.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float widen(float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else if constexpr (std::is_same_v<T, float16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else {
    return x;
  }
}

// N numbers that are read or written at once. Addresses must be multiples of the size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Packet {
  T at[N];
};
template <typename T>
constexpr int kPacket = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
__device__ __forceinline__ Packet<T, N> load(const T* p) {
  return *reinterpret_cast<const Packet<T, N>*>(p);
}
// 16 bytes by an intrinsic: of some packets the compiler would make four stores.
template <int N, typename T>
__device__ __forceinline__ void store(T* p, const Packet<T, N>& packet) {
  if constexpr (sizeof packet == 16) {
    uint4 words;
    memcpy(&words, &packet, sizeof words);
    __stwb(reinterpret_cast<uint4*>(p), words);
  } else {
    *reinterpret_cast<Packet<T, N>*>(p) = packet;
  }
}

// Whether channels lie side by side in packets of N.
template <int N, typename T>
bool fits_packets(const Operand<T>& x, int64_t channels) {
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % (N * sizeof(T)) == 0;
  return x.c == 1 && channels % N == 0 && x.n % N == 0 && x.h % N == 0 && x.w % N == 0 && aligned;
}

}  // namespace d2lops
