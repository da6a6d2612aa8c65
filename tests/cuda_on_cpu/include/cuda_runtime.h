// CUDA's language and run time as far as the kernels use them, for a C++ compiler: this directory
// comes first on the include path, and `__CUDACC__` stays undefined. Names and meanings are CUDA's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "emulator.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
// For `extern __shared__` only. A local variable cannot be weak, so a static one does not compile,
// where it would silently be each thread's own.
#define __shared__ __attribute__((weak))

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// Errors and launches

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNotSupported = 801,
};

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);

using cudaStream_t = struct CUstream_st*;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_cpu::detail {
cudaError_t set_max_shared_bytes(const void* kernel, int bytes);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*run_thread)(const void*), const void* call);
void check_mask(unsigned mask);
int syncthreads_count(int predicate);
}  // namespace cuda_on_cpu::detail

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
  return cuda_on_cpu::detail::set_max_shared_bytes(reinterpret_cast<const void*>(kernel), bytes);
}

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... arguments) {
  const auto call = [kernel, copies = std::tuple<P...>(std::forward<A>(arguments)...)] {
    std::apply(kernel, copies);
  };
  const auto run_thread = [](const void* c) { (*static_cast<const decltype(call)*>(c))(); };
  return cuda_on_cpu::detail::launch(*config, reinterpret_cast<const void*>(kernel), run_thread,
                                     &call);
}

// All memory is managed, and a kernel has ended when its launch returns.

inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
template <typename T>
cudaError_t cudaMallocManaged(T** pointer, size_t bytes) {
  *pointer = static_cast<T*>(::operator new(bytes, std::align_val_t{256}));
  return cudaSuccess;
}

// Barriers, shuffles and votes. A mask has to name every live lane of the warp.

void __syncthreads();
inline int __syncthreads_count(int predicate) {
  return cuda_on_cpu::detail::syncthreads_count(predicate != 0);
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }

inline void __syncwarp(unsigned mask = 0xffffffff) {
  cuda_on_cpu::detail::check_mask(mask);
  cuda_on_cpu::exchange(char{});
}

namespace cuda_on_cpu::detail {
template <typename T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  check_mask(mask);
  return cuda_on_cpu::exchange(value)[source];
}
}  // namespace cuda_on_cpu::detail

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = cuda_on_cpu::lane() & -width;
  return cuda_on_cpu::detail::shuffle(mask, value, first + (source & (width - 1)));
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_on_cpu::lane(), source = lane - static_cast<int>(delta);
  return cuda_on_cpu::detail::shuffle(mask, value, source < (lane & -width) ? lane : source);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_on_cpu::lane(), source = lane + static_cast<int>(delta);
  return cuda_on_cpu::detail::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = cuda_on_cpu::lane(), source = lane ^ lane_mask;
  return cuda_on_cpu::detail::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  cuda_on_cpu::detail::check_mask(mask);
  const int* votes = cuda_on_cpu::exchange<int>(predicate != 0);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= unsigned{votes[i] == 1} << i;  // an exited lane's is -1
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// Arithmetic

namespace cuda_on_cpu::detail {
template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_on_cpu::detail

inline unsigned __float_as_uint(float x) { return cuda_on_cpu::detail::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::detail::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::detail::bit_cast<float>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::detail::bit_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x >= 0 ? (x <= 1 ? x : 1.0f) : 0.0f; }
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
void __stwb(T* p, T value) {
  *p = value;
}

#define CUDA_ON_CPU_MIN_MAX(type)                              \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
CUDA_ON_CPU_MIN_MAX(int)
CUDA_ON_CPU_MIN_MAX(unsigned)
CUDA_ON_CPU_MIN_MAX(long)
CUDA_ON_CPU_MIN_MAX(unsigned long)
CUDA_ON_CPU_MIN_MAX(long long)
CUDA_ON_CPU_MIN_MAX(unsigned long long)
#undef CUDA_ON_CPU_MIN_MAX
// Of a number and a NaN, the number.
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
