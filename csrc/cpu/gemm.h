// The matrix product behind corr2d and linear_relu:  C[i, j] = sum over k of A[i, k] B[j, k]
//
// One template with three pluggable parts: how A is read, how B is read, what happens to C. Nothing
// is materialised at full size: a reader hands out short rows of its (virtual) matrix, which are
// packed into panels while they are about to be used, and C leaves tile by tile, through whatever
// epilogue it has.
//
// Tiling (Goto's, with the roles that suit wide vectors): a thread owns a tile of C. For each block
// of kDepth k's it packs the tile's rows of A (resident in L2) and B one panel of kCols columns at a
// time (resident in L1), each just before its first use, and runs the micro-kernel over them: a
// kRows x kCols piece of C in registers, one broadcast and three fused multiply-adds per row and k.
// What will be packed next is fetched from within that loop. Limit: the FMA units; what is lost is
// packing, 1 / kTileCols element per multiply-add for A, 1 / kTileRows for B, and the edges of small
// problems.
//
// Determinism: an element of C is the sum of its blocks' sums, each in order of k. Neither tiles
// nor threads enter into it. Blocks also keep rounding errors small: each starts from zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#  include <sys/mman.h>
#endif

#include "cpu/simd.h"

namespace d2lops {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;  // with 32 vector registers: 8 x 3 accumulators, 3 of B, 1 of A
#else
constexpr int kRows = 4;  // with 16: 4 x 3, 3, 1
#endif
constexpr int kVectors = 3;
template <typename A>
constexpr int kCols = kVectors * kLanes<A>;
constexpr int kDepth = 240;

// Tiles of C, in elements: at most, before `Tiling` evens them out.
constexpr int64_t kTileRows = 960;
constexpr int64_t kTileCols = 1056;
constexpr int64_t kLargeTile = 1 << 18;  // does not stay in the second-level cache

// How many tasks of so many multiply-adds each are worth a thread: a hundred thousand, some
// microseconds.
inline int64_t grain(int64_t multiply_adds) { return 1 + 131072 / (multiply_adds + 1); }

// A reader R of an (I x K) matrix has
//   bool along_depth()                     whether its rows run along k (at fixed i) or along i (at
//   fixed k) Start start(int64_t first, int n)      what rows that cover first ... first + n - 1
//   have in common void row(const Start&, int64_t at, A* out)   the row at this k (or i): n
//   numbers, and up to a vector's worth
//                                          of anything after them, which whoever packs writes over

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

// Always inline: where it is left to the compiler, it depends on how many others call it, and a call
// costs packing up to half of its speed.
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

template <typename Reader>
struct Pairs;  // pairs.h

// Fetches what will be packed next into the second-level cache, a line with each call, so that the
// memory works while the arithmetic units do. By default it fetches nothing.
class Ahead {
 public:
  Ahead() = default;
  template <typename Reader>  // unless one is known below or elsewhere
  Ahead(const Reader&, int64_t, int64_t, int64_t, int64_t) {}
  template <typename T>
  Ahead(const Matrix<T>& m, int64_t first, int64_t count, int64_t k, int64_t depth) {
    if (count <= 0 || depth <= 0) return;
    const bool along = m.along_depth();
    const int64_t row = sizeof(T) * (along ? depth * m.k_stride : count);
    line_ = reinterpret_cast<const char*>(m.data + first * m.i_stride + k * m.k_stride);
    rows_ = along ? count : depth;
    lines_ = left_ = (row + kLine - 1) / kLine;
    next_row_ = int64_t{sizeof(T)} * (along ? m.i_stride : m.k_stride) - lines_ * kLine;
    if (m.y && m.y_i_stride == m.i_stride && m.y_k_stride == m.k_stride) {
      mask_ = reinterpret_cast<const char*>(m.y) - reinterpret_cast<const char*>(m.data);
    }
  }
  template <typename Reader>
  Ahead(const Pairs<Reader>& pairs, int64_t first, int64_t count, int64_t pair, int64_t depth)
      : Ahead(pairs.reader, first, count, pairs.begin + 2 * pair,
              std::min(2 * depth, pairs.end - pairs.begin - 2 * pair)) {}

  void fetch() {
    if (rows_ == 0) return;
    __builtin_prefetch(line_, 0, 2);
    __builtin_prefetch(line_ + mask_, 0, 2);
    line_ += kLine;
    if (--left_ == 0) {
      left_ = lines_;
      line_ += next_row_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* line_ = nullptr;
  int64_t rows_ = 0, lines_ = 0, left_ = 0, next_row_ = 0, mask_ = 0;
};

// Where the micro-kernel finds the columns for each k: in a packed panel, or in place (padded.h).
template <typename A>
struct PackedColumns {
  const A* panel;
  const A* at(int k) const { return panel + k * kCols<A>; }
};

// In a packed panel, fetching ahead what will be packed next.
template <typename A>
struct FetchingColumns {
  const A* panel;
  Ahead* ahead;
  const A* at(int k) const {
    if (k % 2 == 0) ahead->fetch();  // more often, and the kernel waits for its own loads
    return panel + k * kCols<A>;
  }
};

// What the micro-kernel does with a number of a row and one of each column.
template <typename Columns, typename V>
V multiply_add(const Columns&, V row, V column, V sum) {
  return sum + row * column;
}

// Micro-kernel: c (Rows x Vectors, row by row, kCols apart) = or += the product of a panel and
// columns.
template <typename A, typename Columns, int Rows, int Vectors>
void micro_kernel(int depth, const A* a, Columns b, A* c, bool add) {
  Vec<A> sum[Rows][Vectors] = {};
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) __builtin_prefetch(c + r * kCols<A> + v * kLanes<A>, 1);
  }
  for (int k = 0; k < depth; ++k, a += kRows) {
    const A* from = b.at(k);
    Vec<A> columns[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) columns[v] = load<A>(from + v * kLanes<A>);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec<A> row = broadcast(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = multiply_add(b, row, columns[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      A* to = c + r * kCols<A> + v * kLanes<A>;
      store(to, add ? load<A>(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// The kernel for a piece of C at the edge: no work on rows that are not there, nor on whole
// vectors.
template <typename A, typename Columns>
using MicroKernel = void (*)(int, const A*, Columns, A*, bool);

template <typename A, typename Columns, int... I>
MicroKernel<A, Columns> micro_kernel_for(int rows, int vectors, std::integer_sequence<int, I...>) {
  static constexpr MicroKernel<A, Columns> kernels[] = {
      micro_kernel<A, Columns, I / kVectors + 1, I % kVectors + 1>...};
  return kernels[(rows - 1) * kVectors + vectors - 1];
}
template <typename A, typename Columns>
MicroKernel<A, Columns> micro_kernel_for(int rows, int cols) {
  const int vectors = (cols + kLanes<A> - 1) / kLanes<A>;
  return micro_kernel_for<A, Columns>(rows, vectors,
                                      std::make_integer_sequence<int, kRows * kVectors>{});
}

// Numbers from one panel to the next, with room for the end of the last row's last vector. The odd
// cache line keeps panels of the same power-of-two size from falling on one another in the cache.
template <int Width, typename A>
constexpr int64_t panel_size(int depth) {
  return int64_t{Width} * depth + kLanes<A>;
}

// Rows of A that are packed at a time, just before they are first used: short ones along k, or
// long ones across k, of which a line of memory holds a part of many.
constexpr int kSpan = 240;  // a multiple of kRows and kCols, and at most kDepth
template <typename Reader>
int64_t rows_at_a_time(const Reader& a) {
  return a.along_depth() ? 6 * kRows : kSpan;
}

// Rows that run along k are transposed in registers: from where they lie, or gathered first.
template <int Width, typename A, typename Reader>
void pack_along_depth(const Reader& reader, int64_t first, int count, int64_t k, int depth,
                      A* panel) {
  constexpr int lanes = kLanes<A>, rows = std::min(Width, lanes);
  alignas(kVectorBytes) A buffer[rows][kDepth + lanes];
  const auto start = reader.start(k, depth);
  for (int i = 0; i < count; i += rows) {
    const int used = std::min(rows, count - i);
    RowsInPlace<A> from = rows_in_place<A>(reader, first + i, k, depth);
    if (!from.data || used < rows) {
      for (int r = 0; r < used; ++r) reader.row(start, first + i + r, buffer[r]);
      for (int r = used; r < rows; ++r) std::fill_n(buffer[r], depth, A{0});
      from = {buffer[0], kDepth + lanes};
    }
    for (int next = 0; next + lanes <= depth;) {
      const int d = next;
      next =
          d + lanes == depth ? depth : std::min(d + lanes, depth - lanes);  // again the last ones
      Vec<A> block[rows];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) block[r] = load<A>(from.data + r * from.stride + d);
      transpose<rows, A>(block);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        // Vector r holds lanes / rows k's; with rows == Width they follow one another in the panel.
        constexpr int stride = rows == Width ? lanes : Width;
        store(panel + d * Width + r * stride + i, block[r]);
      }
    }
    for (int d = 0; depth < lanes && d < depth; ++d) {
      for (int r = 0; r < rows; ++r) panel[d * Width + i + r] = from.data[r * from.stride + d];
    }
  }
}

// Rows that run across k: each is read once, as long as it is, and cut into pieces for the panels.
template <int Width, typename A, typename Reader>
void pack_across_depth(const Reader& reader, int64_t first, int count, int64_t k, int depth,
                       A* panels) {
  constexpr int lanes = kLanes<A>, step = std::min(Width, lanes);
  static_assert(kSpan % Width == 0 && kSpan <= kDepth);
  alignas(kVectorBytes) A row[kSpan + lanes];
  const auto start = reader.start(first, count);
  if (count <= Width && step == lanes) {  // there is but one panel, to which the row may go itself
    for (int d = 0; d < depth; ++d, panels += Width) {
      reader.row(start, k + d, panels);
      for (int i = count; i % lanes != 0; ++i) panels[i] = 0;
    }
    return;
  }
  const int64_t size = panel_size<Width, A>(depth);
  for (int d = 0; d < depth; ++d) {
    reader.row(start, k + d, row);
    for (int i = count; i % step != 0; ++i) row[i] = 0;
    A* to = panels + d * Width;
    for (int i = 0; i < count; i += Width, to += size) {
      for (int s = 0; s < Width; s += step) store(to + s, load_bytes<Vec<A, step>>(row + i + s));
    }
  }
}

// Packs rows first ... first + count - 1 of a reader's matrix, k's from `k` on, into panels of
// [depth][Width]. The last one is filled with zeros to whole vectors.
template <int Width, typename A, typename Reader>
void pack(const Reader& reader, int64_t first, int64_t count, int64_t k, int depth, A* panels) {
  if (reader.along_depth()) {
    for (int64_t i = 0; i < count; i += Width, panels += panel_size<Width, A>(depth)) {
      const int rows = static_cast<int>(std::min<int64_t>(Width, count - i));
      pack_along_depth<Width>(reader, first + i, rows, k, depth, panels);
    }
  } else {
    for (int64_t i = 0; i < count; i += kSpan) {
      const int span = static_cast<int>(std::min<int64_t>(kSpan, count - i));
      pack_across_depth<Width>(reader, first + i, span, k, depth,
                               panels + i / Width * panel_size<Width, A>(depth));
    }
  }
}

// How C is cut into tiles of nearly equal size, at least as many as threads where it is large
// enough.
struct Tiling {
  int64_t m, n, rows, cols, across;  // across: tiles side by side

  Tiling(int64_t m, int64_t n, int64_t problems, int64_t threads, int cols_unit) : m(m), n(n) {
    const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    int64_t down = up(m, kTileRows);
    across = up(n, kTileCols);
    // Uneven tiles leave threads idle at the end, so their number is made a multiple of the
    // threads'.
    if (problems % threads != 0 && down * across % threads != 0) {
      (n >= m ? across : down) = up(n >= m ? across : down, threads) * threads;
    }
    rows = up(up(m, down), kRows) * kRows;
    cols = up(up(n, across), cols_unit) * cols_unit;
    across = up(n, cols);
  }
  int64_t count() const { return (m + rows - 1) / rows * across; }
};

// How a sum over k is cut into blocks of nearly equal depth, a multiple of `unit`.
struct Blocks {
  int64_t count, depth;

  explicit Blocks(int64_t terms, int64_t most = kDepth, int64_t unit = 1)
      : count(std::max<int64_t>((terms + most - 1) / most, 1)),
        depth(std::max((terms + count * unit - 1) / (count * unit) * unit, unit)) {}
};

// Scratch memory, first zero, that a thread keeps from call to call: fresh pages cost more than packing
// does. Large ones ask for huge pages, without which looking up addresses takes up to a third of a
// product's time. Two slots serve two uses at once.
template <typename A, int Slot = 0>
A* scratch(size_t count) {
  constexpr size_t huge_page = 2 << 20;
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<A[], Free> memory;
  thread_local size_t capacity = 0;
  if (capacity < count) {
    const size_t alignment = count * sizeof(A) < huge_page ? 64 : huge_page;
    const size_t bytes = (count * sizeof(A) + alignment - 1) / alignment * alignment;
    memory.reset();
    memory.reset(static_cast<A*>(std::aligned_alloc(alignment, bytes)));
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (alignment == huge_page) madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
    // Lanes whose results are not used may still read it, and subnormal garbage is slow to multiply.
    std::memset(memory.get(), 0, bytes);
    capacity = bytes / sizeof(A);
  }
  return memory.get();
}

// What multiplies panels: how many rows a piece of C has, how deep panels are, how those of A are
// laid out.
template <typename A>
struct VectorCore {
  static constexpr int kPieceRows = kRows, kMostDepth = kDepth, kDepthUnit = 1;

  template <typename Reader>
  static void pack_rows(const Reader& reader, int64_t first, int64_t count, int64_t k, int depth,
                        A* panels) {
    pack<kRows>(reader, first, count, k, depth, panels);
  }
  void multiply(int rows, int cols, int depth, const A* a, const A* b, Ahead* ahead, A* c,
                bool add) const {
    micro_kernel_for<A, FetchingColumns<A>>(rows, cols)(depth, a, {b, ahead}, c, add);
  }
};

template <typename Core, typename A, typename ReaderA, typename ReaderB, typename Store>
void multiply_tile(const Tiling& tiling, int64_t tile, int64_t begin, int64_t end, const ReaderA& a,
                   const ReaderB& b, const Store& store) {
  constexpr int piece_rows = Core::kPieceRows;
  const Core core;
  const int64_t i0 = tile / tiling.across * tiling.rows, j0 = tile % tiling.across * tiling.cols;
  const int64_t i1 = std::min(i0 + tiling.rows, tiling.m),
                j1 = std::min(j0 + tiling.cols, tiling.n);
  const Blocks blocks(end - begin, Core::kMostDepth, Core::kDepthUnit);
  const int64_t depth = blocks.depth, down = (i1 - i0 + piece_rows - 1) / piece_rows;
  // A large C of few k's is written row after row, for the memory's sake; B stays packed then.
  const bool by_rows = blocks.count == 1 && tiling.rows * tiling.cols > kLargeTile;
  const int64_t a_panel_size = panel_size<piece_rows, A>(depth);
  const int64_t b_panel_size = panel_size<kCols<A>, A>(depth);
  constexpr int64_t c_piece_size = piece_rows * kCols<A>;
  const int64_t across = tiling.cols / kCols<A>;
  A* const a_panels = scratch<A>(down * a_panel_size + (by_rows ? across : 1) * b_panel_size +
                                 (blocks.count == 1 ? 1 : down * across) * c_piece_size);
  A* const b_panels = a_panels + down * a_panel_size;
  A* const c_pieces = b_panels + (by_rows ? across : 1) * b_panel_size;
  const int64_t chunk = rows_at_a_time(a);
  Ahead ahead;
  // A piece of C and a block of k's. Panels are packed when they are first needed, and what will be
  // packed next is fetched.
  const auto piece = [&](int64_t i, int64_t j, int64_t k, A* c) __attribute__((always_inline)) {
    const int rows = static_cast<int>(std::min<int64_t>(piece_rows, i1 - i));
    const int cols = static_cast<int>(std::min<int64_t>(kCols<A>, j1 - j));
    const int block = static_cast<int>(std::min(end - k, depth));
    A* const a_panel = a_panels + (i - i0) / piece_rows * panel_size<piece_rows, A>(block);
    A* const b_panel = b_panels + (by_rows ? (j - j0) / kCols<A> * b_panel_size : 0);
    if (i == i0) {
      pack<kCols<A>>(b, j, cols, k, block, b_panel);
      const int64_t next = j + cols;
      ahead = next < j1 ? Ahead(b, next, std::min<int64_t>(kCols<A>, j1 - next), k, block)
                        : Ahead(b, j0, std::min<int64_t>(kCols<A>, j1 - j0), k + depth,
                                std::min(end - k - depth, depth));
    }
    if (j == j0 && (i - i0) % chunk == 0) {
      core.pack_rows(a, i, std::min(chunk, i1 - i), k, block, a_panel);
      ahead = Ahead(a, i + chunk, std::min(chunk, i1 - i - chunk), k, block);
    }
    core.multiply(rows, cols, block, a_panel, b_panel, &ahead, c, k != begin);
    if (k + depth < end) return;
    for (int r = 0; r < rows; r += kRows) {
      store(i + r, j, std::min(kRows, rows - r), cols, c + r * kCols<A>);
    }
  };
  if (by_rows) {
    for (int64_t i = i0; i < i1; i += piece_rows) {
      for (int64_t j = j0; j < j1; j += kCols<A>) piece(i, j, begin, c_pieces);
    }
    return;
  }
  for (int64_t k = begin; k == begin || k < end; k += depth) {
    A* c = c_pieces;
    for (int64_t j = j0; j < j1; j += kCols<A>) {
      for (int64_t i = i0; i < i1; i += piece_rows) {
        piece(i, j, k, c);
        if (blocks.count > 1) c += c_piece_size;
      }
    }
  }
}

}  // namespace d2lops

#if defined(__AVX512BF16__)
#  include "cpu/pairs.h"
#endif

namespace d2lops {

// One tile of C, summed over k = begin ... end - 1. `store(i, j, rows, cols, c)` takes the finished
// piece at (i, j), of at most kRows x kCols, whose rows are kCols apart.
template <typename A, typename ReaderA, typename ReaderB, typename Store>
void gemm_tile(const Tiling& tiling, int64_t tile, int64_t begin, int64_t end, const ReaderA& a,
               const ReaderB& b, const Store& store) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<ElementOf<ReaderA>, bfloat16>) {
    const Pairs<ReaderA> a_pairs{a, begin, end};
    const Pairs<ReaderB> b_pairs{b, begin, end};
    return multiply_tile<PairCore, float>(tiling, tile, 0, PairCore::pairs(end - begin), a_pairs,
                                          b_pairs, store);
  }
#endif
  multiply_tile<VectorCore<A>, A>(tiling, tile, begin, end, a, b, store);
}

}  // namespace d2lops
