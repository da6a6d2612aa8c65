// Tensors as kernels see them: where the data is, and strides. Sizes come with the operator.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace d2lops {

// Strides of an (N, C, H, W) tensor, in elements. A matrix is (N, C).
struct Strides {
  int64_t n, c, h, w;
};

template <typename T>
struct Operand : Strides {
  T* data = nullptr;
};

// An operand whose element type is known at run time only; without data, it is absent.
template <typename Void>
struct AnyOperand : Strides {
  Void* data = nullptr;
  Dtype dtype{};

  template <typename T>
  auto as() const {
    using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
    return Operand<Element>{*this, static_cast<Element*>(data)};
  }
};
using Input = AnyOperand<const void>;
using Output = AnyOperand<void>;

// A layer's bias, or none.
struct Bias {
  const void* data = nullptr;
  int64_t stride = 1;
};

}  // namespace d2lops
