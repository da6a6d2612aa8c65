// The innermost loop of gemm.h, and the sizes that it sets: a kRows x kCols piece of C in
// registers.
#pragma once

#include <cstdint>
#include <utility>

#include "common/integer.h"
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

// Where the micro-kernel finds the columns for each k: in a packed panel, or elsewhere
// (panels.h, padded.h).
template <typename A>
struct PackedColumns {
  const A* panel;
  [[gnu::always_inline]] const A* at(int k) const { return panel + k * kCols<A>; }
};

// What the micro-kernel does with a number of a row and one of each column.
template <typename Columns, typename V>
[[gnu::always_inline]] inline V multiply_add(const Columns&, V row, V column, V sum) {
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
  const auto vectors = static_cast<int>(ceil_div(cols, kLanes<A>));
  return micro_kernel_for<A, Columns>(rows, vectors,
                                      std::make_integer_sequence<int, kRows * kVectors>{});
}

}  // namespace d2lops
