// What the bindings need: checks, outputs, and tensors as kernels see them. Every library compiles
// the same bindings, for the device whose kernels it holds; kernels include nothing of torch here.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "operators.h"

namespace d2lops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;
using SizesRef = torch::headeronly::IntHeaderOnlyArrayRef;  // Sizes that something else owns

#define D2LOPS_CHECK STD_TORCH_CHECK

// setup.py says which device a library is for.
#if defined(D2LOPS_CUDA)
#  define D2LOPS_DISPATCH_KEY CUDA
constexpr const char* kDevice = "CUDA";
inline bool is_on_device(const Tensor& x) { return x.is_cuda(); }
inline bool share_device(const Tensor& x, const Tensor& y) {
  return x.get_device_index() == y.get_device_index();
}

// Makes the device of x the current one, until the end of the scope.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& x) : guard_(x.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};
#else
#  define D2LOPS_DISPATCH_KEY CPU
constexpr const char* kDevice = "CPU";
inline bool is_on_device(const Tensor& x) { return x.is_cpu(); }
inline bool share_device(const Tensor&, const Tensor&) { return true; }

struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
};
#endif

inline void check_device(const char* op, const char* name, const Tensor& x) {
  D2LOPS_CHECK(is_on_device(x), op, ": ", name, " must be a ", kDevice, " tensor");
}
inline void check_dim(const char* op, const char* name, const Tensor& x, int64_t dim) {
  check_device(op, name, x);
  D2LOPS_CHECK(x.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got ", x.dim());
}
inline void check_float(const char* op, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  D2LOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                   type == ScalarType::BFloat16 || type == ScalarType::Half,
               op, ": expected a float32, float64, bfloat16 or float16 tensor");
}
inline void check_like(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  check_device(op, name, x);
  D2LOPS_CHECK(share_device(x, like), op, ": ", name, " is on another device than its partner");
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
  check_like(op, "y", *y, g);
  check_sizes(op, "y", *y, g.sizes());
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& weight) {
  if (!bias) return;
  check_like(op, "bias", *bias, weight);
  check_sizes(op, "bias", *bias, {weight.size(0)});
}

// Whether an image's channels lie side by side in memory, in which case outputs do as well.
// d2lops/ops/_layout.py has the same rule for the compiler.
inline bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
}

// Uninitialised, on the device of `like`: contiguous, or with the channels of a 4-dimensional
// tensor innermost.
inline Tensor empty(const Tensor& like, SizesRef sizes, ScalarType dtype,
                    bool channels_last = false) {
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
#if defined(D2LOPS_CUDA)
  const int32_t device = aoti_torch_device_type_cuda(), index = like.get_device_index();
#else
  const int32_t device = aoti_torch_device_type_cpu(), index = 0;
  (void)like;
#endif
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), code, device,
                                                         index, &handle));
  return Tensor(handle);
}

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::Byte:
      return Dtype::uint8;
    case ScalarType::Int:
      return Dtype::int32;
    default:
      return Dtype::int64;
  }
}

inline Strides strides_of(const Tensor& x) {
  const auto stride = [&x](int64_t dim) { return dim < x.dim() ? x.stride(dim) : 0; };
  return {stride(0), stride(1), stride(2), stride(3)};
}
inline Input input(const Tensor& x) { return {strides_of(x), x.const_data_ptr(), dtype_of(x)}; }
inline Input input(const std::optional<Tensor>& x) { return x ? input(*x) : Input{}; }
inline Output output(const Tensor& x) { return {strides_of(x), x.mutable_data_ptr(), dtype_of(x)}; }
inline Bias bias_of(const std::optional<Tensor>& x) {
  return x ? Bias{x->const_data_ptr(), x->stride(0)} : Bias{};
}

}  // namespace d2lops
