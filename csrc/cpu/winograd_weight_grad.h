// The weight gradient of 3 x 3 windows by the transforms of winograd.h, as adjoints: with V the
// transformed patches of x, and M those of the gradient's 2 x 2 tiles,
//
//   dU[position, k, c] = sum over tiles of M[position, tile, k] V[position, tile, c],
//
// the 16 products of products.h, and dw is the adjoint weight transform of dU. V is
// [position][tile][channel], M [position][panel of outputs][tile][kRows].
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/products.h"
#include "cpu/winograd.h"

namespace d2lops::winograd {

template <typename T>
class TileProducts {
 public:
  using A = Accumulator<T>;

  // Of g and x, where tile (0, 0) begins at (first_row, first_col) of x.
  TileProducts(const Im2col<T>& g, const Im2col<T>& x, int64_t first_row, int64_t first_col,
               int64_t planes, int64_t outputs)
      : g_(g),
        x_(x),
        tiles_(x.grid.images, x.grid.height, x.grid.width),
        planes_(planes),
        first_row_(first_row),
        first_col_(first_col),
        stride_(row_stride<A>(planes)) {
    const int64_t fitting = (1 << 20) / (kPositions * sizeof(A) * (outputs + planes));
    block_ = std::max<int64_t>(std::max<int64_t>(fitting, kSumDepth) / tiles_.width, 1);
  }

  ImageRows rows() const { return {tiles_.images, tiles_.height}; }
  int64_t positions() const { return kPositions; }
  int64_t places() const { return kPlaces; }
  int64_t pixels() const { return tiles_.count(); }

  // Sums dU over rows `begin` ... `end` - 1 of tiles, for `outputs` channels from g_plane on.
  void sum(int64_t g_plane, int64_t outputs, int64_t x_plane, int64_t begin, int64_t end,
           const ProductPieces<A>& pieces, A* du) const {
    const int64_t block = std::min(block_, end - begin), tiles = block * tiles_.width;
    const int64_t panels = panels_of_vectors<A>(outputs), panel = tiles * kRows;
    // No powers of two: positions must not share cache sets.
    const int64_t v_position = tiles * stride_ + kLanes<A>, m_position = panels * panel + kLanes<A>;
    const int64_t lines = kTile * (block + 1) * kTile * (tiles_.width + 1) * kLanes<A>;
    A* const v = scratch<A>(kPositions * (v_position + m_position) + kCols<A> + lines);
    A* const m = v + kPositions * v_position + kCols<A>;
    std::vector<int64_t> offsets(tiles);
    for (int64_t i = 0; i < tiles; ++i) offsets[i] = i * stride_;
    for (int64_t row = begin; row < end; row += block) {
      const int64_t rows = std::min(block, end - row);
      A* const scratch = m + kPositions * m_position;
      fill_patches(x_plane, row, rows, v, v_position, scratch);
      fill_tiles(g_plane, outputs, row, rows, m, m_position, panel, scratch);
      for (int p = 0; p < kPositions; ++p) {
        multiply_pixels(p, rows * tiles_.width, kSumDepth, outputs, planes_, m + p * m_position,
                        panel, v + p * v_position, offsets.data(), row != begin, pieces, du);
      }
    }
  }

  // A window of weights from their dU: vectors of channels, one for each place.
  void finish(const A* from, A* to) const {
    Vec<A> u[kPositions], w[kPlaces];
    for (int p = 0; p < kPositions; ++p) u[p] = load<A>(from + p * kLanes<A>);
    weight_adjoint(u, w);
    for (int t = 0; t < kPlaces; ++t) store(to + t * kLanes<A>, w[t]);
  }

 private:
  void fill_patches(int64_t plane, int64_t row, int64_t rows, A* v, int64_t position,
                    A* lines) const {
    const int64_t width = kTile * (tiles_.width + 1);
    const PaddedRows<T> columns(x_, first_col_, width);
    this->rows().for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows) {
      for (int64_t c = 0; c < planes_; c += kLanes<A>) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, planes_ - c));
        for (int64_t i = 0; i < kTile * (rows + 1); ++i) {
          columns.read_pixels(n, plane + c, count, kTile * a + i + first_row_,
                              lines + i * width * kLanes<A>, kLanes<A>);
        }
        A* to = v + c;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t b = 0; b < tiles_.width; ++b, to += stride_) {
            Vec<A> x[kPositions];
#pragma GCC unroll 16
            for (int p = 0; p < kPositions; ++p) {
              x[p] = load<A>(lines + ((kTile * i + p / kPatch) * width + kTile * b + p % kPatch) *
                                         kLanes<A>);
            }
            input_transform(x);
#pragma GCC unroll 16
            for (int p = 0; p < kPositions; ++p) store(to + p * position, x[p]);
          }
        }
      }
      v += rows * tiles_.width * stride_;
    });
  }

  void fill_tiles(int64_t plane, int64_t outputs, int64_t row, int64_t rows, A* m, int64_t position,
                  int64_t panel, A* lines) const {
    const int64_t width = kTile * tiles_.width;
    const PaddedRows<T> columns(g_, 0, width);
    this->rows().for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows) {
      for (int64_t k = 0; k < outputs; k += kLanes<A>) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, outputs - k));
        for (int64_t i = 0; i < kTile * rows; ++i) {
          columns.read_pixels(n, plane + k, count, kTile * a + i, lines + i * width * kLanes<A>,
                              kLanes<A>);
        }
        A* to = m + k / kRows * panel + k % kRows;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t b = 0; b < tiles_.width; ++b, to += kRows) {
            Vec<A> g[kTile * kTile], positions[kPositions];
            for (int p = 0; p < kTile * kTile; ++p) {
              g[p] = load<A>(lines +
                             ((kTile * i + p / kTile) * width + kTile * b + p % kTile) * kLanes<A>);
            }
            output_adjoint(g, positions);
#pragma GCC unroll 16
            for (int p = 0; p < kPositions; ++p)
              store_to_panels<A>(positions[p], panel, to + p * position);
          }
        }
      }
      m += rows * tiles_.width * kRows;
    });
  }

  const Im2col<T>&g_, &x_;
  Tiles tiles_;
  int64_t planes_, first_row_, first_col_, stride_, block_;
};

}  // namespace d2lops::winograd
