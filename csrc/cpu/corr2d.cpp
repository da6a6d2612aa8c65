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
#include "cpu/correlate.h"
#include "cpu/weight_grad.h"
#include "operators.h"

namespace d2lops {

void corr2d(const Geometry& geo, const Input& x, const Input& weight, const Bias& bias, bool relu,
            const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Epilogue<T> epilogue{static_cast<const T*>(bias.data), bias.stride, relu};
    corr2d<T>(geo, x.as<T>(), weight.as<T>(), epilogue, y.as<T>());
  });
}

void corr2d_input_grad(const Geometry& geo, const Input& g, const Input& y, const Input& weight,
                       const Output& dx) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    corr2d_input_grad<T>(geo, g.as<T>(), y.as<T>(), weight.as<T>(), dx.as<T>());
  });
}

void corr2d_weight_grad(const Geometry& geo, const Input& g, const Input& y, const Input& x,
                        const Output& dw) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    corr2d_weight_grad<T>(geo, g.as<T>(), y.as<T>(), x.as<T>(), dw.as<T>().data);
  });
}

}  // namespace d2lops
