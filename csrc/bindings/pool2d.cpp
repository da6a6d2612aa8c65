// The raw operators of pooling: checks, outputs, and the call of the device's kernels.
#include <tuple>

#include "bindings/tensor.h"

namespace d2lops {
namespace {

using Sliding = Pooling2d<SlidingWindows>;
using Adaptive = Pooling2d<AdaptiveWindows>;

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

void check_image(const char* op, const char* name, const Tensor& x) {
  check_dim(op, name, x, 4);
  for (int64_t d = 2; d < 4; ++d) {
    D2LOPS_CHECK(x.size(d) >= 1 && x.size(d) <= kMost, op, ": size ", d, " of ", name,
                 " must be between 1 and 2^31 - 1, got ", x.size(d));
  }
}

// The windows that a raw operator's argument describes, in planes like those of x; averages have no
// dilation.
Sliding sliding(const char* op, const Tensor& x, int64_t height, int64_t width, SizesRef window,
                bool dilated = true) {
  check_length(op, "window", window, dilated ? 10 : 8);
  check_at_least(op, "kernel", {window[0], window[1]}, 1);
  check_at_least(op, "stride", {window[2], window[3]}, 1);
  check_at_least(op, "padding", {window[4], window[5], window[6], window[7]}, 0);
  if (dilated) check_at_least(op, "dilation", {window[8], window[9]}, 1);
  for (int64_t axis : {0, 1}) {
    const int64_t span = (window[axis] - 1) * (dilated ? window[8 + axis] : 1) + 1;
    D2LOPS_CHECK(2 * window[4 + 2 * axis] <= span && 2 * window[5 + 2 * axis] <= span, op,
                 ": padding must be at most half of the window");
  }
  D2LOPS_CHECK(window[0] * window[1] <= kMost, op, ": the window has more than 2^31 - 1 elements");
  return {{height, 0, window[0], window[2], window[4], window[5], dilated ? window[8] : 1},
          {width, 0, window[1], window[3], window[6], window[7], dilated ? window[9] : 1},
          x.size(0),
          x.size(1)};
}

void set_outputs(const char* op, Sliding& pooling, bool ceil_mode) {
  pooling.rows.outputs = pooling.rows.count(ceil_mode);
  pooling.columns.outputs = pooling.columns.count(ceil_mode);
  D2LOPS_CHECK(pooling.rows.outputs >= 1 && pooling.columns.outputs >= 1, op,
               ": the window is larger than the padded input");
}

// Takes the output's sizes from a tensor that should have them, in whichever mode.
void set_outputs(const char* op, Sliding& pooling, const char* name, const Tensor& y) {
  pooling.rows.outputs = y.size(2);
  pooling.columns.outputs = y.size(3);
  for (const SlidingWindows* windows : {&pooling.rows, &pooling.columns}) {
    D2LOPS_CHECK(
        windows->outputs == windows->count(false) || windows->outputs == windows->count(true), op,
        ": ", name, " does not have the size that the other arguments give it");
  }
}

Adaptive adaptive(const Tensor& x, Pair inputs, Pair outputs) {
  return {{inputs.h, outputs.h}, {inputs.w, outputs.w}, x.size(0), x.size(1)};
}

Pair size_of(const Tensor& x) { return {x.size(2), x.size(3)}; }

template <typename Windows>
Sizes input_size(const Pooling2d<Windows>& pooling) {
  return {pooling.images, pooling.channels, pooling.rows.inputs, pooling.columns.inputs};
}
template <typename Windows>
Sizes output_size(const Pooling2d<Windows>& pooling) {
  return {pooling.images, pooling.channels, pooling.rows.outputs, pooling.columns.outputs};
}

template <typename Windows>
void check_taps(const char* op, const Pooling2d<Windows>& pooling) {
  D2LOPS_CHECK(pooling.taps() <= kMost, op, ": the window has more than 2^31 - 1 elements");
}
template <typename Windows>
void check_taps(const char* op, const Pooling2d<Windows>& pooling, const Tensor& argmax) {
  check_taps(op, pooling);
  D2LOPS_CHECK(pooling.taps() <= 255 || argmax.scalar_type() == ScalarType::Int, op,
               ": argmax must be an int32 tensor for windows of ", pooling.taps(), " elements");
}

void check_argmax(const char* op, const Tensor& argmax) {
  check_dim(op, "argmax", argmax, 4);
  D2LOPS_CHECK(argmax.scalar_type() == ScalarType::Byte || argmax.scalar_type() == ScalarType::Int,
               op, ": argmax must be a uint8 or int32 tensor");
}

// Max-pooling and its three companions, for either kind of windows.

template <typename Windows>
std::tuple<Tensor, Tensor> max_forward(const char* op, const Tensor& x,
                                       const Pooling2d<Windows>& pooling) {
  check_float(op, x);
  check_taps(op, pooling);
  D2LOPS_CHECK(x.size(1) >= 1, op, ": x must have channels");
  const OnDeviceOf device(x);
  const Sizes size = output_size(pooling);
  const bool channels_last = is_channels_last(x);
  const ScalarType index = pooling.taps() <= 255 ? ScalarType::Byte : ScalarType::Int;
  Tensor y = empty(x, size, x.scalar_type(), channels_last);
  Tensor argmax = empty(x, size, index, channels_last);
  if (y.numel() > 0) max_pool2d(pooling, input(x), output(y), output(argmax));
  return {y, argmax};
}

template <typename Windows>
Tensor max_gather(const char* op, const Tensor& x, const Tensor& argmax,
                  const Pooling2d<Windows>& pooling) {
  check_float(op, x);
  check_argmax(op, argmax);
  check_sizes(op, "argmax", argmax, output_size(pooling));
  check_taps(op, pooling, argmax);
  const OnDeviceOf device(x);
  Tensor y = empty(x, output_size(pooling), x.scalar_type(), is_channels_last(x));
  if (y.numel() > 0) max_pool2d_gather(pooling, input(x), input(argmax), output(y));
  return y;
}

template <typename Windows>
Tensor max_scatter(const char* op, const Tensor& g, const Tensor& argmax,
                   const Pooling2d<Windows>& pooling) {
  check_float(op, g);
  check_argmax(op, argmax);
  check_sizes(op, "argmax", argmax, output_size(pooling));
  check_taps(op, pooling, argmax);
  check_at_least(op, "input_size", {pooling.rows.inputs, pooling.columns.inputs}, 1);
  const OnDeviceOf device(g);
  Tensor dx = empty(g, input_size(pooling), g.scalar_type(), is_channels_last(g));
  if (dx.numel() > 0) max_pool2d_scatter(pooling, input(g), input(argmax), output(dx));
  return dx;
}

// Where in its plane (h * width + w) each argmax points.
template <typename Windows>
Tensor max_indices(const char* op, const Tensor& argmax, const Pooling2d<Windows>& pooling) {
  check_argmax(op, argmax);
  check_taps(op, pooling, argmax);
  check_at_least(op, "input_size", {pooling.rows.inputs, pooling.columns.inputs}, 1);
  const OnDeviceOf device(argmax);
  Tensor indices = empty(argmax, output_size(pooling), ScalarType::Long, is_channels_last(argmax));
  if (indices.numel() > 0) max_pool2d_indices(pooling, input(argmax), output(indices));
  return indices;
}

std::tuple<Tensor, Tensor> max_pool2d_binding(const Tensor& x, Sizes window, bool ceil_mode) {
  const char* op = "max_pool2d";
  check_image(op, "x", x);
  auto pooling = sliding(op, x, x.size(2), x.size(3), window);
  set_outputs(op, pooling, ceil_mode);
  return max_forward(op, x, pooling);
}

Tensor max_pool2d_gather_binding(const Tensor& x, const Tensor& argmax, Sizes window) {
  const char* op = "max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  auto pooling = sliding(op, x, x.size(2), x.size(3), window);
  set_outputs(op, pooling, "argmax", argmax);
  return max_gather(op, x, argmax, pooling);
}

Tensor max_pool2d_scatter_binding(const Tensor& g, const Tensor& argmax, int64_t height,
                                  int64_t width, Sizes window) {
  const char* op = "max_pool2d_scatter";
  check_image(op, "g", g);
  check_at_least(op, "input_size", {height, width}, 1);
  auto pooling = sliding(op, g, height, width, window);
  set_outputs(op, pooling, "g", g);
  return max_scatter(op, g, argmax, pooling);
}

Tensor max_pool2d_indices_binding(const Tensor& argmax, int64_t height, int64_t width,
                                  Sizes window) {
  const char* op = "max_pool2d_indices";
  check_image(op, "argmax", argmax);
  check_at_least(op, "input_size", {height, width}, 1);
  auto pooling = sliding(op, argmax, height, width, window);
  set_outputs(op, pooling, "argmax", argmax);
  return max_indices(op, argmax, pooling);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d_binding(const Tensor& x, int64_t height,
                                                       int64_t width) {
  const char* op = "adaptive_max_pool2d";
  check_image(op, "x", x);
  check_at_least(op, "output_size", {height, width}, 0);
  return max_forward(op, x, adaptive(x, size_of(x), {height, width}));
}

Tensor adaptive_max_pool2d_gather_binding(const Tensor& x, const Tensor& argmax) {
  const char* op = "adaptive_max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  return max_gather(op, x, argmax, adaptive(x, size_of(x), size_of(argmax)));
}

Tensor adaptive_max_pool2d_scatter_binding(const Tensor& g, const Tensor& argmax, int64_t height,
                                           int64_t width) {
  const char* op = "adaptive_max_pool2d_scatter";
  check_dim(op, "g", g, 4);
  return max_scatter(op, g, argmax, adaptive(g, {height, width}, size_of(g)));
}

Tensor adaptive_max_pool2d_indices_binding(const Tensor& argmax, int64_t height, int64_t width) {
  const char* op = "adaptive_max_pool2d_indices";
  check_argmax(op, argmax);
  return max_indices(op, argmax, adaptive(argmax, {height, width}, size_of(argmax)));
}

// Averages, for either kind of windows.

template <typename Windows>
Tensor average(const char* op, const Tensor& x, const Pooling2d<Windows>& pooling,
               const Divisor& divisor) {
  check_float(op, x);
  const OnDeviceOf device(x);
  Tensor y = empty(x, output_size(pooling), x.scalar_type(), is_channels_last(x));
  if (y.numel() > 0) avg_pool2d(pooling, divisor, input(x), output(y));
  return y;
}

template <typename Windows>
Tensor average_adjoint(const char* op, const Tensor& g, const Pooling2d<Windows>& pooling,
                       const Divisor& divisor) {
  check_float(op, g);
  check_at_least(op, "input_size", {pooling.rows.inputs, pooling.columns.inputs}, 1);
  const OnDeviceOf device(g);
  Tensor dx = empty(g, input_size(pooling), g.scalar_type(), is_channels_last(g));
  if (dx.numel() > 0) avg_pool2d_adjoint(pooling, divisor, input(g), output(dx));
  return dx;
}

Divisor divisor_of(const char* op, bool count_include_pad, std::optional<int64_t> override) {
  D2LOPS_CHECK(!override || *override != 0, op, ": divisor must not be zero");
  return {count_include_pad, override.value_or(0)};
}

Tensor avg_pool2d_binding(const Tensor& x, Sizes window, bool count_include_pad,
                          std::optional<int64_t> divisor, bool ceil_mode) {
  const char* op = "avg_pool2d";
  check_image(op, "x", x);
  D2LOPS_CHECK(x.size(1) >= 1, op, ": x must have channels");
  auto pooling = sliding(op, x, x.size(2), x.size(3), window, false);
  set_outputs(op, pooling, ceil_mode);
  return average(op, x, pooling, divisor_of(op, count_include_pad, divisor));
}

Tensor avg_pool2d_adjoint_binding(const Tensor& g, int64_t height, int64_t width, Sizes window,
                                  bool count_include_pad, std::optional<int64_t> divisor) {
  const char* op = "avg_pool2d_adjoint";
  check_image(op, "g", g);
  check_at_least(op, "input_size", {height, width}, 1);
  auto pooling = sliding(op, g, height, width, window, false);
  set_outputs(op, pooling, "g", g);
  return average_adjoint(op, g, pooling, divisor_of(op, count_include_pad, divisor));
}

Tensor adaptive_avg_pool2d_binding(const Tensor& x, int64_t height, int64_t width) {
  const char* op = "adaptive_avg_pool2d";
  check_image(op, "x", x);
  check_at_least(op, "output_size", {height, width}, 0);
  return average(op, x, adaptive(x, size_of(x), {height, width}), {});
}

Tensor adaptive_avg_pool2d_adjoint_binding(const Tensor& g, int64_t height, int64_t width) {
  const char* op = "adaptive_avg_pool2d_adjoint";
  check_dim(op, "g", g, 4);
  return average_adjoint(op, g, adaptive(g, {height, width}, size_of(g)), {});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, D2LOPS_DISPATCH_KEY, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d_binding));
  m.impl("max_pool2d_gather", TORCH_BOX(&max_pool2d_gather_binding));
  m.impl("max_pool2d_scatter", TORCH_BOX(&max_pool2d_scatter_binding));
  m.impl("max_pool2d_indices", TORCH_BOX(&max_pool2d_indices_binding));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&adaptive_max_pool2d_binding));
  m.impl("adaptive_max_pool2d_gather", TORCH_BOX(&adaptive_max_pool2d_gather_binding));
  m.impl("adaptive_max_pool2d_scatter", TORCH_BOX(&adaptive_max_pool2d_scatter_binding));
  m.impl("adaptive_max_pool2d_indices", TORCH_BOX(&adaptive_max_pool2d_indices_binding));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d_binding));
  m.impl("avg_pool2d_adjoint", TORCH_BOX(&avg_pool2d_adjoint_binding));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&adaptive_avg_pool2d_binding));
  m.impl("adaptive_avg_pool2d_adjoint", TORCH_BOX(&adaptive_avg_pool2d_adjoint_binding));
}

}  // namespace d2lops
