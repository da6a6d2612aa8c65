// Two-dimensional cross-correlation (D2L 7), and the two other maps of the trilinear form
// <corr2d(x, w), g>. With h = a sh + r dh - top and v = b sw + s dw - left:
//
//   corr2d        y[n, k, a, b]  = bias[k] + sum over c, r, s of    w[k, c, r, s] x[n, c, h, v]
//   input grad    dx[n, c, h, v] = sum over k and all r, s, a, b    w[k, c, r, s] g[n, k, a, b]
//                                  that meet (h, v) of
//   weight grad   dw[k, c, r, s] = sum over n, a, b of              g[n, k, a, b] x[n, c, h, v]
//
// Several ways, by sizes alone: Winograd's transforms (winograd.h, winograd_weight_grad.h: windows
// of 3 x 3 over many channels); the blocked product of gemm.h over the im2col matrix, packed a few
// kilobytes at a time (im2col.h: windows of one place, small outputs), or read in place from padded
// slabs (padded.h: most windows; products.h, padded_weight_grad.h: their weight gradients); and
// direct sums for depthwise layers (depthwise.h). The input gradient runs once per phase of the
// stride, (h + top) mod sh and (v + left) mod sw, in which a fixed set of window places meets the
// pixels, so that a strided layer's gradient multiplies no zeros. The weight gradient sums over
// pixels, in parts whose results are added in a fixed order.
//
// Flops: 2 C R S per output, less by transforms. The FMA units are the limit, but for few channels,
// where packing or main memory is.
#include <array>

#include "cpu/correlate.h"
#include "cpu/tensor.h"
#include "cpu/weight_grad.h"

namespace d2lops {
namespace {

Strides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

template <typename T>
Plane<T> plane(const std::optional<Tensor>& y) {
  return y ? Plane<T>{data<T>(*y), strides_of(*y)} : Plane<T>{};
}

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

Tensor corr2d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  Sizes window, bool relu) {
  const char* op = "corr2d";
  check_dim(op, "x", x, 4);
  check_dim(op, "weight", weight, 4);
  check_same_dtype(op, "weight", weight, x);
  const Geometry geo = geometry(op, x.sizes(), weight.sizes(), window);
  D2LOPS_CHECK(weight.size(0) > 0, op, ": weight must have output channels");
  if (bias) {
    check_same_dtype(op, "bias", *bias, x);
    check_sizes(op, "bias", *bias, {weight.size(0)});
  }
  Tensor y = empty({geo.images, weight.size(0), geo.output.h, geo.output.w}, x.scalar_type(),
                   is_channels_last(x) || is_channels_last(weight));
  dispatch_dtype(op, x, [&](auto zero) {
    using T = decltype(zero);
    Epilogue<T> epilogue;
    if (bias) epilogue.bias = data<T>(*bias), epilogue.bias_stride = bias->stride(0);
    epilogue.relu = relu;
    corr2d(geo, data<T>(x), strides_of(x), data<T>(weight), strides_of(weight), epilogue,
           mutable_data<T>(y), strides_of(y));
  });
  return y;
}

Tensor corr2d_input_grad_cpu(const Tensor& g, const std::optional<Tensor>& y, const Tensor& weight,
                             int64_t height, int64_t width, Sizes window) {
  const char* op = "corr2d_input_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "weight", weight, 4);
  check_same_dtype(op, "weight", weight, g);
  check_mask(op, g, y);
  const std::array<int64_t, 4> input{g.size(0), weight.size(1) * groups_of(op, window), height,
                                     width};
  const Geometry geo = geometry(op, input, weight.sizes(), window);
  check_sizes(op, "g", g, {geo.images, weight.size(0), geo.output.h, geo.output.w});
  Tensor dx = empty(input, g.scalar_type(), is_channels_last(g) || is_channels_last(weight));
  if (dx.numel() == 0) return dx;
  dispatch_dtype(op, g, [&](auto zero) {
    using T = decltype(zero);
    corr2d_input_grad(geo, data<T>(g), strides_of(g), plane<T>(y), data<T>(weight),
                      strides_of(weight), mutable_data<T>(dx), strides_of(dx));
  });
  return dx;
}

Tensor corr2d_weight_grad_cpu(const Tensor& g, const std::optional<Tensor>& y, const Tensor& x,
                              int64_t height, int64_t width, Sizes window) {
  const char* op = "corr2d_weight_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "x", x, 4);
  check_same_dtype(op, "x", x, g);
  check_mask(op, g, y);
  const int64_t groups = groups_of(op, window);
  D2LOPS_CHECK(x.size(1) % groups == 0, op, ": groups = ", groups, " must divide the ", x.size(1),
               " input channels");
  const std::array<int64_t, 4> weight{g.size(1), x.size(1) / groups, height, width};
  const Geometry geo = geometry(op, x.sizes(), weight, window);
  check_sizes(op, "g", g, {geo.images, weight[0], geo.output.h, geo.output.w});
  Tensor dw = empty(weight, g.scalar_type());
  dispatch_dtype(op, g, [&](auto zero) {
    using T = decltype(zero);
    corr2d_weight_grad(geo, data<T>(g), strides_of(g), plane<T>(y), data<T>(x), strides_of(x),
                       mutable_data<T>(dw));
  });
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, CPU, m) {
  m.impl("corr2d", TORCH_BOX(&corr2d_cpu));
  m.impl("corr2d_input_grad", TORCH_BOX(&corr2d_input_grad_cpu));
  m.impl("corr2d_weight_grad", TORCH_BOX(&corr2d_weight_grad_cpu));
}

}  // namespace d2lops
