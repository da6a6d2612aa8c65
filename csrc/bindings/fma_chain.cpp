// The raw operator of the chain of multiply-adds: checks, the output, and the call of the device's
// kernel.
#include "bindings/tensor.h"

namespace d2lops {
namespace {

Tensor fma_chain_binding(const Tensor& x, int64_t rounds) {
  const char* op = "fma_chain";
  check_device(op, "x", x);
  check_float(op, x);
  D2LOPS_CHECK(x.is_contiguous(), op, ": x must be contiguous");
  D2LOPS_CHECK(rounds >= 0, op, ": rounds must be at least 0, got ", rounds);
  const OnDeviceOf device(x);
  Tensor y = empty(x, x.sizes(), x.scalar_type());
  if (y.numel() > 0) fma_chain(input(x), output(y), x.numel(), rounds);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("fma_chain", TORCH_BOX(&fma_chain_binding));
}

}  // namespace d2lops
