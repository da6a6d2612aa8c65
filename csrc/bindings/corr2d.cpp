// The raw operators of corr2d: checks, outputs, and the call of the device's kernels.
#include <array>

#include "bindings/tensor.h"

namespace d2lops {
namespace {

// Sizes from the arguments of a raw operator, or an error.
Geometry geometry(const char* op, SizesRef input, SizesRef weight, SizesRef window) {
  check_length(op, "window", window, 9);
  const int64_t groups = window[8];
  check_at_least(op, "stride", {window[0], window[1]}, 1);
  check_at_least(op, "padding", {window[2], window[3], window[4], window[5]}, 0);
  check_at_least(op, "dilation", {window[6], window[7]}, 1);
  check_at_least(op, "groups", {groups}, 1);
  check_at_least(op, "the size of the input", input, 0);
  check_at_least(op, "the size of the weight", weight, 0);
  D2LOPS_CHECK(weight[2] > 0 && weight[3] > 0, op, ": the kernel must not be empty");
  D2LOPS_CHECK(weight[0] % groups == 0, op, ": groups = ", groups, " must divide the ", weight[0],
               " output channels");
  D2LOPS_CHECK(input[1] == weight[1] * groups, op, ": expected ", weight[1] * groups,
               " input channels, got ", input[1]);
  Geometry geo{input[0],
               groups,
               weight[1],
               weight[0] / groups,
               {input[2], input[3]},
               {},
               {weight[2], weight[3]},
               {window[0], window[1]},
               {window[6], window[7]},
               {window[2], window[4]},
               {window[3], window[5]}};
  const auto outputs = [op](int64_t size, int64_t before, int64_t after, int64_t kernel,
                            int64_t stride, int64_t dilation) {
    const int64_t room = size + before + after - dilation * (kernel - 1) - 1;
    D2LOPS_CHECK(room >= 0, op, ": the kernel, dilated, is larger than the padded input");
    return room / stride + 1;
  };
  geo.output.h =
      outputs(geo.input.h, geo.before.h, geo.after.h, geo.kernel.h, geo.stride.h, geo.dilation.h);
  geo.output.w =
      outputs(geo.input.w, geo.before.w, geo.after.w, geo.kernel.w, geo.stride.w, geo.dilation.w);
  if (geo.in * geo.out == 0) geo.kernel = {0, 0};  // no weights, so no taps to list
  return geo;
}

// The number of groups, before the rest is known to make sense.
int64_t groups_of(const char* op, SizesRef window) {
  check_length(op, "window", window, 9);
  check_at_least(op, "groups", {window[8]}, 1);
  return window[8];
}

Tensor corr2d_binding(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      Sizes window, bool relu, bool tf32) {
  const char* op = "corr2d";
  check_dim(op, "x", x, 4);
  check_dim(op, "weight", weight, 4);
  check_float(op, x);
  check_like(op, "weight", weight, x);
  Geometry geo = geometry(op, x.sizes(), weight.sizes(), window);
  geo.tf32 = tf32;
  D2LOPS_CHECK(weight.size(0) > 0, op, ": weight must have output channels");
  check_bias(op, bias, weight);
  const OnDeviceOf device(x);
  Tensor y = empty(x, {geo.images, weight.size(0), geo.output.h, geo.output.w}, x.scalar_type(),
                   is_channels_last(x) || is_channels_last(weight));
  corr2d(geo, input(x), input(weight), bias_of(bias), relu, output(y));
  return y;
}

Tensor corr2d_input_grad_binding(const Tensor& g, const std::optional<Tensor>& y,
                                 const Tensor& weight, int64_t height, int64_t width, Sizes window,
                                 bool tf32) {
  const char* op = "corr2d_input_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "weight", weight, 4);
  check_float(op, g);
  check_like(op, "weight", weight, g);
  check_mask(op, g, y);
  const std::array<int64_t, 4> size{g.size(0), weight.size(1) * groups_of(op, window), height,
                                    width};
  Geometry geo = geometry(op, size, weight.sizes(), window);
  geo.tf32 = tf32;
  check_sizes(op, "g", g, {geo.images, weight.size(0), geo.output.h, geo.output.w});
  const OnDeviceOf device(g);
  Tensor dx = empty(g, size, g.scalar_type(), is_channels_last(g) || is_channels_last(weight));
  if (dx.numel() > 0) corr2d_input_grad(geo, input(g), input(y), input(weight), output(dx));
  return dx;
}

Tensor corr2d_weight_grad_binding(const Tensor& g, const std::optional<Tensor>& y, const Tensor& x,
                                  int64_t height, int64_t width, Sizes window, bool tf32) {
  const char* op = "corr2d_weight_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "x", x, 4);
  check_float(op, g);
  check_like(op, "x", x, g);
  check_mask(op, g, y);
  const int64_t groups = groups_of(op, window);
  D2LOPS_CHECK(x.size(1) % groups == 0, op, ": groups = ", groups, " must divide the ", x.size(1),
               " input channels");
  const std::array<int64_t, 4> size{g.size(1), x.size(1) / groups, height, width};
  Geometry geo = geometry(op, x.sizes(), size, window);
  geo.tf32 = tf32;
  check_sizes(op, "g", g, {geo.images, size[0], geo.output.h, geo.output.w});
  const OnDeviceOf device(g);
  Tensor dw = empty(g, size, g.scalar_type());
  corr2d_weight_grad(geo, input(g), input(y), input(x), output(dw));
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("corr2d", TORCH_BOX(&corr2d_binding));
  m.impl("corr2d_input_grad", TORCH_BOX(&corr2d_input_grad_binding));
  m.impl("corr2d_weight_grad", TORCH_BOX(&corr2d_weight_grad_binding));
}

}  // namespace d2lops
