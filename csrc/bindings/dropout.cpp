// The raw operator of dropout: checks, the output, and the call of the device's kernel.
#include "bindings/tensor.h"
#include "common/philox.h"

namespace d2lops {
namespace {

// The fewest dimensions that describe both tensors, in logical order; size-1 dimensions are gone,
// and a dimension that continues the one inside it is merged with it.
std::vector<Dim> collapse(const Tensor& x, const Tensor& y) {
  std::vector<Dim> dims;
  int64_t logical_stride = 1;
  for (int64_t d = x.dim(); d-- > 0;) {
    const Dim dim{x.size(d), x.stride(d), y.stride(d), logical_stride};
    logical_stride *= dim.size;
    if (dim.size == 1) continue;
    if (!dims.empty() && dim.x_stride == dims.front().x_stride * dims.front().size &&
        dim.y_stride == dims.front().y_stride * dims.front().size) {
      dims.front().size *= dim.size;
    } else {
      dims.insert(dims.begin(), dim);
    }
  }
  if (dims.empty()) dims.push_back({1, 1, 1, 1});
  return dims;
}

Tensor dropout_binding(const Tensor& x, const Tensor& seed, double p) {
  const char* op = "dropout";
  check_device(op, "x", x);
  check_float(op, x);
  D2LOPS_CHECK(is_on_device(seed) && share_device(seed, x) &&
                   seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
               "dropout: seed must be an int64 tensor of one element on the device of x");
  D2LOPS_CHECK(p >= 0 && p <= 1, "dropout: p must be between 0 and 1, got ", p);
  const OnDeviceOf device(x);
  Tensor y =
      x.is_contiguous() ? empty(x, x.sizes(), x.scalar_type()) : torch::stable::empty_like(x);
  if (x.numel() == 0) return y;
  const uint64_t threshold = dropout_threshold(p);
  if (threshold >> 32) return torch::stable::zero_(y);  // no word reaches it
  dropout(input(x), output(y), collapse(x, y), static_cast<const int64_t*>(seed.const_data_ptr()),
          static_cast<uint32_t>(threshold), 1 / (1 - p));
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("dropout", TORCH_BOX(&dropout_binding));
}

}  // namespace d2lops
