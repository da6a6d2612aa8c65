// The weight gradient of cross-correlation over the slabs of padded.h, for weights that fit in the
// cache:
//
//   dw[k, tap] = sum over output rows a and columns b of g[k, a, b] slab[a * (width of the slab) +
//   b + offset(tap)]
//
// Both factors lie along b, so a tile of (output channel, tap) pairs is kept as vectors of partial
// sums: nothing is packed or transposed, and the lanes of each vector are added once, at the end of
// a task.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/integer.h"
#include "cpu/padded.h"

namespace d2lops {

constexpr int kGradRows =
    kRows / 2;                // output channels of a tile: 4 x 6 accumulators with 32 registers,
constexpr int kGradTaps = 6;  // 2 x 6 with 16

// g: rows of `width` numbers, each padded with zeros to whole vectors; planes `g_plane` apart.
template <typename A>
void weight_grad_tile(int64_t rows, int64_t width, const A* const (&g)[kGradRows],
                      const A* const (&x)[kGradTaps], int64_t x_width,
                      A (&out)[kGradRows][kGradTaps]) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[kGradRows][kGradTaps] = {};
  const int64_t whole = width / lanes * lanes, g_width = round_up(width, lanes);
  const int rest = static_cast<int>(width - whole);
  const auto add = [&](int64_t g_at, auto&& load_x) {
    Vec<A> gradient[kGradRows];
#pragma GCC unroll 4
    for (int r = 0; r < kGradRows; ++r) gradient[r] = load<A>(g[r] + g_at);
#pragma GCC unroll 6
    for (int t = 0; t < kGradTaps; ++t) {
      const Vec<A> values = load_x(x[t]);
#pragma GCC unroll 4
      for (int r = 0; r < kGradRows; ++r) sum[r][t] += gradient[r] * values;
    }
  };
  for (int64_t a = 0; a < rows; ++a) {
    for (int64_t b = 0; b < whole; b += lanes) {
      add(a * g_width + b, [at = a * x_width + b](const A* p) { return load<A>(p + at); });
    }
    // Beyond the row lies the next one, which must not enter, not even multiplied by zero: it may
    // be infinite.
    if (rest) {
      add(a * g_width + whole,
          [at = a * x_width + whole, rest](const A* p) { return load_first<A>(p + at, rest); });
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kGradRows; ++r) {
#pragma GCC unroll 6
    for (int t = 0; t < kGradTaps; ++t) out[r][t] = horizontal_sum<A>(sum[r][t]);
  }
}

// Adds the share of output rows a ... a + rows - 1 of image n to dw[output][tap] of one group,
// whose planes in g begin at `g_plane` and in x at `x_plane`.
template <typename T>
void weight_grad_padded(const Slab<T>& slab, const Im2col<T>& g, int64_t outputs, int64_t taps,
                        int64_t n, int64_t g_plane, int64_t x_plane, int64_t a, int64_t rows,
                        Accumulator<T>* dw) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t width = g.width, g_width = round_up(width, lanes),
                plane = rows * g_width + lanes;  // with room beyond the last row
  A* const image = scratch<A>(slab.size() + outputs * plane);
  A* const gradients = image + slab.size();
  slab.fill({n, 1, a, rows}, x_plane, image);
  const PaddedRows<T> columns(g, 0, g_width);
  const int64_t together = planes_together(g);
  for (int64_t k = 0; k < outputs; k += together) {
    for (int64_t i = 0; i < rows; ++i) {
      columns.read_planes(n, g_plane + k, std::min(together, outputs - k), a + i,
                          gradients + k * plane + i * g_width, plane);
    }
  }
  for (int64_t k = 0; k < outputs; k += kGradRows) {
    for (int64_t t = 0; t < taps; t += kGradTaps) {
      const A *g_rows[kGradRows], *x_taps[kGradTaps];  // the last ones repeated at the edges
      for (int r = 0; r < kGradRows; ++r)
        g_rows[r] = gradients + std::min(k + r, outputs - 1) * plane;
      for (int s = 0; s < kGradTaps; ++s)
        x_taps[s] = image + slab.offsets()[std::min(t + s, taps - 1)];
      A tile[kGradRows][kGradTaps];
      weight_grad_tile(rows, width, g_rows, x_taps, slab.width(), tile);
      for (int64_t r = 0; r < std::min<int64_t>(kGradRows, outputs - k); ++r) {
        for (int64_t s = 0; s < std::min<int64_t>(kGradTaps, taps - t); ++s) {
          dw[(k + r) * taps + t + s] += tile[r][s];
        }
      }
    }
  }
}

}  // namespace d2lops
