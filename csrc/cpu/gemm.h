// The matrix product behind corr2d and linear_relu:  C[i, j] = sum over k of A[i, k] B[j, k]
//
// One template with three pluggable parts: how A is read, how B is read, what happens to C. Nothing
// is materialised at full size: a reader hands out short rows of its (virtual) matrix, which are
// packed into panels while they are about to be used, and C leaves tile by tile, through whatever
// epilogue it has.
//
// Tiling (Goto's, with the roles that suit wide vectors): a thread owns a tile of C. For each block
// of kDepth k's it packs the tile's rows of A (resident in L2) and B one panel of kCols columns at
// a time (resident in L1), each just before its first use, and runs the micro-kernel over them: a
// kRows x kCols piece of C in registers, one broadcast and three fused multiply-adds per row and k.
// What will be packed next is fetched from within that loop. Limit: the FMA units; what is lost is
// packing, 1 / kTileCols element per multiply-add for A, 1 / kTileRows for B, and the edges of
// small problems.
//
// Determinism: an element of C is the sum of its blocks' sums, each in order of k. Neither tiles
// nor threads enter into it. Blocks also keep rounding errors small: each starts from zero.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/integer.h"
#include "cpu/matrix.h"
#include "cpu/micro_kernel.h"
#include "cpu/panels.h"
#include "cpu/scratch.h"
#if defined(__AMX_BF16__)
#  include "cpu/amx.h"
#elif defined(__AVX512BF16__)
#  include "cpu/pairs.h"
#endif

namespace d2lops {

// Tiles of C, in elements: at most, before `Tiling` evens them out.
constexpr int64_t kTileRows = 960;
constexpr int64_t kTileCols = 1056;
constexpr int64_t kLargeTile = 1 << 18;  // does not stay in the second-level cache

// How C is cut into tiles of nearly equal size, at least as many as threads where it is large
// enough.
struct Tiling {
  int64_t m, n, rows, cols, across;  // across: tiles side by side

  Tiling(int64_t m, int64_t n, int64_t problems, int64_t threads, int cols_unit) : m(m), n(n) {
    int64_t down = ceil_div(m, kTileRows);
    across = ceil_div(n, kTileCols);
    // Uneven tiles leave threads idle at the end, so their number is made a multiple of the
    // threads'.
    if (problems % threads != 0 && down * across % threads != 0) {
      (n >= m ? across : down) = round_up(n >= m ? across : down, threads);
    }
    rows = round_up(ceil_div(m, down), kRows);
    cols = round_up(ceil_div(n, across), cols_unit);
    across = ceil_div(n, cols);
  }
  int64_t count() const { return ceil_div(m, rows) * across; }
};

// How a sum over k is cut into blocks of nearly equal depth, a multiple of `unit`.
struct Blocks {
  int64_t count, depth;

  explicit Blocks(int64_t terms, int64_t most = kDepth, int64_t unit = 1)
      : count(std::max<int64_t>(ceil_div(terms, most), 1)),
        depth(std::max<int64_t>(round_up(ceil_div(terms, count), unit), unit)) {}
};

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
  const int64_t depth = blocks.depth, down = ceil_div(i1 - i0, piece_rows);
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
      ahead =
          Ahead(next < j1 ? memory_rows(b, next, std::min<int64_t>(kCols<A>, j1 - next), k, block)
                          : memory_rows(b, j0, std::min<int64_t>(kCols<A>, j1 - j0), k + depth,
                                        std::min(end - k - depth, depth)));
    }
    if (j == j0 && (i - i0) % chunk == 0) {
      core.pack_rows(a, i, std::min(chunk, i1 - i), k, block, a_panel);
      ahead = Ahead(memory_rows(a, i + chunk, std::min(chunk, i1 - i - chunk), k, block));
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

// One tile of C, summed over k = begin ... end - 1. `store(i, j, rows, cols, c)` takes the finished
// piece at (i, j), of at most kRows x kCols, whose rows are kCols apart.
template <typename A, typename ReaderA, typename ReaderB, typename Store>
void gemm_tile(const Tiling& tiling, int64_t tile, int64_t begin, int64_t end, const ReaderA& a,
               const ReaderB& b, const Store& store) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<ElementOf<ReaderA>, bfloat16>) {
    const Pairs<ReaderA> a_pairs{a, begin, end};
    const Pairs<ReaderB> b_pairs{b, begin, end};
#  if defined(__AMX_BF16__)
    using Core = AmxCore;
#  else
    using Core = PairVectorCore;
#  endif
    return multiply_tile<Core, float>(tiling, tile, 0, Core::pairs(end - begin), a_pairs, b_pairs,
                                      store);
  }
#endif
  multiply_tile<VectorCore<A>, A>(tiling, tile, begin, end, a, b, store);
}

}  // namespace d2lops
