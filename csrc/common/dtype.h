// The element types that kernels know, on every device.
#pragma once

#include <cstdint>
#include <type_traits>

namespace d2lops {

enum class Dtype : uint8_t { float32, float64, bfloat16, float16, uint8, int32, int64 };

// 16-bit numbers live in memory only: kernels widen them to float, and round to nearest, ties to
// even, on the way back, as torch does.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What a kernel accumulates in.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f with a value of the element type, which only names the type: f(auto zero) { using T = ...
// }. Bindings have made sure that the type is one of these.
template <typename F>
inline void dispatch_float(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{});
    case Dtype::float64:
      return f(double{});
    case Dtype::bfloat16:
      return f(bfloat16{});
    default:
      return f(float16{});
  }
}
template <typename F>
inline void dispatch_argmax(Dtype dtype, F&& f) {
  dtype == Dtype::uint8 ? f(uint8_t{}) : f(int32_t{});
}

}  // namespace d2lops
