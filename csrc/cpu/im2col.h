// Images as matrices, without ever being one: the readers and the writer by which gemm.h becomes
// cross-correlation. A *pixel* is a place (image, a, b) of a grid that the kernel's window visits;
// a *tap* is one input plane at one place of the window. The im2col matrix has a row per pixel and
// a column per tap:
//
//   im2col[pixel, tap] = image[n, tap.plane, a * step_h + tap.dh, b * step_w + tap.dw], zero
//   outside
//
// The three directions of corr2d differ in grid and taps alone (see corr2d.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "common/integer.h"
#include "common/operand.h"
#include "cpu/matrix.h"
#include "cpu/micro_kernel.h"

namespace d2lops {

// Where a tap is read, relative to a pixel, and where its weight lies. Offsets count elements. In
// columns begin ... end - 1 of the grid it lies inside the image (if its row does).
struct Tap {
  int64_t image, mask, weight;
  int64_t dh, dw;
  int64_t begin = 0, end = 0;
};

// The places of a window: `height` x `width` in each image, `step` input rows and columns apart.
struct Grid {
  int64_t images, height, width;
  int64_t step_h = 1, step_w = 1;

  int64_t count() const { return images * height * width; }
};

// Runs of pixels in one row of the grid that make up pixels first ... first + count - 1: f(at,
// length, n, a, b).
template <typename F>
inline void for_each_run(const Grid& grid, int64_t first, int count, F&& f) {
  int64_t b = first % grid.width, row = first / grid.width;
  for (int at = 0; at < count;) {
    const int length = static_cast<int>(std::min<int64_t>(count - at, grid.width - b));
    f(at, length, row / grid.height, row % grid.height, b);
    at += length;
    ++row;
    b = 0;
  }
}

// The im2col matrix as a reader for gemm.h.
template <typename T>
struct Im2col {
  using A = Accumulator<T>;
  const T* image;
  Strides strides;
  const T* mask;  // y of a ReLU, or null; it has strides of its own
  Strides mask_strides;
  int64_t height, width;
  Grid grid;
  const Tap* taps;
  int64_t tap_stride;   // of taps that follow one another at one place: the image's channel stride
  bool runs_over_taps;  // whether rows are read along taps (channels innermost) or along pixels
  bool taps_are_depth;  // whether the product sums over taps (forward, input gradient) or over
                        // pixels

  // Pixels in one row of the grid, or taps at one place of the window.
  struct Run {
    int at, length;
    int64_t image, mask, h,
        w;  // offsets, and the first place; for pixels, w is a column of the grid
  };
  struct Start {
    int runs;
    Run run[std::max(kCols<A>, kDepth)];
  };

  bool along_depth() const { return runs_over_taps == taps_are_depth; }

  // Tells taps where they are inside the image, once grid and image are settled.
  void limit(std::vector<Tap>& all) const {
    const int64_t step = grid.step_w;
    for (Tap& tap : all) {
      tap.begin = std::clamp<int64_t>(ceil_div(-tap.dw, step), 0, grid.width);
      tap.end = std::clamp(ceil_div(width - tap.dw, step), tap.begin, grid.width);
    }
  }

  Start start(int64_t first, int count) const {
    Start s;
    s.runs = 0;
    if (runs_over_taps) {
      for (int at = 0; at < count;) {
        const Tap& tap = taps[first + at];
        int length = 1;
        while (at + length < count && taps[first + at + length].dh == tap.dh &&
               taps[first + at + length].dw == tap.dw) {
          ++length;
        }
        s.run[s.runs++] = {at, length, tap.image, tap.mask, tap.dh, tap.dw};
        at += length;
      }
    } else {
      for_each_run(grid, first, count, [&](int at, int length, int64_t n, int64_t a, int64_t b) {
        const int64_t h = a * grid.step_h, w = b * grid.step_w;
        s.run[s.runs++] = {at,
                           length,
                           n * strides.n + h * strides.h + w * strides.w,
                           n * mask_strides.n + h * mask_strides.h + w * mask_strides.w,
                           h,
                           b};
      });
    }
    return s;
  }

  void row(const Start& s, int64_t at, A* out) const {
    runs_over_taps ? row_of_taps(s, at, out) : row_of_pixels(s, taps[at], out);
  }

 private:
  void row_of_taps(const Start& s, int64_t pixel, A* out) const {
    int64_t n = 0, a = 0, b = pixel;
    if (grid.images * grid.height > 1) {
      const int64_t row = pixel / grid.width;
      n = row / grid.height, a = row % grid.height, b = pixel % grid.width;
    }
    const int64_t h = a * grid.step_h, w = b * grid.step_w;
    const int64_t place = n * strides.n + h * strides.h + w * strides.w;
    const int64_t mask_place = n * mask_strides.n + h * mask_strides.h + w * mask_strides.w;
    for (int i = 0; i < s.runs; ++i) {
      const Run& run = s.run[i];
      const bool inside =
          uint64_t(h + run.h) < uint64_t(height) && uint64_t(w + run.w) < uint64_t(width);
      if (inside) {
        read(place + run.image, mask_place + run.mask, tap_stride, mask_strides.c, run.length,
             out + run.at);
      } else {
        std::fill_n(out + run.at, run.length, A{0});
      }
    }
  }

  void row_of_pixels(const Start& s, const Tap& tap, A* out) const {
    const int64_t stride = grid.step_w * strides.w, mask_stride = grid.step_w * mask_strides.w;
    for (int i = 0; i < s.runs; ++i) {
      const Run& run = s.run[i];
      A* to = out + run.at;
      int low = 0, high = 0;  // pixels low ... high - 1 of the run lie inside the image
      if (uint64_t(run.h + tap.dh) < uint64_t(height)) {
        low = static_cast<int>(std::clamp<int64_t>(tap.begin - run.w, 0, run.length));
        high = static_cast<int>(std::clamp<int64_t>(tap.end - run.w, low, run.length));
      }
      if (high - low < run.length) {
        for (int x = 0; x < run.length; x += kLanes<A>) store(to + x, Vec<A>{});
      }
      read(run.image + tap.image + low * stride, run.mask + tap.mask + low * mask_stride, stride,
           mask_stride, high - low, to + low);
    }
  }

  void read(int64_t from, int64_t mask_from, int64_t stride, int64_t mask_stride, int n,
            A* out) const {
    read_row(image + from, stride, n, out);
    if (mask) mask_row(mask + mask_from, mask_stride, n, out);
  }
};

// For taps that are evenly spaced: those of one place. Pixels count up to the end of their run.
template <typename T>
MemoryRows memory_rows(const Im2col<T>& x, int64_t first, int64_t count, int64_t k, int64_t depth) {
  const auto [tap, taps] = x.taps_are_depth ? std::pair(k, depth) : std::pair(first, count);
  const auto [pixel, pixels] = x.taps_are_depth ? std::pair(first, count) : std::pair(k, depth);
  if (taps <= 0 || pixels <= 0) return {};
  const Tap &begin = x.taps[tap], &last = x.taps[tap + taps - 1];
  const Grid& grid = x.grid;
  const Strides& s = x.strides;
  if (begin.dh != last.dh || begin.dw != last.dw) return {};
  const int64_t row = pixel / grid.width, n = row / grid.height, b = pixel % grid.width;
  const int64_t run = std::min(pixels, grid.width - b), step = grid.step_w * s.w;
  const T* const data =
      x.image + n * s.n + row % grid.height * grid.step_h * s.h + b * step + begin.image;
  const bool alike = x.mask && x.mask_strides.n == s.n && x.mask_strides.c == s.c &&
                     x.mask_strides.h == s.h && x.mask_strides.w == s.w;
  const int64_t mask = alike ? bytes_between(x.image, x.mask) : 0;
  constexpr int64_t size = sizeof(T);
  if (x.runs_over_taps) return {data, run, size * taps * x.tap_stride, size * step, mask};
  return {data, taps, size * run * step, size * x.tap_stride, mask};
}

// to[r * to_stride + c] = from[r + c * col_stride], with the sign of mask[r + c * mask_stride]
// where it is given: blocks are transposed in registers, and written up to the end of a row's last
// vector.
template <typename T, typename A>
[[gnu::noinline]] void transpose_matrix(const T* from, int64_t col_stride, const T* mask,
                                        int64_t mask_stride, int64_t rows, int64_t cols, A* to,
                                        int64_t to_stride) {
  constexpr int lanes = kLanes<A>;
  for (int64_t r = 0; r < rows; r += lanes) {
    const int n = static_cast<int>(std::min<int64_t>(lanes, rows - r));
    const auto read = [&](const T* p) { return n == lanes ? load<A>(p) : load_first<A>(p, n); };
    for (int64_t c = 0; c < cols; c += lanes) {
      Vec<A> block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (c + i >= cols) {
          block[i] = Vec<A>{};
        } else {
          block[i] = read(from + r + (c + i) * col_stride);
          if (mask) block[i] = read(mask + r + (c + i) * mask_stride) <= A{0} ? Vec<A>{} : block[i];
        }
      }
      transpose<lanes, A>(block);
      for (int i = 0; i < n; ++i) store(to + (r + i) * to_stride + c, block[i]);
    }
  }
}

// to[r * to_stride + c] = from[r * row_stride + c * col_stride], with the mask's sign where it is
// given. May write up to the end of a row's last vector: rows must be that far apart, or shorter
// than one vector.
template <typename T, typename A>
inline void read_matrix(const T* from, int64_t row_stride, int64_t col_stride, const T* mask,
                        int64_t mask_row_stride, int64_t mask_col_stride, int64_t rows,
                        int64_t cols, A* to, int64_t to_stride) {
  if (rows > 1 && row_stride == 1 && col_stride != 1 && (!mask || mask_row_stride == 1)) {
    return transpose_matrix(from, col_stride, mask, mask_col_stride, rows, cols, to, to_stride);
  }
  // Rows that follow one another are one long row.
  if (col_stride == 1 && row_stride == cols && to_stride == cols &&
      (!mask || (mask_col_stride == 1 && mask_row_stride == cols))) {
    cols *= rows;
    rows = 1;
  }
  for (int64_t r = 0; r < rows; ++r) {
    read_row(from + r * row_stride, col_stride, cols, to + r * to_stride);
    if (mask) mask_row(mask + r * mask_row_stride, mask_col_stride, cols, to + r * to_stride);
  }
}

// n zeros, and as many more as the last vector holds: fewer than a call of memset costs.
template <typename A>
inline void zero_vectors(A* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<A>) store(to + i, Vec<A>{});
}

// Rows of an image with zeros around: `cols` columns from w on, `step` apart. Whatever follows a
// row of a result may be written over, up to the end of the row's last vector.
template <typename T>
class PaddedRows {
 public:
  using A = Accumulator<T>;

  PaddedRows(const Im2col<T>& x, int64_t w, int64_t cols, int64_t step = 1)
      : x_(x), w_(w), cols_(cols), step_(step) {
    const auto first_from = [&](int64_t column) { return ceil_div(column - w, step); };
    low_ = std::clamp<int64_t>(first_from(0), 0, cols);
    high_ = std::clamp<int64_t>(first_from(x.width), low_, cols);
  }

  // Planes `plane` ... + `planes` - 1 of row h of image n, each a row of the result.
  void read_planes(int64_t n, int64_t plane, int64_t planes, int64_t h, A* to,
                   int64_t to_stride) const {
    if (planes == 1) return read_plane(n, plane, h, to);
    const Part part(*this, n, plane, h);
    for (int64_t p = 0; p < planes; ++p) zero_vectors(to + p * to_stride, part.low);
    read_matrix(part.from, x_.strides.c, step_ * x_.strides.w, part.mask, x_.mask_strides.c,
                step_ * x_.mask_strides.w, planes, part.high - part.low, to + part.low, to_stride);
    for (int64_t p = 0; p < planes; ++p)
      zero_vectors(to + p * to_stride + part.high, cols_ - part.high);
  }

  // The same, with a row of the result for each column.
  void read_pixels(int64_t n, int64_t plane, int64_t planes, int64_t h, A* to,
                   int64_t to_stride) const {
    const Part part(*this, n, plane, h);
    const auto zero = [&](int64_t i) { zero_vectors(to + i * to_stride, planes); };
    for (int64_t i = 0; i < part.low; ++i) zero(i);
    read_matrix(part.from, step_ * x_.strides.w, x_.strides.c, part.mask, step_ * x_.mask_strides.w,
                x_.mask_strides.c, part.high - part.low, planes, to + part.low * to_stride,
                to_stride);
    for (int64_t i = part.high; i < cols_; ++i) zero(i);
  }

 private:
  // What of a row lies inside the image: columns low ... high - 1.
  struct Part {
    int64_t low, high;
    const T *from, *mask;

    Part(const PaddedRows& rows, int64_t n, int64_t plane, int64_t h) {
      const Im2col<T>& x = rows.x_;
      const bool inside = h >= 0 && h < x.height;
      low = inside ? rows.low_ : rows.cols_;
      high = inside ? rows.high_ : rows.cols_;
      const int64_t w = rows.w_ + low * rows.step_;
      const Strides &s = x.strides, &m = x.mask_strides;
      from = x.image + n * s.n + plane * s.c + h * s.h + w * s.w;
      mask = x.mask ? x.mask + n * m.n + plane * m.c + h * m.h + w * m.w : nullptr;
    }
  };

  void read_plane(int64_t n, int64_t plane, int64_t h, A* to) const {
    const Part part(*this, n, plane, h);
    zero_vectors(to, part.low);
    const int64_t inside = part.high - part.low;
    read_row(part.from, step_ * x_.strides.w, inside, to + part.low);
    if (part.mask) mask_row(part.mask, step_ * x_.mask_strides.w, inside, to + part.low);
    zero_vectors(to + part.high, cols_ - part.high);
  }

  const Im2col<T>& x_;
  int64_t w_, cols_, step_, low_, high_;  // of rows inside the image
};

// How many planes had better be read at a time: where they lie side by side, those of a vector.
template <typename T>
inline int64_t planes_together(const Im2col<T>& x) {
  return x.strides.c == 1 ? kLanes<Accumulator<T>> : 1;
}

// The weights that meet the taps, as a reader: element (i, tap) is data[i * i_stride +
// taps[tap].weight].
template <typename T>
struct TapWeights {
  using A = Accumulator<T>;
  const T* data;
  int64_t i_stride;
  const Tap* taps;
  bool dense;  // taps[t].weight == t

  struct Start {
    int64_t first;
    int count;
  };
  bool along_depth() const { return dense || i_stride != 1; }
  Start start(int64_t first, int count) const { return {first, count}; }
  void row(const Start& s, int64_t at, A* out) const {
    if (!along_depth()) return read_row(data + s.first + taps[at].weight, 1, s.count, out);
    const T* from = data + at * i_stride;
    if (dense) return read_row(from + s.first, 1, s.count, out);
    for (int t = 0; t < s.count; ++t) out[t] = load1<A>(from + taps[s.first + t].weight);
  }
};

// Pieces of the product, (channels x pixels) or (pixels x channels), to an image.
template <typename T>
struct ImageWriter {
  using A = Accumulator<T>;
  T* image;
  Strides strides;
  Grid grid;
  Epilogue<T> epilogue;
  bool channels_first;                                 // whether rows of a piece are channels
  int64_t columns;                                     // of the grid that exist in the image
  int64_t rows = std::numeric_limits<int64_t>::max();  // likewise

  void operator()(int64_t i, int64_t j, int rows, int cols, A* c) const {
    if (channels_first) {
      for (int r = 0; r < rows; ++r) epilogue.per_row(i + r, c + r * kCols<A>, cols);
      if (strides.c == 1 && rows == kRows) return write_channels(i, j, cols, c);
      for_each_run(grid, j, cols, [&](int at, int length, int64_t n, int64_t a, int64_t b) {
        if (a >= this->rows) return;
        const int count = static_cast<int>(std::min<int64_t>(length, columns - b));
        T* to = image + place(n, a, b) + i * strides.c;
        for (int r = 0; r < rows; ++r, to += strides.c) {
          write_row(c + r * kCols<A> + at, count, to, grid.step_w * strides.w);
        }
      });
    } else {
      for_each_run(grid, i, rows, [&](int at, int length, int64_t n, int64_t a, int64_t b) {
        for (int r = at; r < at + length; ++r, ++b) {
          epilogue.per_column(j, c + r * kCols<A>, cols);
          write_row(c + r * kCols<A>, cols, image + place(n, a, b) + j * strides.c, strides.c);
        }
      });
    }
  }

 private:
  // kRows channels that lie side by side in the image: transposed, they are contiguous.
  void write_channels(int64_t i, int64_t j, int cols, const A* c) const {
    constexpr int rows = std::min(kRows, kLanes<A>);
    alignas(kVectorBytes) A pixels[kCols<A> * kRows];
    for (int r = 0; r < kRows; r += rows) {
      for (int x = 0; x < cols; x += kLanes<A>) {
        Vec<A> block[rows];
        for (int y = 0; y < rows; ++y) block[y] = load<A>(c + (r + y) * kCols<A> + x);
        transpose<rows, A>(block);
        for (int y = 0; y < rows; ++y) {
          store(pixels + x * kRows + y * (rows == kRows ? kLanes<A> : kRows) + r, block[y]);
        }
      }
    }
    for_each_run(grid, j, cols, [&](int at, int length, int64_t n, int64_t a, int64_t b) {
      if (a >= this->rows) return;
      const int count = static_cast<int>(std::min<int64_t>(length, columns - b));
      T* to = image + place(n, a, b) + i;
      for (int x = at; x < at + count; ++x, to += grid.step_w * strides.w) {
        if constexpr (std::is_same_v<T, A>) {
          std::memcpy(to, pixels + x * kRows, kRows * sizeof(T));
        } else {
          write_row(pixels + x * kRows, kRows, to, 1);
        }
      }
    });
  }

  int64_t place(int64_t n, int64_t a, int64_t b) const {
    return n * strides.n + a * grid.step_h * strides.h + b * grid.step_w * strides.w;
  }
};

}  // namespace d2lops
