// What the bindings need: checks, outputs, dispatch over dtypes. Kernels do not include this file.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace d2lops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using SizesRef = torch::headeronly::IntHeaderOnlyArrayRef;  // Sizes that something else owns

#define D2LOPS_CHECK STD_TORCH_CHECK

// Calls f with a value of the element type, which only names the type: f(auto zero) { using T = ...
// }.
template <typename F>
inline void dispatch_dtype(const char* op, const Tensor& x, F&& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Half:
      return f(float16{});
    default:
      D2LOPS_CHECK(false, op, ": expected a float32, float64, bfloat16 or float16 tensor");
  }
}

template <typename T>
inline const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <typename T>
inline T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline void check_dim(const char* op, const char* name, const Tensor& x, int64_t dim) {
  D2LOPS_CHECK(x.is_cpu(), op, ": ", name, " must be a CPU tensor");
  D2LOPS_CHECK(x.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got ", x.dim());
}
inline void check_same_dtype(const char* op, const char* name, const Tensor& x,
                             const Tensor& like) {
  D2LOPS_CHECK(x.is_cpu(), op, ": ", name, " must be a CPU tensor");
  D2LOPS_CHECK(x.scalar_type() == like.scalar_type(), op, ": ", name,
               " has another dtype than its partner");
}
inline void check_length(const char* op, const char* name, SizesRef list, size_t length) {
  D2LOPS_CHECK(list.size() == length, op, ": ", name, " must have ", length, " numbers, got ",
               list.size());
}
inline void check_at_least(const char* op, const char* name, SizesRef list, int64_t least) {
  for (int64_t value : list) {
    D2LOPS_CHECK(value >= least && value <= std::numeric_limits<int32_t>::max(), op, ": ", name,
                 " must be between ", least, " and 2^31 - 1, got ", value);
  }
}
inline void check_sizes(const char* op, const char* name, const Tensor& x, SizesRef sizes) {
  D2LOPS_CHECK(x.sizes() == sizes, op, ": ", name,
               " does not have the size that the other arguments give it");
}

// y, the output of a ReLU that masks g, must look like g.
inline void check_mask(const char* op, const Tensor& g, const std::optional<Tensor>& y) {
  if (!y) return;
  check_same_dtype(op, "y", *y, g);
  check_sizes(op, "y", *y, g.sizes());
}

// Whether an image's channels lie side by side in memory, in which case outputs do as well.
// d2lops/ops/_layout.py has the same rule for the compiler.
inline bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

// Uninitialised: contiguous, or with the channels of a 4-dimensional tensor innermost.
inline Tensor empty(SizesRef sizes, ScalarType dtype, bool channels_last = false) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  auto place = [&](size_t dim) {
    strides[dim] = stride;
    D2LOPS_CHECK(!__builtin_mul_overflow(stride, sizes[dim] > 1 ? sizes[dim] : 1, &stride),
                 "the size of the output overflows");
  };
  if (channels_last) {
    for (size_t dim : {1, 3, 2, 0}) place(dim);
  } else {
    for (size_t dim = sizes.size(); dim-- > 0;) place(dim);
  }
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

}  // namespace d2lops
