// The matrix product that linear and corr2d are made of, as their launchers see it:
//
//   C[i, j] = relu(sum over k of A[i, k] B[j, k] + bias)
//
// once per group, with A, B and C gathered from tensors in any strides (gather.h).
#pragma once

#include <cstdint>
#include <utility>

#include "common/operand.h"
#include "cuda/gather.h"

namespace d2lops {

template <typename T>
struct Product {
  Gathered<T> a, b;
  Scattered<T> c;
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

// Defined in gemm.cu, for the four element types.
template <typename T>
void gemm(Product<T> product);

}  // namespace d2lops
