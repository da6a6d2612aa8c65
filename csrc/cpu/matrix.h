// What the pluggable parts of gemm.h are made of: rows read, masked and written, the reader of a
// matrix as it lies in memory, and the epilogue.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd.h"

namespace d2lops {

// A reader R of an (I x K) matrix has
//   bool along_depth()                 whether its rows run along k, each at one i, or along i
//   Start start(int64_t first, int n)  what rows that cover first ... first + n - 1 have in common
//   void row(const Start&, int64_t at, A* out)
//                                      the row at this i (or k): n numbers, and up to a vector's
//                                      worth of anything after them, which whoever packs writes over

// n numbers `stride` apart, widened to what the kernel computes in. May write zeros to the end of
// the last vector.
template <int Stride, typename T, typename A>
inline int64_t read_vectors(const T* p, int64_t n, A* out) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;  // the last vector's load would reach beyond the n-th number unless Stride is 1
  for (; i + lanes + (Stride > 1) <= n; i += lanes)
    store(out + i, load_strided<A, Stride>(p + i * Stride));
  return i;
}

// Always inline: where it is left to the compiler, it depends on how many others call it, and a
// call costs packing up to half of its speed.
template <typename T, typename A>
[[gnu::always_inline]] inline void read_row(const T* p, int64_t stride, int64_t n, A* out) {
  if (stride == 1) {
    const int64_t i = read_vectors<1>(p, n, out);
    if (i < n) store(out + i, load_first<A>(p + i, static_cast<int>(n - i)));
    return;
  }
  int64_t i = stride == 2   ? read_vectors<2>(p, n, out)
              : stride == 4 ? read_vectors<4>(p, n, out)
                            : 0;
  for (; i < n; ++i) out[i] = load1<A>(p + i * stride);
}

// Zeroes those of n numbers whose partner in y is not positive: the derivative of a ReLU, applied
// while reading. A NaN in y lets the gradient pass, as it does in torch.
template <typename T, typename A>
inline void mask_row(const T* y, int64_t stride, int64_t n, A* out) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= n; i += lanes) {
      store(out + i, load<A>(y + i) <= A{0} ? Vec<A>{} : load<A>(out + i));
    }
  }
  for (; i < n; ++i) out[i] = load1<A>(y + i * stride) <= 0 ? A{0} : out[i];
}

// n numbers to where they go, rounded to its type.
template <typename T, typename A>
inline void write_row(const A* values, int64_t n, T* p, int64_t stride) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= n; i += lanes) store(p + i, load<A>(values + i));
    if (i > 0 && i < n) {
      store(p + n - lanes, load<A>(values + n - lanes));
      return;
    }
  }
  for (; i < n; ++i) store1(p + i * stride, values[i]);
}

// What a layer does to its product: add a bias, of which there is one per row or one per column of
// a piece (or none), and clamp at zero. NaN stays NaN.
template <typename T>
struct Epilogue {
  using A = Accumulator<T>;
  const T* bias = nullptr;
  int64_t bias_stride = 1;
  bool relu = false;

  void per_row(int64_t row, A* c, int cols) const {
    finish(c, cols, [b = bias ? load1<A>(bias + row * bias_stride) : A{0}](int) { return b; });
  }
  void per_column(int64_t col, A* c, int cols) const {
    finish(c, cols, [this, col](int i) { return load1<A>(bias + (col + i) * bias_stride); });
  }

 private:
  template <typename Bias>
  void finish(A* c, int cols, Bias add) const {
    if (bias) {
      for (int i = 0; i < cols; ++i) c[i] += add(i);
    }
    if (relu) {
      for (int i = 0; i < cols; ++i) c[i] = c[i] < 0 ? A{0} : c[i];
    }
  }
};

// A matrix in memory, as a reader: element (i, k) is data[i * i_stride + k * k_stride], masked by
// y's sign where y is given.
template <typename T>
struct Matrix {
  using A = Accumulator<T>;
  const T* data;
  int64_t i_stride, k_stride;
  const T* y = nullptr;
  int64_t y_i_stride = 0, y_k_stride = 0;

  struct Start {
    int64_t first;
    int count;
  };
  bool along_depth() const { return k_stride == 1 || i_stride != 1; }
  Start start(int64_t first, int count) const { return {first, count}; }
  void row(const Start& s, int64_t at, A* out) const {
    if (along_depth()) {
      read_row(data + at * i_stride + s.first * k_stride, k_stride, s.count, out);
      if (y) mask_row(y + at * y_i_stride + s.first * y_k_stride, y_k_stride, s.count, out);
    } else {
      read_row(data + at * k_stride + s.first, 1, s.count, out);
      if (y) mask_row(y + at * y_k_stride + s.first * y_i_stride, y_i_stride, s.count, out);
    }
  }
};

// Where a reader has its rows in memory just as `row` would give them out, if it has.
template <typename A>
struct RowsInPlace {
  const A* data;
  int64_t stride;
};
template <typename A, typename Reader>
RowsInPlace<A> rows_in_place(const Reader&, int64_t, int64_t, int) {
  return {nullptr, 0};
}
template <typename A>
RowsInPlace<A> rows_in_place(const Matrix<A>& m, int64_t i, int64_t k, int) {
  return {m.k_stride == 1 && !m.y ? m.data + i * m.i_stride + k : nullptr, m.i_stride};
}

// Rows of a reader's matrix as they lie in memory, in bytes, for whoever fetches them before they
// are read; `mask` is how far behind them their mask lies. No rows if that is not known.
struct MemoryRows {
  const void* data = nullptr;
  int64_t rows = 0, size = 0, stride = 0, mask = 0;
};
inline int64_t bytes_between(const void* from, const void* to) {
  return static_cast<const char*>(to) - static_cast<const char*>(from);
}

// Of rows first ... first + count - 1, and k's from `k` on.
template <typename Reader>
MemoryRows memory_rows(const Reader&, int64_t, int64_t, int64_t, int64_t) {
  return {};
}
template <typename T>
MemoryRows memory_rows(const Matrix<T>& m, int64_t first, int64_t count, int64_t k, int64_t depth) {
  const bool along = m.along_depth();
  const bool alike = m.y && m.y_i_stride == m.i_stride && m.y_k_stride == m.k_stride;
  constexpr int64_t size = sizeof(T);
  return {m.data + first * m.i_stride + k * m.k_stride, along ? count : depth,
          size * (along ? depth * m.k_stride : count), size * (along ? m.i_stride : m.k_stride),
          alike ? bytes_between(m.data, m.y) : 0};
}

}  // namespace d2lops
