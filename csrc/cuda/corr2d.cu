// Two-dimensional cross-correlation (D2L 7), and the two other maps of the trilinear form
// <corr2d(x, w), g>. With h = a sh + r dh - top and v = b sw + s dw - left:
//
//   corr2d        y[n, k, a, b]  = bias[k] + sum over c, r, s of    w[k, c, r, s] x[n, c, h, v]
//   input grad    dx[n, c, h, v] = sum over k and all r, s, a, b    w[k, c, r, s] g[n, k, a, b]
//                                  that meet (h, v) of
//   weight grad   dw[k, c, r, s] = sum over n, a, b of              g[n, k, a, b] x[n, c, h, v]
//
// Each is a matrix product over pixels (n, a, b) and taps (c, r, s), whose elements are gathered
// from the image as they are needed (implicit im2col). The input gradient runs once per phase of
// the stride, (h + top) mod sh and (v + left) mod sw, in which a fixed set of taps meets the pixels,
// so that a strided layer's gradient multiplies no zeros.
//
// 16-bit numbers, and float32 ones where TF32 is allowed, go through tensor cores, which want channels
// side by side, in packets: images and weights that do not lie so are copied first (pack.h), and
// channels that only fill a packet up are left out on the way out.
//
// Flops: 2 C R S per output. Arithmetic is the limit, but for few channels, where memory is.
#include <algorithm>

#include "common/integer.h"
#include "cuda/depthwise.cuh"
#include "cuda/few_channels.cuh"
#include "cuda/gemm.h"
#include "cuda/pack.h"
#include "operators.h"

namespace d2lops {
namespace {

int32_t narrow_step(int64_t step) { return static_cast<int32_t>(step); }

// Pixels (n, a, b), in a tensor with steps of so many rows and columns of an image.
Walk pixels(const Geometry& geo, const Pair& size, const Strides& x, const Strides& mask,
            const Pair& step) {
  Walk walk;
  walk.outer = {geo.images, x.n, mask.n};
  walk.middle = {size.h, step.h * x.h, step.h * mask.h, narrow_step(step.h), 0};
  walk.inner = {size.w, step.w * x.w, step.w * mask.w, 0, narrow_step(step.w)};
  return walk;
}

// Where they lie in memory alone, for a tensor that they cannot leave.
Walk outputs(const Geometry& geo, const Pair& size, const Strides& y, const Pair& step) {
  Walk walk = pixels(geo, size, y, {}, step);
  walk.middle.h = walk.inner.w = 0;
  return walk;
}

// Taps of a window along one axis: `count` of them, whose first one is number `first` of the weight
// and lies `shift` from the pixel, and so from one to the next.
struct Taps {
  int64_t count, first, shift, weight_step, image_step;
};

// Forward: tap r of pixel a lies at a * stride + r * dilation - before.
Taps all_taps(int64_t kernel, int64_t dilation, int64_t before) {
  return {kernel, 0, -before, 1, dilation};
}

// Those that meet the inputs of one phase, i = phase, phase + stride, ...: with i = phase + a *
// stride, tap r meets output a + (phase + before - r * dilation) / stride, where that is an integer.
Taps taps_of_phase(int64_t phase, int64_t kernel, int64_t stride, int64_t dilation,
                   int64_t before) {
  Taps taps{0, 0, 0, 1, 0};
  for (int64_t r = 0; r < kernel; ++r) {
    const int64_t shift = phase + before - r * dilation;
    if (shift % stride != 0) continue;
    if (taps.count == 0) taps.first = r, taps.shift = shift / stride;
    if (taps.count == 1) {
      taps.weight_step = r - taps.first;
      taps.image_step = shift / stride - taps.shift;
    }
    ++taps.count;
  }
  return taps;
}

struct Window {
  Taps down, across;

  // (plane, r, s), or (r, s, plane) if planes lie side by side in the image. A place's height
  // counts rows of the image.
  Walk in_image(int64_t planes, const Strides& x, const Strides& mask, bool planes_inside) const {
    const Digit p{planes, x.c, mask.c};
    const Digit r{down.count, down.image_step * x.h, down.image_step * mask.h,
                  narrow_step(down.image_step), 0};
    const Digit s{across.count, across.image_step * x.w, across.image_step * mask.w, 0,
                  narrow_step(across.image_step)};
    Walk walk = ordered(p, r, s, planes_inside);
    walk.origin = {down.shift * x.h + across.shift * x.w, narrow_step(down.shift),
                   narrow_step(across.shift), down.shift * mask.h + across.shift * mask.w};
    return walk;
  }

  // The same taps in the weight, whose planes are `plane` apart. A place's height counts planes:
  // there may be fewer in the weight than in packets of the image.
  Walk in_weight(int64_t planes, int64_t plane, const Strides& w, bool planes_inside) const {
    Walk walk = ordered({planes, plane, 0, 1, 0}, {down.count, down.weight_step * w.h},
                        {across.count, across.weight_step * w.w}, planes_inside);
    walk.origin.offset = down.first * w.h + across.first * w.w;
    return walk;
  }

 private:
  static Walk ordered(const Digit& p, const Digit& r, const Digit& s, bool planes_inside) {
    return planes_inside ? Walk{r, s, p} : Walk{p, r, s};
  }
};

Window window(const Geometry& geo) {
  return {all_taps(geo.kernel.h, geo.dilation.h, geo.before.h),
          all_taps(geo.kernel.w, geo.dilation.w, geo.before.w)};
}

Window window_of_phase(const Geometry& geo, const Pair& phase) {
  return {taps_of_phase(phase.h, geo.kernel.h, geo.stride.h, geo.dilation.h, geo.before.h),
          taps_of_phase(phase.w, geo.kernel.w, geo.stride.w, geo.dilation.w, geo.before.w)};
}

template <typename T>
Gathered<T> image(const Input& x, const Pair& size, int64_t planes, const Input& mask = {}) {
  Gathered<T> gathered{x.as<T>().data, mask.as<T>().data};
  gathered.group_stride = planes * x.c;
  gathered.mask_group_stride = planes * mask.c;
  gathered.height = static_cast<uint32_t>(size.h);
  gathered.width = static_cast<uint32_t>(size.w);
  return gathered;
}

// Of `planes` planes, in each of the places of a window.
template <typename T>
Gathered<T> weights(const Input& weight, const Geometry& geo, int64_t planes) {
  Gathered<T> gathered{weight.as<T>().data};
  gathered.group_stride = geo.out * weight.n;
  gathered.height = static_cast<uint32_t>(planes);
  return gathered;
}

// In each product, `in` and `out` are a group's planes in x and g: the layer's, or more, in packets.

template <typename T>
Product<T> forward(const Geometry& geo, int64_t in, const Input& x, const Input& weight,
                   const Output& y) {
  const Window taps = window(geo);
  const bool planes_inside = x.c == 1;
  Product<T> product;
  product.groups = geo.groups;
  product.a = image<T>(x, geo.input, in);
  product.a.rows = pixels(geo, geo.output, x, {}, geo.stride);
  product.a.columns = taps.in_image(in, x, {}, planes_inside);
  product.b = weights<T>(weight, geo, in);
  product.b.rows = line(geo.out, weight.n);
  product.b.columns = taps.in_weight(in, weight.c, weight, planes_inside);
  product.c = {y.as<T>().data, outputs(geo, geo.output, y, {1, 1}), line(geo.out, y.c),
               geo.out * y.c};
  product.depth = product.a.columns.size();
  product.a.along_depth = planes_inside;
  return product;
}

// dx at the pixels of one phase of the stride.
template <typename T>
Product<T> input_grad(const Geometry& geo, int64_t out, const Input& g, const Input& y,
                      const Input& weight, const Output& dx, const Pair& phase) {
  const Window taps = window_of_phase(geo, phase);
  const Pair size{ceil_div(geo.input.h - phase.h, geo.stride.h),
                  ceil_div(geo.input.w - phase.w, geo.stride.w)};
  const bool planes_inside = g.c == 1;
  Product<T> product;
  product.groups = geo.groups;
  product.a = image<T>(g, geo.output, out, y);
  product.a.rows = pixels(geo, size, g, y, {1, 1});
  product.a.columns = taps.in_image(out, g, y, planes_inside);
  product.b = weights<T>(weight, geo, geo.out);
  product.b.rows = line(geo.in, weight.c);
  product.b.columns = taps.in_weight(out, weight.n, weight, planes_inside);
  product.c = {dx.as<T>().data + phase.h * dx.h + phase.w * dx.w,
               outputs(geo, size, dx, geo.stride), line(geo.in, dx.c), geo.in * dx.c};
  product.depth = product.a.columns.size();
  product.a.along_depth = planes_inside;
  product.b.along_depth = weight.c != 1;
  return product;
}

template <typename T>
Product<T> weight_grad(const Geometry& geo, int64_t in, int64_t out, const Input& g, const Input& y,
                       const Input& x, const Output& dw) {
  const Window taps = window(geo);
  const bool planes_inside = x.c == 1;
  Product<T> product;
  product.groups = geo.groups;
  product.a = image<T>(g, geo.output, out, y);
  product.a.rows = line(geo.out, g.c, y.c);
  product.a.columns = pixels(geo, geo.output, g, y, {1, 1});
  product.b = image<T>(x, geo.input, in);
  product.b.rows = taps.in_image(in, x, {}, planes_inside);
  product.b.columns = pixels(geo, geo.output, x, {}, geo.stride);
  product.c = {dw.as<T>().data, line(geo.out, dw.n), taps.in_weight(in, dw.c, dw, planes_inside),
               geo.out * dw.n};
  product.c.height = static_cast<uint32_t>(geo.in);
  product.depth = product.a.columns.size();
  product.a.along_depth = g.c != 1;
  product.b.along_depth = x.c != 1;
  return product;
}

// Whether tensor cores may and pay: packets of channels, and tiles of many, would be mostly empty for
// a few.
template <typename T>
bool fits_tensor_cores(const Geometry& geo) {
  return (sizeof(T) == 2 || geo.tf32) && geo.in * geo.out >= 64;
}

Packed packed_weight(const Geometry& geo, const Input& weight) {
  return {{geo.groups * geo.out, geo.in, geo.kernel.h, geo.kernel.w}, geo.in, weight};
}
Packed packed_input(const Geometry& geo, const Input& x) {
  return {{geo.images, geo.groups * geo.in, geo.input.h, geo.input.w}, geo.in, x};
}
Packed packed_output(const Geometry& geo, const Input& g, const Input& y) {
  return {{geo.images, geo.groups * geo.out, geo.output.h, geo.output.w}, geo.out, g, y};
}

template <typename T>
void add_epilogue(Product<T>& product, const Geometry& geo, const Bias& bias, bool relu) {
  product.bias = static_cast<const T*>(bias.data);
  product.bias_stride = bias.stride;
  product.bias_group_stride = geo.out * bias.stride;
  product.relu = relu;
}

}  // namespace

void corr2d(const Geometry& geo, const Input& x, const Input& weight, const Bias& bias, bool relu,
            const Output& y) {
  if (is_depthwise(geo)) return depthwise(geo, x, weight, bias, relu, y);
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto&& gemm, int64_t in, const Input& x, const Input& weight) {
      Product<T> product = forward<T>(geo, in, x, weight, y);
      add_epilogue(product, geo, bias, relu);
      gemm(product);
    };
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(geo)) {
        const Packed image = packed_input(geo, x), window = packed_weight(geo, weight);
        return run(gemm_tensor<T>, image.planes(), image.tensor(), window.tensor());
      }
    }
    if (has_few_channels(geo)) return corr2d_of_few_channels(geo, x, weight, bias, relu, y);
    run(gemm_simt<T>, geo.in, x, weight);
  });
}

void corr2d_input_grad(const Geometry& geo, const Input& g, const Input& y, const Input& weight,
                       const Output& dx) {
  if (is_depthwise(geo)) return depthwise_input_grad(geo, g, y, weight, dx);
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto&& gemm, int64_t out, const Input& g, const Input& y,
                         const Input& weight) {
      for (int64_t h = 0; h < std::min(geo.stride.h, geo.input.h); ++h) {
        for (int64_t w = 0; w < std::min(geo.stride.w, geo.input.w); ++w) {
          gemm(input_grad<T>(geo, out, g, y, weight, dx, {h, w}));
        }
      }
    };
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(geo)) {
        const Packed image = packed_output(geo, g, y), window = packed_weight(geo, weight);
        return run(gemm_tensor<T>, image.planes(), image.tensor(), image.mask(), window.tensor());
      }
    }
    run(gemm_simt<T>, geo.out, g, y, weight);
  });
}

void corr2d_weight_grad(const Geometry& geo, const Input& g, const Input& y, const Input& x,
                        const Output& dw) {
  if (is_depthwise(geo)) return depthwise_weight_grad(geo, g, y, x, dw);
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) < 8) {
      if (fits_tensor_cores<T>(geo)) {
        const Packed gradient = packed_output(geo, g, y), image = packed_input(geo, x);
        return gemm_tensor(weight_grad<T>(geo, image.planes(), gradient.planes(), gradient.tensor(),
                                          gradient.mask(), image.tensor(), dw));
      }
    }
    gemm_simt(weight_grad<T>(geo, geo.in, geo.out, g, y, x, dw));
  });
}

}  // namespace d2lops
