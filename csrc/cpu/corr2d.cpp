// Two-dimensional cross-correlation (D2L 7), and the two other maps of the trilinear form
// <corr2d(x, w), g>:
//
//   corr2d         y[n, k, a, b] = bias[k] + sum over c, r, s of w[k, c, r, s] x[n, c, a sh + r dh
//   - top, b sw + s dw - left] input grad     dx[n, c, h, w] = sum over k and all (r, s, a, b) that
//   meet (h, w) of w[k, c, r, s] g[n, k, a, b] weight grad    dw[k, c, r, s] = sum over n, a, b of
//   g[n, k, a, b] x[n, c, a sh + r dh - top, b sw + s dw - left]
//
// Each is the blocked product of gemm.h over the im2col matrix of im2col.h, packed from the image a
// few kilobytes at a time. Forward and input gradient sum over taps; the latter runs once per phase
// of the stride, (h + top) mod sh and (w + left) mod sw, in which a fixed set of window places
// meets the pixels, so that a strided convolution's gradient multiplies no zeros. The weight
// gradient sums over pixels, a long and narrow product, in chunks whose partial results are added
// in a fixed order. Flops 2 N K C R S per output pixel; the FMA units are the limit but for few
// channels, where packing is.
#include <numeric>

#include "cpu/gemm.h"
#include "cpu/im2col.h"
#include "cpu/tensor.h"

namespace d2lops {
namespace {

struct Pair {
  int64_t h, w;
};

// One call's sizes. Channels are per group: `in` and `out`.
struct Geometry {
  int64_t images, groups, in, out;
  Pair input, output, kernel, stride, dilation, before, after;  // padding before and after
};

// y with the strides of its image, or none.
template <typename T>
struct Plane {
  const T* data = nullptr;
  Strides strides{};
};

Strides strides_of(const Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

template <typename T>
Plane<T> plane(const std::optional<Tensor>& y) {
  return y ? Plane<T>{data<T>(*y), strides_of(*y)} : Plane<T>{};
}

// Taps for `planes` planes and the places of a window given by (r, dh) and (s, dw), in the order in
// which the image lies in memory: planes innermost if channels are, else outermost.
struct Place {
  int64_t index, shift;
};
std::vector<Tap> make_taps(int64_t planes, const std::vector<Place>& rows,
                           const std::vector<Place>& cols, const Strides& image,
                           const Strides& mask, int64_t weight_plane, const Strides& weight,
                           bool planes_innermost) {
  std::vector<Tap> taps;
  taps.reserve(planes * rows.size() * cols.size());
  const auto add = [&](int64_t plane, const Place& r, const Place& s) {
    taps.push_back({plane * image.c + r.shift * image.h + s.shift * image.w,
                    plane * mask.c + r.shift * mask.h + s.shift * mask.w,
                    plane * weight_plane + r.index * weight.h + s.index * weight.w, r.shift,
                    s.shift});
  };
  if (planes_innermost) {
    for (const Place& r : rows)
      for (const Place& s : cols)
        for (int64_t p = 0; p < planes; ++p) add(p, r, s);
  } else {
    for (int64_t p = 0; p < planes; ++p)
      for (const Place& r : rows)
        for (const Place& s : cols) add(p, r, s);
  }
  return taps;
}

// Window places of the forward direction along one axis: tap r reads r * dilation - before.
std::vector<Place> window(int64_t kernel, int64_t dilation, int64_t before) {
  std::vector<Place> places;
  for (int64_t r = 0; r < kernel; ++r) places.push_back({r, r * dilation - before});
  return places;
}

// Window places that meet the inputs of one phase, i = phase, phase + stride, ...: with i = phase +
// a * stride, tap r meets output a + (phase + before - r * dilation) / stride, where that is a
// whole number.
std::vector<Place> window_of_phase(int64_t phase, int64_t kernel, int64_t stride, int64_t dilation,
                                   int64_t before) {
  std::vector<Place> places;
  for (int64_t r = 0; r < kernel; ++r) {
    const int64_t shift = phase + before - r * dilation;
    if (shift % stride == 0) places.push_back({r, shift / stride});
  }
  return places;
}

bool dense_weights(const std::vector<Tap>& taps) {
  for (size_t t = 0; t < taps.size(); ++t) {
    if (taps[t].weight != static_cast<int64_t>(t)) return false;
  }
  return true;
}

// Rows of a grid that follow one another in every image that it visits are one long row: 1 x 1
// convolutions.
template <typename T>
void merge_rows(Im2col<T>& x) {
  const bool whole = x.grid.step_h == 1 && x.grid.step_w == 1 && x.grid.height == x.height &&
                     x.grid.width == x.width && x.strides.h == x.width * x.strides.w &&
                     (!x.mask || x.mask_strides.h == x.width * x.mask_strides.w);
  if (!whole) return;
  x.width *= x.height;
  x.height = 1;
  x.grid.width = x.width;
  x.grid.height = 1;
}

// out = taps x weights, for every group: forward, and one phase of the input gradient. `image` and
// `out` point at the grid's first pixel; `in` and `planes` count channels per group.
template <typename T>
void correlate(int64_t groups, int64_t in, int64_t planes, Im2col<T> x,
               const std::vector<Tap>& taps, TapWeights<T> weights, int64_t weight_group,
               ImageWriter<T> out) {
  using A = Accumulator<T>;
  const int64_t pixels = x.grid.count(), depth = static_cast<int64_t>(taps.size());
  if (pixels == 0 || planes == 0) return;
  const int64_t m = out.channels_first ? planes : pixels, n = out.channels_first ? pixels : planes;
  const Tiling tiling(m, n, groups, torch::stable::get_num_threads(), kCols<A>);
  parallel_for(0, groups * tiling.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / tiling.count(), tile = task % tiling.count();
      Im2col<T> image = x;
      image.image += group * in * x.strides.c;
      if (x.mask) image.mask += group * in * x.mask_strides.c;
      TapWeights<T> weight = weights;
      weight.data += group * weight_group;
      ImageWriter<T> writer = out;
      writer.image += group * planes * out.strides.c;
      if (out.epilogue.bias) writer.epilogue.bias += group * planes * out.epilogue.bias_stride;
      if (out.channels_first) {
        gemm_tile<A>(tiling, tile, 0, depth, weight, image, writer);
      } else {
        gemm_tile<A>(tiling, tile, 0, depth, image, weight, writer);
      }
    }
  });
}

template <typename T>
void corr2d(const Geometry& geo, const T* x, const Strides& xs, const T* w, const Strides& ws,
            const Epilogue<T>& epilogue, T* y, const Strides& ys) {
  const bool over_taps = xs.c == 1 && geo.in > 1;
  const auto taps =
      make_taps(geo.in, window(geo.kernel.h, geo.dilation.h, geo.before.h),
                window(geo.kernel.w, geo.dilation.w, geo.before.w), xs, {}, ws.c, ws, over_taps);
  const Grid grid{geo.images, geo.output.h, geo.output.w, geo.stride.h, geo.stride.w};
  Im2col<T> image{x,    xs,          nullptr, {},        geo.input.h, geo.input.w,
                  grid, taps.data(), xs.c,    over_taps, true};
  const bool point = geo.kernel.h * geo.kernel.w == 1 && geo.before.h == 0 && geo.before.w == 0;
  Grid written{geo.images, geo.output.h, geo.output.w};
  if (point) merge_rows(image);
  correlate(geo.groups, geo.in, geo.out, image, taps, {w, ws.n, taps.data(), dense_weights(taps)},
            geo.out * ws.n, {y, ys, written, epilogue, ys.c != 1 || geo.out == 1});
}

template <typename T>
void corr2d_input_grad(const Geometry& geo, const T* g, const Strides& gs, const Plane<T>& y,
                       const T* w, const Strides& ws, T* dx, const Strides& xs) {
  const bool over_taps = gs.c == 1 && geo.out > 1;
  for (int64_t ph = 0; ph < std::min(geo.stride.h, geo.input.h); ++ph) {
    for (int64_t pw = 0; pw < std::min(geo.stride.w, geo.input.w); ++pw) {
      const auto taps = make_taps(
          geo.out, window_of_phase(ph, geo.kernel.h, geo.stride.h, geo.dilation.h, geo.before.h),
          window_of_phase(pw, geo.kernel.w, geo.stride.w, geo.dilation.w, geo.before.w), gs,
          y.strides, ws.n, ws, over_taps);
      Grid grid{geo.images, (geo.input.h - ph + geo.stride.h - 1) / geo.stride.h,
                (geo.input.w - pw + geo.stride.w - 1) / geo.stride.w};
      Im2col<T> image{g,    gs,          y.data, y.strides, geo.output.h, geo.output.w,
                      grid, taps.data(), gs.c,   over_taps, true};
      const bool point = geo.kernel.h * geo.kernel.w == 1 && geo.before.h == 0 && geo.before.w == 0;
      if (point) merge_rows(image);
      grid.step_h = geo.stride.h;
      grid.step_w = geo.stride.w;
      correlate(geo.groups, geo.out, geo.in, image, taps,
                {w, ws.c, taps.data(), dense_weights(taps)}, geo.out * ws.n,
                {dx + ph * xs.h + pw * xs.w, xs, grid, {}, xs.c != 1 || geo.in == 1});
    }
  }
}

// dw, contiguous. Each chunk of the pixels makes a partial result of its own; how many there are
// depends on the sizes alone, so that their sum, taken in order, does not depend on the threads.
template <typename T>
void corr2d_weight_grad(const Geometry& geo, const T* g, const Strides& gs, const Plane<T>& y,
                        const T* x, const Strides& xs, T* dw) {
  using A = Accumulator<T>;
  const bool over_in = xs.c == 1 && geo.in > 1, over_out = gs.c == 1 && geo.out > 1;
  const Strides ws{0, geo.kernel.h * geo.kernel.w, geo.kernel.w, 1};
  const auto taps =
      make_taps(geo.in, window(geo.kernel.h, geo.dilation.h, geo.before.h),
                window(geo.kernel.w, geo.dilation.w, geo.before.w), xs, {}, ws.c, ws, over_in);
  const auto planes = make_taps(geo.out, {{0, 0}}, {{0, 0}}, gs, y.strides, 0, {}, over_out);
  const Grid grid{geo.images, geo.output.h, geo.output.w};
  Grid strided = grid;
  strided.step_h = geo.stride.h;
  strided.step_w = geo.stride.w;
  const Im2col<T> rows{
      g,    gs,       y.data, y.strides, geo.output.h, geo.output.w, grid, planes.data(),
      gs.c, over_out, false};
  const Im2col<T> cols{x,       xs,          nullptr, {},      geo.input.h, geo.input.w,
                       strided, taps.data(), xs.c,    over_in, false};

  const int64_t m = geo.out, n = static_cast<int64_t>(taps.size()), pixels = grid.count();
  if (m == 0 || n == 0) return;
  const Tiling tiling(m, n, 1, 1, kCols<A>);
  const int64_t tasks = geo.groups * tiling.count();
  const int64_t chunks = std::max<int64_t>(1, std::min((32 + tasks - 1) / tasks, pixels / 1024));
  const int64_t chunk = ((pixels + chunks - 1) / chunks + kDepth - 1) / kDepth * kDepth;
  std::vector<A> partial(chunks * geo.groups * m * n);
  parallel_for(0, chunks * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / tiling.count() % geo.groups, tile = task % tiling.count();
      const int64_t first = task / tasks * chunk;
      A* to = partial.data() + (task / tasks * geo.groups + group) * m * n;
      Im2col<T> a = rows, b = cols;
      a.image += group * geo.out * gs.c;
      if (a.mask) a.mask += group * geo.out * y.strides.c;
      b.image += group * geo.in * xs.c;
      const auto store = [&](int64_t i, int64_t j, int rows, int cols, const A* c) {
        for (int r = 0; r < rows; ++r) write_row(c + r * kCols<A>, cols, to + (i + r) * n + j, 1);
      };
      gemm_tile<A>(tiling, tile, first, std::min(first + chunk, pixels), a, b, store);
    }
  });
  const int64_t row_count = geo.groups * m;
  parallel_for(0, row_count, std::max<int64_t>(1, 16384 / (n * chunks + 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   A* sum = partial.data() + row * n;
                   for (int64_t i = 1; i < chunks; ++i) {
                     const A* next = sum + i * row_count * n;
                     for (int64_t t = 0; t < n; ++t) sum[t] += next[t];
                   }
                   for (int64_t t = 0; t < n; ++t) store1(dw + row * n + taps[t].weight, sum[t]);
                 }
               });
}

// Sizes from the arguments of a raw operator, or an error.
Geometry geometry(const char* op, const Sizes& input, const Sizes& weight, const Sizes& stride,
                  const Sizes& padding, const Sizes& dilation, int64_t groups) {
  check_length(op, "stride", stride, 2);
  check_length(op, "padding", padding, 4);
  check_length(op, "dilation", dilation, 2);
  check_at_least(op, "stride", stride, 1);
  check_at_least(op, "padding", padding, 0);
  check_at_least(op, "dilation", dilation, 1);
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
               {stride[0], stride[1]},
               {dilation[0], dilation[1]},
               {padding[0], padding[2]},
               {padding[1], padding[3]}};
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

Sizes sizes_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

void check_mask(const char* op, const Tensor& g, const std::optional<Tensor>& y) {
  if (!y) return;
  check_same_dtype(op, "y", *y, g);
  check_sizes(op, "y", *y, sizes_of(g));
}

Tensor corr2d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  Sizes stride, Sizes padding, Sizes dilation, int64_t groups, bool relu) {
  const char* op = "corr2d";
  check_dim(op, "x", x, 4);
  check_dim(op, "weight", weight, 4);
  check_same_dtype(op, "weight", weight, x);
  const Geometry geo =
      geometry(op, sizes_of(x), sizes_of(weight), stride, padding, dilation, groups);
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
                             Sizes input_size, Sizes stride, Sizes padding, Sizes dilation,
                             int64_t groups) {
  const char* op = "corr2d_input_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "weight", weight, 4);
  check_same_dtype(op, "weight", weight, g);
  check_mask(op, g, y);
  check_length(op, "input_size", input_size, 2);
  check_at_least(op, "groups", {groups}, 1);
  const Sizes input{g.size(0), weight.size(1) * groups, input_size[0], input_size[1]};
  const Geometry geo = geometry(op, input, sizes_of(weight), stride, padding, dilation, groups);
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
                              Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation,
                              int64_t groups) {
  const char* op = "corr2d_weight_grad";
  check_dim(op, "g", g, 4);
  check_dim(op, "x", x, 4);
  check_same_dtype(op, "x", x, g);
  check_mask(op, g, y);
  check_length(op, "kernel_size", kernel_size, 2);
  check_at_least(op, "groups", {groups}, 1);
  D2LOPS_CHECK(x.size(1) % groups == 0, op, ": groups = ", groups, " must divide the ", x.size(1),
               " input channels");
  const Sizes weight{g.size(1), x.size(1) / groups, kernel_size[0], kernel_size[1]};
  const Geometry geo = geometry(op, sizes_of(x), weight, stride, padding, dilation, groups);
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
