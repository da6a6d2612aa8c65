// The raw operators of linear and linear + ReLU: checks, outputs, and the call of the device's
// kernels.
#include "bindings/tensor.h"

namespace d2lops {
namespace {

template <bool relu>
Tensor linear_binding(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      bool tf32) {
  const char* op = relu ? "linear_relu" : "linear";
  check_dim(op, "x", x, 2);
  check_dim(op, "weight", weight, 2);
  check_float(op, x);
  check_like(op, "weight", weight, x);
  const ProductSize size{x.size(0), weight.size(0), x.size(1), tf32};
  check_sizes(op, "weight", weight, {size.columns, size.depth});
  check_bias(op, bias, weight);
  const OnDeviceOf device(x);
  Tensor y = empty(x, {size.rows, size.columns}, x.scalar_type());
  if (y.numel() > 0) linear(size, input(x), input(weight), bias_of(bias), relu, output(y));
  return y;
}

Tensor linear_input_grad_binding(const Tensor& g, const std::optional<Tensor>& y,
                                 const Tensor& weight, bool tf32) {
  const char* op = "linear_input_grad";
  check_dim(op, "g", g, 2);
  check_dim(op, "weight", weight, 2);
  check_float(op, g);
  check_like(op, "weight", weight, g);
  check_mask(op, g, y);
  const ProductSize size{g.size(0), weight.size(1), g.size(1), tf32};
  check_sizes(op, "weight", weight, {size.depth, size.columns});
  const OnDeviceOf device(g);
  Tensor dx = empty(g, {size.rows, size.columns}, g.scalar_type());
  if (dx.numel() > 0) linear_input_grad(size, input(g), input(y), input(weight), output(dx));
  return dx;
}

Tensor linear_weight_grad_binding(const Tensor& g, const std::optional<Tensor>& y, const Tensor& x,
                                  bool tf32) {
  const char* op = "linear_weight_grad";
  check_dim(op, "g", g, 2);
  check_dim(op, "x", x, 2);
  check_float(op, g);
  check_like(op, "x", x, g);
  check_mask(op, g, y);
  const ProductSize size{g.size(1), x.size(1), g.size(0), tf32};
  check_sizes(op, "x", x, {size.depth, size.columns});
  const OnDeviceOf device(g);
  Tensor dw = empty(g, {size.rows, size.columns}, g.scalar_type());
  if (dw.numel() > 0) linear_weight_grad(size, input(g), input(y), input(x), output(dw));
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("linear", TORCH_BOX(&linear_binding<false>));
  m.impl("linear_relu", TORCH_BOX(&linear_binding<true>));
  m.impl("linear_input_grad", TORCH_BOX(&linear_input_grad_binding));
  m.impl("linear_weight_grad", TORCH_BOX(&linear_weight_grad_binding));
}

}  // namespace d2lops
