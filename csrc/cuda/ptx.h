// The instructions that CUDA C++ has no words for, each with two bodies: inline PTX for nvcc, and,
// for the emulator (tests/cuda_on_cpu), what PTX's manual says it does. Fragment layouts are those
// of the PTX ISA, sections "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
//
// Lane l of a warp is g = l / 4, t = l % 4 in them. A fragment is a few 32-bit registers a lane, each
// with two 16-bit numbers, the first one in the low half.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/device.h"
#if !defined(__CUDACC__)
#  include "emulator.h"
#endif

namespace d2lops {

// A barrier of `Threads` threads of the block, who are whole warps. __syncthreads is another one.
template <int Threads>
__device__ __forceinline__ void meet() {
#if defined(__CUDACC__)
  asm volatile("bar.sync 1, %0;" ::"n"(Threads) : "memory");
#else
  cuda_on_cpu::barrier(1, Threads);
#endif
}

// Copies 16 bytes from memory to shared memory without a register, or writes zeros. A group of
// copies is done when its thread has waited for it; others see it after the next barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool valid) {
#if defined(__CUDACC__)
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  cuda_on_cpu::copy_async(shared, from, 16, valid ? 16 : 0);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_on_cpu::commit_group();
#endif
}

// Until all but the last `Pending` groups of this thread are done.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  cuda_on_cpu::wait_group(Pending);
#endif
}

// Four 8 x 8 matrices of 16-bit numbers. Lanes 8 i ... 8 i + 7 say where the rows of matrix i begin
// (16 bytes, aligned); afterwards lane l holds elements 2 t and 2 t + 1 of row g of each matrix or,
// transposed, of column g.
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
#if defined(__CUDACC__)
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  }
#else
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) cuda_on_cpu::fail("ldmatrix: unaligned row");
  const void* const* rows = cuda_on_cpu::exchange(row);
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const auto element = [&](int r, int c) {
      return uint32_t{static_cast<const uint16_t*>(rows[8 * i + r])[c]};
    };
    to[i] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                       : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
#endif
}

// What tensor cores do with the lower 13 bits of a float32 number is to ignore them.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t x) {
#if defined(__CUDACC__)
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(x)));
  return rounded;
#else
  const bool finite = (x & 0x7F800000u) != 0x7F800000u;
  return finite ? (x + 0x1000u) & ~0x1FFFu : x;
#endif
}

// D += A B, 16 x 8, over 32 bytes of products, by one warp. For 16-bit numbers, A is (g, 2t) (g + 8,
// 2t) (g, 2t + 8) (g + 8, 2t + 8), B (2t, g) (2t + 8, g), with a neighbour along k each; for float32
// ones, as TF32, (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4) and (t, g) (t + 4, g). D is (g, 2t) (g,
// 2t + 1) (g + 8, 2t) (g + 8, 2t + 1).
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if defined(__CUDACC__)
#  define D2LOPS_MMA(shape, type)                                                       \
    asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type                \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
  if constexpr (std::is_same_v<T, float>) {
    D2LOPS_MMA("m16n8k8", "tf32");
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    D2LOPS_MMA("m16n8k16", "bf16");
  } else {
    D2LOPS_MMA("m16n8k16", "f16");
  }
#  undef D2LOPS_MMA
#else
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const Fragments* lanes = cuda_on_cpu::exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  constexpr int kParts = 4 / sizeof(T);  // numbers in a register
  const auto number = [](uint32_t bits, [[maybe_unused]] int part) {
    if constexpr (kParts == 1) {
      return __uint_as_float(bits & ~0x1FFFu);
    } else {
      return widen(T{static_cast<uint16_t>(bits >> 16 * part)});
    }
  };
  const int g = cuda_on_cpu::lane() / 4, t = cuda_on_cpu::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 8 * kParts; ++k) {
      const int lane = k / kParts % 4, upper = k / kParts / 4, part = k % kParts;
      d[i] += number(lanes[4 * g + lane].a[row + 2 * upper], part) *
              number(lanes[4 * column + lane].b[upper], part);
    }
  }
#endif
}

// The numbers in a register of a fragment, each zero where y is not positive; where y is NaN, x
// passes.
template <typename T>
__device__ __forceinline__ uint32_t passing(uint32_t y, uint32_t x) {
  if constexpr (std::is_same_v<T, float>) return __uint_as_float(y) <= 0 ? 0 : x;
  if constexpr (sizeof(T) == 2) {
    const auto blocked = [](uint32_t half) { return widen(T{static_cast<uint16_t>(half)}) <= 0; };
    return (blocked(y & 0xFFFF) ? 0 : x & 0xFFFF) | (blocked(y >> 16) ? 0 : x & 0xFFFF0000);
  }
}

}  // namespace d2lops
