// The matrix product that linear and corr2d are made of, as their launchers see it:
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// once per group, with A, B and C gathered from tensors (gather.h).
#pragma once

#include <cstdint>
#include <utility>

#include "common/dtype.h"
#include "cuda/gather.h"

namespace d2lops {

// There are as many rows and columns as c has. a and b may reach beyond: up to the end of a packet.
template <typename T>
struct Product {
  Gathered<T> a{}, b{};
  Scattered<T> c{};
  int64_t depth = 0;
  int64_t groups = 1;
  const T* bias = nullptr;
  int64_t bias_stride = 0, bias_group_stride = 0;
  bool bias_per_row = false;  // else there is one per column of C
  bool relu = false;

  // Where the rows of C are columns and the columns rows: the same result.
  void transpose() {
    std::swap(a, b);
    std::swap(c.rows, c.columns);
    bias_per_row = !bias_per_row;
  }
};

// On CUDA cores, for any strides (gemm_simt.cu).
template <typename T>
void gemm_simt(Product<T> product);

// On tensor cores (gemm_mma.cu), for float (as TF32), bfloat16 and float16: a and b must lie in
// packets of 16 bytes, aligned, of neighbours along the inner digit of their rows or columns.
template <typename T>
void gemm_mma(const Product<T>& product);

// The same on the tensor cores of Hopper GPUs (gemm_wgmma.cu), for bfloat16 and float16.
template <typename T>
void gemm_wgmma(const Product<T>& product);

// Whichever of the two this GPU has, and the product is large enough for.
template <typename T>
void gemm_tensor(const Product<T>& product);

}  // namespace d2lops
