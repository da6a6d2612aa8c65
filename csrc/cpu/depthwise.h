// Depthwise cross-correlation: one input and one output channel per group, so there is no product
// of matrices to block. Each output is a sum of a few elements of its own plane; the vector
// dimension is whatever lies side by side in memory, channels or the columns of a row:
//
//   y[row, column, channels] = sum over taps of  w[tap, channels] x[(row, column) + tap, channels]
//   y[row, columns]          = sum over taps of  w[tap]           x[(row, columns) + tap]
//
// Tiling: kTogether such vectors, neighbours along a row or down the rows, are summed in registers.
// Where taps of a line of the window are as far apart, each vector of x is loaded once for all of
// them. Channels are read in place, and taps outside the image left out. Columns, whose vectors
// would straddle its border, are copied to a patch with zeros around, some rows of outputs at a
// time; and so are numbers that have to be widened or masked first.
//
// Limit: main memory for windows of 3 x 3, which take R S multiply-adds per element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "common/integer.h"
#include "cpu/im2col.h"
#include "cpu/padded.h"
#include "cpu/scratch.h"

namespace d2lops {

constexpr int kTogether = 8;      // vectors of sums: enough to hide a multiply-add's latency
constexpr int kTapsTogether = 9;  // likewise, for the gradient of the weights

// A place of the window: where it reads, relative to an output's first place, and which it is.
struct WindowTap {
  int64_t offset, index;
};

// Columns of outputs over which the same columns of the window are inside the image.
struct ColumnRange {
  int64_t begin, end;
  std::vector<WindowTap> taps;
  int64_t first, per_row;  // columns of the window
  int line;                // so many taps follow one another at the distance of outputs
};

// An image under a window: [row][column][channel] where channels lie side by side (`pixels`), else
// [row][phase of the stride][column] of one channel at a time.
template <typename T>
class Patch {
 public:
  using A = Accumulator<T>;

  Patch(const Im2col<T>& x, std::vector<Place> rows, std::vector<Place> cols, int64_t channels,
        bool pixels)
      : pixels(pixels), x_(x) {
    const auto by_shift = [](const Place& a, const Place& b) { return a.shift < b.shift; };
    std::sort(rows.begin(), rows.end(), by_shift);
    std::sort(cols.begin(), cols.end(), by_shift);
    if (!rows.empty()) first_row_ = rows.front().shift, rows_ += rows.back().shift - first_row_;
    if (!cols.empty()) first_col_ = cols.front().shift, cols_ += cols.back().shift - first_col_;
    cols_ += (x.grid.width - 1) * x.grid.step_w;
    const bool inside = first_row_ >= 0 && first_row_ + height(x.grid.height) <= x.height &&
                        first_col_ >= 0 && first_col_ + cols_ <= x.width;
    in_place_ = std::is_same_v<T, A> && !x.mask &&
                (pixels ? x.strides.c == 1 : inside && x.strides.w == 1 && x.grid.step_w == 1);
    phases_ = pixels ? 1 : x.grid.step_w;
    width_ = ceil_div(cols_, phases_);
    col_ = in_place_ ? x.strides.w : pixels ? round_up(channels, kLanes<A>) : 1;
    row_ = in_place_ ? x.strides.h : phases_ * width_ * col_;
    row_step = x.grid.step_h * row_;
    col_step = pixels ? x.grid.step_w * col_ : 1;
    for (int64_t phase = 0; phase < phases_; ++phase)
      columns_.emplace_back(x, first_col_ + phase, width_, phases_);
    for (const Place& r : rows) {
      shifts_.push_back(r.shift);
      for (const Place& s : cols) places.push_back({r.index, s.index});
    }
    cut(rows, cols);
  }

  // Of what `at` may need.
  int64_t size(int64_t out_rows) const {
    return in_place_ ? 0 : height(out_rows) * row_ + kLanes<A>;
  }

  // The first place of the window for output (a, 0) of image n; copied to `to`, or in place.
  const A* at(int64_t n, int64_t channel, int count, int64_t a, int64_t out_rows, A* to) const {
    const Strides& s = x_.strides;
    const int64_t first = a * x_.grid.step_h + first_row_;
    if constexpr (std::is_same_v<T, A>) {
      if (in_place_) return x_.image + n * s.n + channel * s.c + first * s.h + first_col_ * s.w;
    }
    A* row = to;
    for (int64_t h = first; h < first + height(out_rows); ++h) {
      for (const PaddedRows<T>& columns : columns_) {
        if (pixels) {
          columns.read_pixels(n, channel, count, h, row, col_);
        } else {
          columns.read_planes(n, channel, 1, h, row, 0);
        }
        row += width_ * col_;
      }
    }
    return to;
  }

  // Those of a range's taps that are inside the image for outputs in row a.
  std::pair<const WindowTap*, const WindowTap*> taps(const ColumnRange& range, int64_t a) const {
    const auto rows_before = [&](int64_t h) {
      return clipped() ? std::lower_bound(shifts_.begin(), shifts_.end(), h - a * x_.grid.step_h) -
                             shifts_.begin()
             : h > 0   ? shifts_.size()
                       : 0;
    };
    const WindowTap* taps = range.taps.data();
    return {taps + rows_before(0) * range.per_row, taps + rows_before(x_.height) * range.per_row};
  }

  const bool pixels;
  int64_t row_step, col_step;                       // between outputs
  std::vector<std::pair<int64_t, int64_t>> places;  // row and column in the kernel, by index
  std::vector<ColumnRange> ranges;

 private:
  // Whether taps must not be read where they lie outside the image.
  bool clipped() const { return in_place_ && pixels; }
  int64_t height(int64_t out_rows) const { return (out_rows - 1) * x_.grid.step_h + rows_; }

  void cut(const std::vector<Place>& rows, const std::vector<Place>& cols) {
    const auto count = static_cast<int64_t>(cols.size());
    int64_t begin = 0, end = count;
    for (int64_t b = 0; b < x_.grid.width; ++b) {
      if (clipped()) {
        const int64_t w = b * x_.grid.step_w;
        for (begin = 0; begin < count && w + cols[begin].shift < 0;) ++begin;
        for (end = begin; end < count && w + cols[end].shift < x_.width;) ++end;
      }
      if (ranges.empty() || ranges.back().first != begin || ranges.back().per_row != end - begin)
        ranges.push_back(range(b, rows, cols, begin, end));
      ranges.back().end = b + 1;
    }
  }

  ColumnRange range(int64_t b, const std::vector<Place>& rows, const std::vector<Place>& cols,
                    int64_t begin, int64_t end) const {
    ColumnRange range{b, b, {}, begin, end - begin, 1};
    const auto add = [&](int64_t r, int64_t s) {
      const int64_t h = rows[r].shift - first_row_, w = cols[s].shift - first_col_;
      range.taps.push_back({h * row_ + (w % phases_ * width_ + w / phases_) * col_,
                            r * static_cast<int64_t>(cols.size()) + s});
    };
    const auto height = static_cast<int64_t>(rows.size());
    if (pixels) {
      for (int64_t r = 0; r < height; ++r)
        for (int64_t s = begin; s < end; ++s) add(r, s);
    } else {
      for (int64_t s = begin; s < end; ++s)
        for (int64_t r = 0; r < height; ++r) add(r, s);
    }
    const auto& along = pixels ? cols : rows;
    const int64_t from = pixels ? begin : 0, line = pixels ? end - begin : height;
    bool even = line == 3 || line == 5;
    for (int64_t i = from + 1; even && i < from + line; ++i)
      even = along[i].shift - along[i - 1].shift == (pixels ? x_.grid.step_w : x_.grid.step_h);
    if (even) range.line = static_cast<int>(line);
    return range;
  }

  const Im2col<T>& x_;
  bool in_place_;
  int64_t first_row_ = 0, first_col_ = 0, rows_ = 1, cols_ = 1;  // rows_: under one output
  int64_t phases_, width_, col_, row_;
  std::vector<int64_t> shifts_;         // of the window's rows
  std::vector<PaddedRows<T>> columns_;  // of each phase
};

// Tasks: some rows of outputs of an image, and some channels; as sizes alone have it.
template <typename T>
struct Strips {
  Strips(const Im2col<T>& x, const Patch<T>& patch, int64_t all_channels)
      : all_channels(all_channels), height(x.grid.height) {
    // A patch of a quarter of a megabyte, or one that fits the first-level cache.
    const int64_t most = patch.pixels ? 65536 : 8192, first = patch.size(1);
    rows = std::clamp<int64_t>(1 + (most - first) / patch.row_step, 1, height);
    blocks = ceil_div(height, rows);
    rows = ceil_div(height, blocks);
    channels = channels_at_a_time(patch.pixels, all_channels);
    across = ceil_div(all_channels, channels);
  }
  static int64_t channels_at_a_time(bool pixels, int64_t all) {
    return pixels ? std::min<int64_t>(all, 128) : 1;
  }

  struct Strip {
    int64_t channel;
    int channels;
    int64_t a, rows;
  };
  Strip at(int64_t block, int64_t i) const {
    const int64_t a = block * rows, channel = i * channels;
    return {channel, static_cast<int>(std::min(channels, all_channels - channel)), a,
            std::min(rows, height - a)};
  }

  int64_t all_channels, height;
  int64_t channels, rows, across, blocks;
};

// Weights as vectors: w[1 + tap][channels], or w[1 + tap][copies] for each channel; the first is
// the bias.
template <typename T>
struct WindowWeights {
  using A = Accumulator<T>;
  WindowWeights(int64_t channels, const Patch<T>& patch, const T* w, int64_t w_channel,
                const Strides& ws, const Epilogue<T>& epilogue)
      : tap_step(patch.pixels ? round_up(channels, kLanes<A>) : kLanes<A>),
        channel_step(patch.pixels ? 1 : (1 + patch.places.size()) * kLanes<A>) {
    const int64_t copies = patch.pixels ? 1 : kLanes<A>;
    data = scratch<A, 1>((1 + patch.places.size()) * round_up(channels * copies, kLanes<A>));
    for (int64_t c = 0; c < channels; ++c) {
      A* to = data + c * channel_step;
      const T* bias = epilogue.bias ? epilogue.bias + c * epilogue.bias_stride : nullptr;
      std::fill_n(to, copies, bias ? load1<A>(bias) : A{0});
      for (const auto& [r, s] : patch.places)
        std::fill_n(to += tap_step, copies, load1<A>(w + c * w_channel + r * ws.h + s * ws.w));
    }
  }
  const A* at(int64_t channel) const { return data + channel * channel_step; }

  int64_t tap_step, channel_step;
  A* data;
};

// Outputs from the first place of their window on.
template <typename T>
struct WindowSum {
  using A = Accumulator<T>;
  const A* weights;
  int64_t tap_step, line_step, inner_step;  // of weights
  int64_t x_step, y_step, y_inner;          // of outputs
  bool relu;

  // n x `inner` outputs.
  void operator()(int line, std::pair<const WindowTap*, const WindowTap*> taps, int64_t n,
                  int64_t inner, const A* x, T* y) const {
    if (line == 3) return sums<3>(taps.first, taps.second, n, inner, x, y);
    if (line == 5) return sums<5>(taps.first, taps.second, n, inner, x, y);
    sums<1>(taps.first, taps.second, n, inner, x, y);
  }

 private:
  // Count vectors at a time; the last ones may be computed twice.
  template <int Line, int Count = kTogether>
  void sums(const WindowTap* tap, const WindowTap* end, int64_t n, int64_t inner, const A* x,
            T* y) const {
    if constexpr (Count > 1) {
      if (n < Count) return sums<Line, Count / 2>(tap, end, n, inner, x, y);
    }
    for (int64_t i = 0; i < n; i += Count) {
      i = std::min(i, n - Count);
      for (int64_t c = 0; c < inner; c += kLanes<A>) {
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes<A>, inner - c));
        const A* const from = x + i * x_step + c;
        const A* const w = weights + c * inner_step;
        T* const to = y + i * y_step + c * y_inner;
        if (lanes == kLanes<A> && y_inner == 1) {
          run<Line, Count>(
              tap, end, w, from, [](const A* p) { return load<A>(p); }, to,
              [](T* p, Vec<A> value) { store(p, value); });
        } else {
          run<Line, Count>(
              tap, end, w, from, [lanes](const A* p) { return load_first<A>(p, lanes); }, to,
              [&](T* p, Vec<A> value) {
                if (y_inner == 1) return store_first(p, value, lanes);
                A values[kLanes<A>];
                store(values, value);
                write_row(values, lanes, p, y_inner);
              });
        }
      }
    }
  }

  template <int Line, int Count, typename Load, typename Store>
  void run(const WindowTap* tap, const WindowTap* end, const A* w, const A* x, Load load_x, T* y,
           Store store_y) const {
    Vec<A> sum[Count];
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) sum[i] = load<A>(w);
    for (; tap < end; tap += Line) {
      Vec<A> weight[Line];
#pragma GCC unroll 8
      for (int l = 0; l < Line; ++l)
        weight[l] = load<A>(w + (1 + tap->index) * tap_step + l * line_step);
      const A* from = x + tap->offset;
#pragma GCC unroll 16
      for (int i = 0; i < Count + Line - 1; ++i, from += x_step) {
        const Vec<A> value = load_x(from);
#pragma GCC unroll 8
        for (int l = 0; l < Line; ++l) {
          if (i - l >= 0 && i - l < Count) sum[i - l] += weight[l] * value;
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i)
      store_y(y + i * y_step, relu ? (sum[i] < A{0} ? Vec<A>{} : sum[i]) : sum[i]);
  }
};

// sums[tap] += the sum of n products of a vector of g and one of x, for each of Taps taps.
template <int Taps, typename A>
struct AddProducts {
  static void add(const WindowTap* taps, int64_t n, const A* g, int64_t g_step, const A* x,
                  int64_t x_step, int lanes, A* sums, int64_t sum_step) {
    if (lanes == kLanes<A>) {
      run(taps, n, g, g_step, x, x_step, [](const A* p) { return load<A>(p); }, sums, sum_step);
    } else {
      // Beyond may lie an infinity, which must not enter, not even multiplied by zero.
      run(
          taps, n, g, g_step, x, x_step, [lanes](const A* p) { return load_first<A>(p, lanes); },
          sums, sum_step);
    }
  }

 private:
  template <typename Load>
  static void run(const WindowTap* taps, int64_t n, const A* g, int64_t g_step, const A* x,
                  int64_t x_step, Load load_some, A* sums, int64_t sum_step) {
    Vec<A> sum[Taps] = {};
    for (int64_t i = 0; i < n; ++i, g += g_step, x += x_step) {
      const Vec<A> gradient = load_some(g);
#pragma GCC unroll 9
      for (int t = 0; t < Taps; ++t) sum[t] += gradient * load_some(x + taps[t].offset);
    }
    for (int t = 0; t < Taps; ++t) {
      A* const to = sums + taps[t].index * sum_step;
      store(to, load<A>(to) + sum[t]);
    }
  }
};

template <typename A>
using AddProductsOf = void (*)(const WindowTap*, int64_t, const A*, int64_t, const A*, int64_t, int,
                               A*, int64_t);
template <typename A, int... I>
constexpr AddProductsOf<A> add_products_of(int64_t taps, std::integer_sequence<int, I...>) {
  constexpr AddProductsOf<A> kernels[] = {AddProducts<I + 1, A>::add...};
  return kernels[taps - 1];
}

// The same for n x `inner` numbers and any number of taps; vectors of sums are `sum_inner` apart
// for each of inner.
template <typename A>
void add_products(std::pair<const WindowTap*, const WindowTap*> taps, int64_t n, int64_t inner,
                  const A* g, int64_t g_step, const A* x, int64_t x_step, A* sums, int64_t sum_step,
                  int64_t sum_inner) {
  for (int64_t c = 0; c < inner; c += kLanes<A>) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes<A>, inner - c));
    for (const WindowTap* tap = taps.first; tap < taps.second; tap += kTapsTogether) {
      const auto count = std::min<int64_t>(kTapsTogether, taps.second - tap);
      add_products_of<A>(count, std::make_integer_sequence<int, kTapsTogether>{})(
          tap, n, g + c, g_step, x + c, x_step, lanes, sums + c * sum_inner, sum_step);
    }
  }
}

}  // namespace d2lops
