// Linear and linear + ReLU (D2L 3, 5.1):  y = relu(x W^T + b),  x (M, K), W (N, K), y (M, N)
//
//   input gradient    (g . [y > 0]) W        M x K, summed over N
//   weight gradient   (g . [y > 0])^T x      N x K, summed over M
//
// Three matrix products that differ in how memory is read. Bias and ReLU ride on the way out, in
// registers; backward reads y's sign together with g, so neither the product before the ReLU nor
// the masked gradient ever exists. Flops 2 M N K.
//
// 16-bit numbers, and float32 ones where TF32 is allowed, go through tensor cores, which want rows in
// packets: matrices that do not lie so are copied first (pack.h).
#include "cuda/gemm.h"
#include "cuda/pack.h"
#include "operators.h"

namespace d2lops {
namespace {

// Element (i, k) is x[i, k] of a tensor of so many rows and columns, or x[k, i] if transposed.
template <typename T>
Gathered<T> matrix(const Input& x, int64_t rows, int64_t columns, bool transposed,
                   const Input& mask = {}) {
  Gathered<T> m{x.as<T>().data, mask.as<T>().data, line(rows, x.n, mask.n),
                line(columns, x.c, mask.c)};
  if (transposed) std::swap(m.rows, m.columns);
  m.along_depth = transposed != (x.c == 1);
  return m;
}

template <typename T>
Product<T> product(const ProductSize& size, const Gathered<T>& a, const Gathered<T>& b,
                   const Output& c) {
  return {a, b, {c.as<T>().data, line(size.rows, size.columns), line(size.columns, 1)}, size.depth};
}

// Whether tensor cores may and pay: there is little to win on a few rows.
template <typename T>
bool fits_tensor_cores(const ProductSize& size) {
  return (sizeof(T) == 2 || size.tf32) && size.rows >= 8 && size.columns >= 8 && size.depth >= 8;
}

Packed packed(int64_t rows, int64_t columns, const Input& x, const Input& mask = {}) {
  return {{rows, columns, 1, 1}, columns, x, mask};
}

}  // namespace

void linear(const ProductSize& size, const Input& x, const Input& weight, const Bias& bias,
            bool relu, const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto&& gemm, const Input& x, const Input& weight) {
      auto call = product(size, matrix<T>(x, size.rows, size.depth, false),
                          matrix<T>(weight, size.columns, size.depth, false), y);
      call.bias = static_cast<const T*>(bias.data);
      call.bias_stride = bias.stride;
      call.relu = relu;
      gemm(call);
    };
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(size)) {
        const Packed a = packed(size.rows, size.depth, x);
        const Packed b = packed(size.columns, size.depth, weight);
        return run(gemm_tensor<T>, a.tensor(), b.tensor());
      }
    }
    run(gemm_simt<T>, x, weight);
  });
}

void linear_input_grad(const ProductSize& size, const Input& g, const Input& y, const Input& weight,
                       const Output& dx) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto&& gemm, const Input& g, const Input& y, const Input& weight) {
      gemm(product(size, matrix<T>(g, size.rows, size.depth, false, y),
                   matrix<T>(weight, size.depth, size.columns, true), dx));
    };
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(size)) {
        const Packed a = packed(size.rows, size.depth, g, y);
        const Packed b = packed(size.depth, size.columns, weight);
        return run(gemm_tensor<T>, a.tensor(), a.mask(), b.tensor());
      }
    }
    run(gemm_simt<T>, g, y, weight);
  });
}

void linear_weight_grad(const ProductSize& size, const Input& g, const Input& y, const Input& x,
                        const Output& dw) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto&& gemm, const Input& g, const Input& y, const Input& x) {
      gemm(product(size, matrix<T>(g, size.depth, size.rows, true, y),
                   matrix<T>(x, size.depth, size.columns, true), dw));
    };
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(size)) {
        const Packed a = packed(size.depth, size.rows, g, y);
        const Packed b = packed(size.depth, size.columns, x);
        return run(gemm_tensor<T>, a.tensor(), a.mask(), b.tensor());
      }
    }
    run(gemm_simt<T>, g, y, x);
  });
}

}  // namespace d2lops
