// Depthwise cross-correlation: one input and one output channel per group, so there is no product
// of matrices to block. Each output is a sum of a few elements of its own plane; the vector
// dimension is whatever lies side by side in memory, channels or the pixels of a row:
//
//   y[pixel, channels] = sum over taps of  w[tap, channels] x[pixel + tap, channels]
//   y[row of pixels]   = sum over taps of  w[tap]           x[row of pixels + tap]
//
// Sums stay in registers or in the first-level cache. R S multiply-adds per element: for 3 x 3
// windows, main memory is the limit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/im2col.h"

namespace d2lops {

template <typename A>
inline void multiply_add(const A* __restrict a, const A* __restrict b, int64_t n,
                         A* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += a[i] * b[i];
}

// Reads rows of an image: numbers that lie side by side are used where they are.
template <typename T>
struct RowReader {
  using A = Accumulator<T>;
  const Im2col<T>& x;
  A* buffer;

  // n numbers of image `image` from (plane, h, w) on, along channels or along columns.
  const A* read(int64_t image, int64_t plane, int64_t h, int64_t w, int64_t n,
                bool channels) const {
    const T* from = x.image + at(x.strides, image, plane, h, w);
    const int64_t stride = channels ? x.strides.c : x.grid.step_w * x.strides.w;
    if constexpr (std::is_same_v<T, A>) {
      if (stride == 1 && !x.mask) return from;
    }
    read_row(from, stride, n, buffer);
    if (x.mask) {
      const Strides& y = x.mask_strides;
      mask_row(x.mask + at(y, image, plane, h, w), channels ? y.c : x.grid.step_w * y.w, n, buffer);
    }
    return buffer;
  }

 private:
  static int64_t at(const Strides& s, int64_t image, int64_t plane, int64_t h, int64_t w) {
    return image * s.n + plane * s.c + h * s.h + w * s.w;
  }
};

inline bool inside(int64_t i, int64_t size) { return uint64_t(i) < uint64_t(size); }

// Output row `a` of image n, all channels side by side. weights[tap][channels].
template <typename T>
void depthwise_pixels(const Im2col<T>& x, const std::vector<Tap>& taps, int64_t channels,
                      const Accumulator<T>* weights, const ImageWriter<T>& out, int64_t n,
                      int64_t a) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t padded = channels + lanes;
  A* const sums = scratch<A>((1 + taps.size()) * padded);
  std::vector<std::pair<const A*, const A*>> terms(taps.size());  // values and their weights
  T* to = out.image + n * out.strides.n + a * out.grid.step_h * out.strides.h;
  for (int64_t b = 0; b < x.grid.width; ++b, to += out.grid.step_w * out.strides.w) {
    int count = 0;
    for (size_t t = 0; t < taps.size(); ++t) {
      const int64_t h = a * x.grid.step_h + taps[t].dh, w = b * x.grid.step_w + taps[t].dw;
      if (!inside(h, x.height) || !inside(w, x.width)) continue;
      const RowReader<T> reader{x, sums + (1 + count) * padded};
      terms[count++] = {reader.read(n, 0, h, w, channels, true), weights + t * channels};
    }
    int64_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      Vec<A> sum{};
      for (int i = 0; i < count; ++i)
        sum += load<A>(terms[i].first + c) * load<A>(terms[i].second + c);
      store(sums + c, sum);
    }
    if (const int rest = static_cast<int>(channels - c)) {
      Vec<A> sum{};
      for (int i = 0; i < count; ++i) {
        sum += load_first<A>(terms[i].first + c, rest) * load_first<A>(terms[i].second + c, rest);
      }
      store(sums + c, sum);
    }
    out.epilogue.per_column(0, sums, static_cast<int>(channels));
    write_row(sums, static_cast<int>(channels), to, out.strides.c);
  }
}

// Output row `a` of image n and one channel. weights[tap].
template <typename T>
void depthwise_row(const Im2col<T>& x, const std::vector<Tap>& taps, int64_t channel,
                   const Accumulator<T>* weights, const ImageWriter<T>& out, int64_t n, int64_t a) {
  using A = Accumulator<T>;
  const int64_t width = x.grid.width;
  A* const sums = scratch<A>(2 * (width + kLanes<A>));
  const RowReader<T> reader{x, sums + width + kLanes<A>};
  std::fill_n(sums, width, A{0});
  for (size_t t = 0; t < taps.size(); ++t) {
    const Tap& tap = taps[t];
    const int64_t h = a * x.grid.step_h + tap.dh, count = tap.end - tap.begin;
    if (!inside(h, x.height) || count == 0) continue;
    const A* values = reader.read(n, channel, h, tap.begin * x.grid.step_w + tap.dw, count, false);
    const A weight = weights[t];
    A* const to = sums + tap.begin;
    for (int64_t i = 0; i < count; ++i) to[i] += weight * values[i];
  }
  out.epilogue.per_row(channel, sums, static_cast<int>(width));
  write_row(
      sums, static_cast<int>(width),
      out.image + n * out.strides.n + channel * out.strides.c + a * out.grid.step_h * out.strides.h,
      out.grid.step_w * out.strides.w);
}

// Adds row `a` of image n to sums[tap][channels] of the weights' gradient, channels side by side.
template <typename T>
void depthwise_weight_pixels(const Im2col<T>& g, const Im2col<T>& x, const std::vector<Tap>& taps,
                             int64_t channels, int64_t n, int64_t a, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  A* const buffer = scratch<A>(2 * (channels + kLanes<A>));
  const RowReader<T> g_reader{g, buffer}, x_reader{x, buffer + channels + kLanes<A>};
  for (int64_t b = 0; b < g.grid.width; ++b) {
    const A* gradient = g_reader.read(n, 0, a, b, channels, true);
    for (size_t t = 0; t < taps.size(); ++t) {
      const int64_t h = a * x.grid.step_h + taps[t].dh, w = b * x.grid.step_w + taps[t].dw;
      if (!inside(h, x.height) || !inside(w, x.width)) continue;
      multiply_add(gradient, x_reader.read(n, 0, h, w, channels, true), channels,
                   sums + t * channels);
    }
  }
}

// The share of image n and one channel in the weights' gradient: sums[tap].
template <typename T>
void depthwise_weight_plane(const Im2col<T>& g, const Im2col<T>& x, const std::vector<Tap>& taps,
                            int64_t channel, int64_t n, Accumulator<T>* sums) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t width = g.grid.width;
  A* const g_buffer = scratch<A>(2 * (width + lanes) + taps.size() * lanes);
  A* const x_buffer = g_buffer + width + lanes;
  A* const partial = x_buffer + width + lanes;  // a vector of sums for each tap
  const RowReader<T> g_reader{g, g_buffer}, x_reader{x, x_buffer};
  std::fill_n(partial, taps.size() * lanes, A{0});
  for (int64_t a = 0; a < g.grid.height; ++a) {
    const A* gradient = g_reader.read(n, channel, a, 0, width, false);
    for (size_t t = 0; t < taps.size(); ++t) {
      const Tap& tap = taps[t];
      const int64_t h = a * x.grid.step_h + tap.dh, count = tap.end - tap.begin;
      if (!inside(h, x.height) || count == 0) continue;
      const A* values =
          x_reader.read(n, channel, h, tap.begin * x.grid.step_w + tap.dw, count, false);
      const A* from = gradient + tap.begin;
      Vec<A> sum = load<A>(partial + t * lanes);
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) sum += load<A>(from + i) * load<A>(values + i);
      const int rest = static_cast<int>(count - i);
      if (rest) sum += load_first<A>(from + i, rest) * load_first<A>(values + i, rest);
      store(partial + t * lanes, sum);
    }
  }
  for (size_t t = 0; t < taps.size(); ++t)
    sums[t] = horizontal_sum<A>(load<A>(partial + t * lanes));
}

}  // namespace d2lops
