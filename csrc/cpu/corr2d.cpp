// Two-dimensional cross-correlation (D2L 7), and the two other maps of the trilinear form
// <corr2d(x, w), g>. With h = a sh + r dh - top and v = b sw + s dw - left:
//
//   corr2d        y[n, k, a, b]  = bias[k] + sum over c, r, s of    w[k, c, r, s] x[n, c, h, v]
//   input grad    dx[n, c, h, v] = sum over k and all r, s, a, b    w[k, c, r, s] g[n, k, a, b]
//                                  that meet (h, v) of
//   weight grad   dw[k, c, r, s] = sum over n, a, b of              g[n, k, a, b] x[n, c, h, v]
//
// Four ways, by sizes alone: the blocked product of gemm.h over the im2col matrix, packed a few
// kilobytes at a time (im2col.h: windows of one place, small outputs, large weights' gradients), or
// read in place from padded slabs (padded.h, padded_weight_grad.h: most windows), and direct sums
// for depthwise layers (depthwise.h). The input gradient runs once per phase of the stride,
// (h + top) mod sh and (v + left) mod sw, in which a fixed set of window places meets the pixels, so
// that a strided layer's gradient multiplies no zeros. The weight gradient sums over pixels, in
// parts whose results are added in a fixed order.
//
// Flops: 2 C R S per output. The FMA units are the limit, but for few channels, where packing or
// main memory is.
#include "cpu/depthwise.h"
#include "cpu/gemm.h"
#include "cpu/im2col.h"
#include "cpu/padded.h"
#include "cpu/padded_weight_grad.h"
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

// Whether an image is read in runs of channels, or in runs of pixels even though its channels lie
// side by side, because there are too few of them.
bool runs_over_taps(const Strides& image, int64_t planes) { return image.c == 1 && planes >= 8; }

// Whether channels are the rows of the product or its columns, which should be the long side of a
// piece.
template <typename T>
bool channels_first(const Strides& image, int64_t planes) {
  return image.c != 1 || planes < kLanes<Accumulator<T>>;
}

// Taps for `planes` planes and the places of a window given by (r, dh) and (s, dw), in the order in
// which the image lies in memory: planes innermost if channels are, else outermost.
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

// Rows of a grid that follow one another in every image that it visits are one long row, and so are
// images: windows of one place need no more.
template <typename T>
void merge_rows(Im2col<T>& x) {
  const auto follow = [&](int64_t Strides::* outer, int64_t inner) {
    return x.strides.*outer == inner * x.strides.w &&
           (!x.mask || x.mask_strides.*outer == inner * x.mask_strides.w);
  };
  if (x.grid.step_h != 1 || x.grid.step_w != 1 || x.grid.height != x.height ||
      x.grid.width != x.width)
    return;
  if (x.grid.count() == 0 || !follow(&Strides::h, x.width)) return;
  x.width *= x.height;
  x.height = 1;
  if (follow(&Strides::n, x.width)) {
    x.width *= x.grid.images;
    x.grid.images = 1;
  }
  x.grid.width = x.width;
  x.grid.height = 1;
}

// How a group's part of the image, the weights and the output lie.
struct GroupStep {
  int64_t planes, weights, outputs;  // input planes, elements of the weight, output planes
};

template <typename T>
ImageWriter<T> writer_of_group(ImageWriter<T> out, int64_t group, const GroupStep& step) {
  out.image += group * step.outputs * out.strides.c;
  if (out.epilogue.bias) out.epilogue.bias += group * step.outputs * out.epilogue.bias_stride;
  return out;
}

// out = taps x weights, for every group, by packing: windows of one place, and outputs too small
// for a slab.
template <typename T>
void correlate_packed(int64_t groups, const GroupStep& step, const Im2col<T>& x, int64_t depth,
                      const TapWeights<T>& weights, const ImageWriter<T>& out) {
  using A = Accumulator<T>;
  const int64_t pixels = x.grid.count();
  const int64_t m = out.channels_first ? step.outputs : pixels,
                n = out.channels_first ? pixels : step.outputs;
  const Tiling tiling(m, n, groups, torch::stable::get_num_threads(), kCols<A>);
  parallel_for(0, groups * tiling.count(), grain(tiling.rows * tiling.cols * depth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t group = task / tiling.count(), tile = task % tiling.count();
                   Im2col<T> image = x;
                   image.image += group * step.planes * x.strides.c;
                   if (x.mask) image.mask += group * step.planes * x.mask_strides.c;
                   TapWeights<T> weight = weights;
                   weight.data += group * step.weights;
                   const ImageWriter<T> writer = writer_of_group(out, group, step);
                   if (out.channels_first) {
                     gemm_tile<A>(tiling, tile, 0, depth, weight, image, writer);
                   } else {
                     gemm_tile<A>(tiling, tile, 0, depth, image, weight, writer);
                   }
                 }
               });
}

// The same by slabs (padded.h): windows of several places.
template <typename T>
void correlate_in_slabs(int64_t groups, const GroupStep& step, const Im2col<T>& x, int64_t depth,
                        const std::vector<Place>& rows, const std::vector<Place>& cols,
                        const TapWeights<T>& weights, ImageWriter<T> out) {
  PackedWeights<T> packed(groups, step.outputs, depth);
  parallel_for(0, groups * packed.panels, grain(8 * kRows * depth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   TapWeights<T> weight = weights;
                   weight.data += i / packed.panels * step.weights;
                   packed.pack(weight, i / packed.panels, i % packed.panels);
                 }
               });
  // As many output rows at a time as make a slab of half a megabyte, but some tasks for each
  // thread.
  const int64_t row = step.planes * x.grid.step_h * x.grid.step_w * x.grid.width;
  const int64_t fitting = std::max<int64_t>(131072 / row - static_cast<int64_t>(rows.size()), 4);
  const int64_t fair =
      x.grid.height * x.grid.images * groups / (4 * torch::stable::get_num_threads());
  const int64_t out_rows = std::clamp<int64_t>(std::min(fitting, fair), 1, x.grid.height);
  const int64_t blocks = (x.grid.height + out_rows - 1) / out_rows;
  const Slab<T> slab(x, step.planes, rows, cols, out_rows);
  out.channels_first = true;
  const int64_t work = out_rows * slab.width() * step.outputs * depth;
  parallel_for(0, x.grid.images * groups * blocks, grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t a = task % blocks * out_rows, group = task / blocks % groups,
                    n = task / blocks / groups;
      ImageWriter<T> writer = writer_of_group(out, group, step);
      writer.image += n * out.strides.n + a * out.grid.step_h * out.strides.h;
      correlate_padded(slab, packed, group, n, group * step.planes, a,
                       std::min(out_rows, x.grid.height - a), depth, writer);
    }
  });
}

// The same with one input and one output channel per group (depthwise.h).
template <typename T>
void correlate_depthwise(int64_t channels, const Im2col<T>& x, const std::vector<Tap>& taps,
                         const TapWeights<T>& weights, int64_t weight_channel,
                         const ImageWriter<T>& out) {
  using A = Accumulator<T>;
  const bool pixels = x.strides.c == 1;
  const auto count = static_cast<int64_t>(taps.size());
  std::vector<A> w(count * channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < count; ++t) {
      w[pixels ? t * channels + c : c * count + t] =
          load1<A>(weights.data + c * weight_channel + taps[t].weight);
    }
  }
  const int64_t rows = x.grid.images * x.grid.height, row_size = x.grid.width * count;
  if (pixels) {
    parallel_for(0, rows, grain(8 * row_size * channels), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        depthwise_pixels(x, taps, channels, w.data(), out, row / x.grid.height,
                         row % x.grid.height);
      }
    });
  } else {
    parallel_for(0, rows * channels, grain(8 * row_size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t a = i % x.grid.height, c = i / x.grid.height % channels,
                      n = i / x.grid.height / channels;
        depthwise_row(x, taps, c, w.data() + c * count, out, n, a);
      }
    });
  }
}

// Which way: the direct kernels and the slabs need rows of a size that fits the cache; slabs pay
// for windows of several places over outputs that fill whole vectors.
template <typename T>
bool is_depthwise(int64_t groups, const GroupStep& step, const Im2col<T>& x) {
  return groups > 1 && step.planes == 1 && step.outputs == 1 && x.grid.width <= 65536;
}
template <typename T>
bool fits_slabs(const Im2col<T>& x, int64_t planes, const std::vector<Place>& rows,
                const std::vector<Place>& cols) {
  const auto places = static_cast<int64_t>(rows.size() * cols.size());
  const int64_t row = planes * x.grid.step_h * x.grid.step_w * x.grid.width;
  return places > 1 && x.grid.height * x.grid.width >= 32 &&
         row * static_cast<int64_t>(rows.size()) <= 1 << 20;
}

// One direction, and one phase of the stride: `out` = `x` under a window, with weights at the given
// strides.
template <typename T>
void correlate(int64_t groups, const GroupStep& step, Im2col<T> x, const std::vector<Place>& rows,
               const std::vector<Place>& cols, const T* w, int64_t w_output, int64_t w_plane,
               const Strides& ws, const ImageWriter<T>& out) {
  if (x.grid.count() == 0 || step.outputs == 0) return;
  // Depthwise, too, where channels are apart.
  const bool depthwise = is_depthwise(groups, step, x) &&
                         (x.strides.c == 1 || !fits_slabs(x, step.planes, rows, cols));
  const bool slabs = !depthwise && fits_slabs(x, step.planes, rows, cols) &&
                     (step.outputs < 32 || x.grid.height * x.grid.width >= 256);
  x.runs_over_taps = !depthwise && !slabs && runs_over_taps(x.strides, step.planes);
  auto taps =
      make_taps(step.planes, rows, cols, x.strides, x.mask_strides, w_plane, ws, x.runs_over_taps);
  const TapWeights<T> weights{w, w_output, taps.data(), dense_weights(taps)};
  const auto depth = static_cast<int64_t>(taps.size());
  if (rows.size() == 1 && cols.size() == 1 && rows[0].shift == 0 && cols[0].shift == 0)
    merge_rows(x);
  x.limit(taps);
  x.taps = taps.data();
  if (depthwise) return correlate_depthwise(groups, x, taps, weights, step.weights, out);
  if (slabs) return correlate_in_slabs(groups, step, x, depth, rows, cols, weights, out);
  correlate_packed(groups, step, x, depth, weights, out);
}

template <typename T>
void corr2d(const Geometry& geo, const T* x, const Strides& xs, const T* w, const Strides& ws,
            const Epilogue<T>& epilogue, T* y, const Strides& ys) {
  const Grid read{geo.images, geo.output.h, geo.output.w, geo.stride.h, geo.stride.w};
  const Grid written{geo.images, geo.output.h, geo.output.w};
  const Im2col<T> image{x,    xs,      nullptr, {},    geo.input.h, geo.input.w,
                        read, nullptr, xs.c,    false, true};
  correlate<T>(geo.groups, {geo.in, geo.out * ws.n, geo.out}, image,
               window(geo.kernel.h, geo.dilation.h, geo.before.h),
               window(geo.kernel.w, geo.dilation.w, geo.before.w), w, ws.n, ws.c, ws,
               {y, ys, written, epilogue, channels_first<T>(ys, geo.out), geo.output.w});
}

template <typename T>
void corr2d_input_grad(const Geometry& geo, const T* g, const Strides& gs, const Plane<T>& y,
                       const T* w, const Strides& ws, T* dx, const Strides& xs) {
  for (int64_t ph = 0; ph < std::min(geo.stride.h, geo.input.h); ++ph) {
    for (int64_t pw = 0; pw < std::min(geo.stride.w, geo.input.w); ++pw) {
      const Grid read{geo.images, (geo.input.h - ph + geo.stride.h - 1) / geo.stride.h,
                      (geo.input.w - pw + geo.stride.w - 1) / geo.stride.w};
      Grid written = read;
      written.step_h = geo.stride.h;
      written.step_w = geo.stride.w;
      const Im2col<T> image{g,    gs,      y.data, y.strides, geo.output.h, geo.output.w,
                            read, nullptr, gs.c,   false,     true};
      correlate<T>(
          geo.groups, {geo.out, geo.out * ws.n, geo.in}, image,
          window_of_phase(ph, geo.kernel.h, geo.stride.h, geo.dilation.h, geo.before.h),
          window_of_phase(pw, geo.kernel.w, geo.stride.w, geo.dilation.w, geo.before.w), w, ws.c,
          ws.n, ws,
          {dx + ph * xs.h + pw * xs.w, xs, written, {}, channels_first<T>(xs, geo.in), read.width});
    }
  }
}

// dw = the sum of `parts` partial results in order: their element (row, t) is at row * row_step + t
// * tap_step.
template <typename T, typename A>
void add_parts(std::vector<A>& partial, int64_t parts, int64_t rows, int64_t row_step,
               int64_t tap_step, const std::vector<Tap>& taps, T* dw) {
  const auto n = static_cast<int64_t>(taps.size()), part = rows * n;
  parallel_for(0, part, grain(8 * parts), [&](int64_t begin, int64_t end) {
    for (int64_t p = 1; p < parts; ++p) {
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[p * part + i];
    }
  });
  parallel_for(0, rows, grain(8 * n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t t = 0; t < n; ++t) {
        store1(dw + row * n + taps[t].weight, partial[row * row_step + t * tap_step]);
      }
    }
  });
}

// The weight gradient with one input and one output channel per group. Partial results are those of
// a block of rows, or of an image.
template <typename T>
void depthwise_weight_grad(int64_t channels, const Im2col<T>& g, const Im2col<T>& x,
                           const std::vector<Tap>& taps, T* dw) {
  using A = Accumulator<T>;
  const auto count = static_cast<int64_t>(taps.size());
  const int64_t height = g.grid.height, rows = g.grid.images * height;
  if (x.strides.c == 1) {
    const int64_t parts = std::clamp<int64_t>(rows, 1, 32), block = (rows + parts - 1) / parts;
    std::vector<A> partial(parts * count * channels);
    parallel_for(0, parts, grain(8 * block * g.grid.width * count * channels),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin * block; row < std::min(end * block, rows); ++row) {
                     depthwise_weight_pixels(g, x, taps, channels, row / height, row % height,
                                             partial.data() + row / block * count * channels);
                   }
                 });
    add_parts(partial, parts, channels, 1, channels, taps, dw);
  } else {
    const int64_t parts = std::max<int64_t>(g.grid.images, 1);
    std::vector<A> partial(parts * channels * count);
    parallel_for(0, g.grid.images * channels, grain(8 * height * g.grid.width * count),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     depthwise_weight_plane(g, x, taps, i % channels, i / channels,
                                            partial.data() + i * count);
                   }
                 });
    add_parts(partial, parts, channels, count, 1, taps, dw);
  }
}

// The weight gradient by packing. Each chunk of the pixels makes a partial result of its own; how
// many there are depends on the sizes alone, so that their sum, taken in order, does not depend on
// the threads.
template <typename T>
void weight_grad_packed(const Geometry& geo, Im2col<T> g, Im2col<T> x, const std::vector<Tap>& taps,
                        T* dw) {
  using A = Accumulator<T>;
  auto planes =
      make_taps(geo.out, {{0, 0}}, {{0, 0}}, g.strides, g.mask_strides, 0, {}, g.runs_over_taps);
  merge_rows(g);
  g.limit(planes);
  g.taps = planes.data();
  x.taps = taps.data();
  const int64_t m = geo.out, n = static_cast<int64_t>(taps.size()), pixels = x.grid.count();
  const Tiling tiling(m, n, 1, 1, kCols<A>);
  const int64_t tasks = geo.groups * tiling.count();
  const int64_t chunks = std::max<int64_t>(1, std::min((32 + tasks - 1) / tasks, pixels / 1024));
  const int64_t chunk = ((pixels + chunks - 1) / chunks + kDepth - 1) / kDepth * kDepth;
  std::vector<A> partial(chunks * geo.groups * m * n);
  parallel_for(
      0, chunks * tasks, grain(chunk * tiling.rows * tiling.cols), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task / tiling.count() % geo.groups, tile = task % tiling.count();
          const int64_t first = task / tasks * chunk;
          A* to = partial.data() + (task / tasks * geo.groups + group) * m * n;
          Im2col<T> a = g, b = x;
          a.image += group * geo.out * g.strides.c;
          if (a.mask) a.mask += group * geo.out * g.mask_strides.c;
          b.image += group * geo.in * x.strides.c;
          const auto store = [&](int64_t i, int64_t j, int rows, int cols, const A* c) {
            for (int r = 0; r < rows; ++r)
              write_row(c + r * kCols<A>, cols, to + (i + r) * n + j, 1);
          };
          gemm_tile<A>(tiling, tile, first, std::min(first + chunk, pixels), a, b, store);
        }
      });
  add_parts(partial, chunks, geo.groups * m, n, 1, taps, dw);
}

// The weight gradient by slabs. A part is a run of tasks, at most 32 of them; both are a matter of
// sizes alone.
template <typename T>
void weight_grad_in_slabs(const Geometry& geo, const Im2col<T>& g, const Im2col<T>& x,
                          const std::vector<Place>& rows, const std::vector<Place>& cols,
                          const std::vector<Tap>& taps, T* dw) {
  using A = Accumulator<T>;
  const auto n = static_cast<int64_t>(taps.size());
  const int64_t row =
      geo.in * x.grid.step_h * x.grid.step_w * x.grid.width + geo.out * x.grid.width;
  const int64_t out_rows =
      std::clamp<int64_t>(131072 / row - static_cast<int64_t>(rows.size()), 1, x.grid.height);
  const int64_t blocks = (x.grid.height + out_rows - 1) / out_rows, tasks = x.grid.images * blocks;
  const int64_t parts = std::clamp<int64_t>(tasks, 1, 32), run = (tasks + parts - 1) / parts;
  const Slab<T> slab(x, geo.in, rows, cols, out_rows);
  std::vector<A> partial(parts * geo.groups * geo.out * n);
  parallel_for(0, parts * geo.groups, grain(run * out_rows * x.grid.width * geo.out * n),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t part = i / geo.groups, group = i % geo.groups;
                   for (int64_t task = part * run; task < std::min((part + 1) * run, tasks);
                        ++task) {
                     const int64_t a = task % blocks * out_rows;
                     weight_grad_padded(slab, g, geo.out, n, task / blocks, group * geo.out,
                                        group * geo.in, a, std::min(out_rows, x.grid.height - a),
                                        partial.data() + i * geo.out * n);
                   }
                 }
               });
  add_parts(partial, parts, geo.groups * geo.out, n, 1, taps, dw);
}

// dw is contiguous.
template <typename T>
void corr2d_weight_grad(const Geometry& geo, const T* g, const Strides& gs, const Plane<T>& y,
                        const T* x, const Strides& xs, T* dw) {
  const Strides ws{0, geo.kernel.h * geo.kernel.w, geo.kernel.w, 1};
  const Grid grid{geo.images, geo.output.h, geo.output.w};
  const Grid strided{geo.images, geo.output.h, geo.output.w, geo.stride.h, geo.stride.w};
  Im2col<T> gradient{g,    gs,      y.data, y.strides, geo.output.h, geo.output.w,
                     grid, nullptr, gs.c,   false,     false};
  Im2col<T> image{x,       xs,      nullptr, {},    geo.input.h, geo.input.w,
                  strided, nullptr, xs.c,    false, false};
  const auto rows = window(geo.kernel.h, geo.dilation.h, geo.before.h);
  const auto cols = window(geo.kernel.w, geo.dilation.w, geo.before.w);
  const bool depthwise = is_depthwise(geo.groups, {geo.in, 0, geo.out}, image);
  const bool slabs = !depthwise && fits_slabs(image, geo.in, rows, cols) &&
                     geo.out * geo.in * geo.kernel.h * geo.kernel.w <= 16384;
  gradient.runs_over_taps = runs_over_taps(gs, geo.out);
  image.runs_over_taps = !depthwise && !slabs && runs_over_taps(xs, geo.in);
  auto taps = make_taps(geo.in, rows, cols, xs, {}, ws.c, ws, image.runs_over_taps);
  image.limit(taps);
  if (taps.empty() || geo.out == 0) return;
  if (depthwise) return depthwise_weight_grad(geo.groups, gradient, image, taps, dw);
  if (slabs) return weight_grad_in_slabs(geo, gradient, image, rows, cols, taps, dw);
  weight_grad_packed(geo, gradient, image, taps, dw);
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
