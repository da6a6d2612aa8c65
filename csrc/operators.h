// What the bindings ask of a device: every raw operator of library.cpp once more, on pointers and
// sizes that have been checked. csrc/cpu and csrc/cuda each define all of them, and a library links
// one of the two.
#pragma once

#include <cstdint>
#include <vector>

#include "common/geometry.h"
#include "common/operand.h"

namespace d2lops {

// An absent y masks nothing.
void corr2d(const Geometry& geo, const Input& x, const Input& weight, const Bias& bias, bool relu,
            const Output& y);
void corr2d_input_grad(const Geometry& geo, const Input& g, const Input& y, const Input& weight,
                       const Output& dx);
void corr2d_weight_grad(const Geometry& geo, const Input& g, const Input& y, const Input& x,
                        const Output& dw);

// Outputs are contiguous.
void linear(const ProductSize& size, const Input& x, const Input& weight, const Bias& bias,
            bool relu, const Output& y);
void linear_input_grad(const ProductSize& size, const Input& g, const Input& y, const Input& weight,
                       const Output& dx);
void linear_weight_grad(const ProductSize& size, const Input& g, const Input& y, const Input& x,
                        const Output& dw);
void bias_grad(const Extent& extent, const Input& g, const Input& y, const Output& db);

// For SlidingWindows and for AdaptiveWindows.
template <typename Windows>
void max_pool2d(const Pooling2d<Windows>& pooling, const Input& x, const Output& y,
                const Output& argmax);
template <typename Windows>
void max_pool2d_gather(const Pooling2d<Windows>& pooling, const Input& x, const Input& argmax,
                       const Output& y);
template <typename Windows>
void max_pool2d_scatter(const Pooling2d<Windows>& pooling, const Input& g, const Input& argmax,
                        const Output& dx);
template <typename Windows>
void max_pool2d_indices(const Pooling2d<Windows>& pooling, const Input& argmax,
                        const Output& indices);
template <typename Windows>
void avg_pool2d(const Pooling2d<Windows>& pooling, const Divisor& divisor, const Input& x,
                const Output& y);
template <typename Windows>
void avg_pool2d_adjoint(const Pooling2d<Windows>& pooling, const Divisor& divisor, const Input& g,
                        const Output& dx);

// Where these are defined, for each kind of windows.
#define D2LOPS_INSTANTIATE_POOLING(Windows)                                                        \
  template void max_pool2d(const Pooling2d<Windows>&, const Input&, const Output&, const Output&); \
  template void max_pool2d_gather(const Pooling2d<Windows>&, const Input&, const Input&,           \
                                  const Output&);                                                  \
  template void max_pool2d_scatter(const Pooling2d<Windows>&, const Input&, const Input&,          \
                                   const Output&);                                                 \
  template void max_pool2d_indices(const Pooling2d<Windows>&, const Input&, const Output&);        \
  template void avg_pool2d(const Pooling2d<Windows>&, const Divisor&, const Input&,                \
                           const Output&);                                                         \
  template void avg_pool2d_adjoint(const Pooling2d<Windows>&, const Divisor&, const Input&,        \
                                   const Output&);

// The seed lies in the device's memory. `dims` describe x and y in logical order.
void dropout(const Input& x, const Output& y, const std::vector<Dim>& dims, const int64_t* seed,
             uint32_t threshold, double scale);
void fma_chain(const Input& x, const Output& y, int64_t count, int64_t rounds);

}  // namespace d2lops
