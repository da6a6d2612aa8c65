// Linear and linear + ReLU (D2L 3, 5.1):  y = relu(x W^T + b),  x (M, K), W (N, K), y (M, N)
//
//   input gradient    (g . [y > 0]) W        M x K, summed over N
//   weight gradient   (g . [y > 0])^T x      N x K, summed over M
//
// Three matrix products that differ in how memory is read. Bias and ReLU ride on the way out, in
// registers; backward reads y's sign together with g, so neither the product before the ReLU nor
// the masked gradient ever exists. Flops 2 M N K.
#include "cuda/gemm.h"
#include "operators.h"

namespace d2lops {
namespace {

// One digit: `count` indices, `stride` elements apart.
Walk line(int64_t count, int64_t stride, int64_t mask_stride = 0) {
  Walk walk;
  walk.inner = {count, stride, mask_stride};
  return walk;
}

// Element (i, k) is x[i, k] of a tensor of so many rows and columns, or x[k, i] if transposed.
template <typename T>
Gathered<T> matrix(const Input& x, int64_t rows, int64_t columns, bool transposed,
                   const Input& mask = {}) {
  Gathered<T> m{x.as<T>().data, mask.as<T>().data, line(rows, x.n, mask.n),
                line(columns, x.c, mask.c)};
  if (transposed) std::swap(m.rows, m.columns);
  return m;
}

template <typename T>
Scattered<T> contiguous(const Output& y, const ProductSize& size) {
  return {y.as<T>().data, line(size.rows, size.columns), line(size.columns, 1)};
}

}  // namespace

void linear(const ProductSize& size, const Input& x, const Input& weight, const Bias& bias,
            bool relu, const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    Product<T> product{matrix<T>(x, size.rows, size.depth, false),
                       matrix<T>(weight, size.columns, size.depth, false),
                       contiguous<T>(y, size)};
    product.bias = static_cast<const T*>(bias.data);
    product.bias_stride = bias.stride;
    product.relu = relu;
    gemm(product);
  });
}

void linear_input_grad(const ProductSize& size, const Input& g, const Input& y,
                       const Input& weight, const Output& dx) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    gemm(Product<T>{matrix<T>(g, size.rows, size.depth, false, y),
                    matrix<T>(weight, size.depth, size.columns, true), contiguous<T>(dx, size)});
  });
}

void linear_weight_grad(const ProductSize& size, const Input& g, const Input& y, const Input& x,
                        const Output& dw) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    gemm(Product<T>{matrix<T>(g, size.depth, size.rows, true, y),
                    matrix<T>(x, size.depth, size.columns, true), contiguous<T>(dw, size)});
  });
}

}  // namespace d2lops
