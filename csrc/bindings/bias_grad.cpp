// The raw operator of a bias's gradient: checks, the output, and the call of the device's kernel.
#include "bindings/tensor.h"

namespace d2lops {
namespace {

Tensor bias_grad_binding(const Tensor& g, const std::optional<Tensor>& y) {
  const char* op = "bias_grad";
  check_device(op, "g", g);
  D2LOPS_CHECK(g.dim() == 2 || g.dim() == 4, op, ": g must have 2 or 4 dimensions, got ", g.dim());
  check_float(op, g);
  check_mask(op, g, y);
  const bool image = g.dim() == 4;
  const Extent extent{g.size(0), g.size(1), image ? g.size(2) : 1, image ? g.size(3) : 1};
  const OnDeviceOf device(g);
  Tensor db = empty(g, {extent.channels}, g.scalar_type());
  bias_grad(extent, input(g), input(y), output(db));
  return db;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("bias_grad", TORCH_BOX(&bias_grad_binding));
}

}  // namespace d2lops
