// The weight gradient of 3 x 3 windows by the transforms of winograd.h, as adjoints: with V the
// transformed patches of x, and M those of the gradient's 2 x 2 tiles,
//
//   dU[position, k, c] = sum over tiles of M[position, tile, k] V[position, tile, c],
//   dw = the adjoint weight transform of dU:
//
// 16 products whose depth are the tiles. Here channels lie side by side, in rows that the
// micro-kernel reads in place. A task owns some outputs, k's, and a part of the tiles; it sums dU
// over them in memory, from blocks whose V and M fit the second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/winograd.h"

namespace d2lops::winograd {

// Where the outputs of a part begin, and how its dU lies in memory: pieces as the micro-kernel
// writes them, dU[position][panel of outputs][columns of channels].
template <typename A>
struct WeightGradPiece {
  static constexpr int64_t kSize = kRows * kCols<A>;
  int64_t panels, across;

  WeightGradPiece(int64_t outputs, int64_t planes)
      : panels((outputs + kRows - 1) / kRows), across((planes + kCols<A> - 1) / kCols<A>) {}
  int64_t size() const { return kPositions * panels * across * kSize; }
  int64_t at(int position, int64_t i, int64_t j) const {
    return ((position * panels + i) * across + j) * kSize;
  }
};

template <typename T>
class WeightGrad {
 public:
  using A = Accumulator<T>;

  // Of `outputs` channels of g and `planes` of x, `rows` rows of tiles at a time. Tile (0, 0) begins
  // at (first_row, first_col) of x.
  WeightGrad(const Im2col<T>& g, const Im2col<T>& x, const Tiles& tiles, int64_t outputs,
             int64_t planes, int64_t first_row, int64_t first_col, int64_t rows)
      : g_(g),
        x_(x),
        tiles_(tiles),
        outputs_(outputs),
        planes_(planes),
        first_row_(first_row),
        first_col_(first_col),
        rows_(rows),
        stride_(row_stride<A>(planes)),
        position_(rows * tiles.width * stride_ + kLanes<A>),
        panel_(rows * tiles.width * kRows) {
    for (int i = 0; i < kSumDepth; ++i) offsets_[i] = i * stride_;
  }

  // Sums dU over rows `begin` ... `end` - 1 of tiles, for outputs g_plane ... and planes x_plane ...
  void operator()(int64_t g_plane, int64_t x_plane, int64_t begin, int64_t end,
                  const WeightGradPiece<A>& pieces, A* du) const {
    // With room for the last vector of outputs.
    const int64_t panels = (outputs_ + kLanes<A> - 1) / kLanes<A> * kLanes<A> / kRows + 1;
    const int64_t line = kTile * (tiles_.width + 1) * kLanes<A>;
    A* const v = scratch<A>(kPositions * (position_ + panels * panel_) + kLanes<A> +
                            kTile * (rows_ + 1) * line);
    A* const m = v + kPositions * position_ + kLanes<A>;
    A* const lines = m + kPositions * panels * panel_;
    for (int64_t row = begin; row < end; row += rows_) {
      const int64_t rows = std::min(rows_, end - row);
      fill_patches(x_plane, row, rows, v, lines);
      fill_tiles(g_plane, row, rows, panels, m, lines);
      multiply(rows * tiles_.width, panels, v, m, row != begin, pieces, du);
    }
  }

 private:
  // Calls f(image, first row in it, rows, tiles before) for the images under some rows of tiles.
  template <typename F>
  void for_each_image(int64_t row, int64_t rows, F&& f) const {
    int64_t before = 0;
    for (const int64_t end = row + rows; row < end; row += rows) {
      rows = std::min(end - row, tiles_.height - row % tiles_.height);
      f(row / tiles_.height, row % tiles_.height, rows, before);
      before += rows * tiles_.width;
    }
  }

  void fill_patches(int64_t plane, int64_t row, int64_t rows, A* v, A* lines) const {
    const int64_t width = kTile * (tiles_.width + 1);
    for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows, int64_t before) {
      for (int64_t c = 0; c < planes_; c += kLanes<A>) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, planes_ - c));
        for (int64_t i = 0; i < kTile * (rows + 1); ++i) {
          read_padded(x_, n, plane + c, count, kTile * a + i + first_row_, first_col_, width, true,
                      lines + i * width * kLanes<A>, kLanes<A>);
        }
        A* to = v + before * stride_ + c;
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
            for (int p = 0; p < kPositions; ++p) store(to + p * position_, x[p]);
          }
        }
      }
    });
  }

  // M as panels of rows: [position][panel of outputs][tile][kRows].
  void fill_tiles(int64_t plane, int64_t row, int64_t rows, int64_t panels, A* m, A* lines) const {
    constexpr int part = std::min(kRows, kLanes<A>);
    const int64_t width = kTile * tiles_.width;
    for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows, int64_t before) {
      for (int64_t k = 0; k < outputs_; k += kLanes<A>) {
        const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, outputs_ - k));
        for (int64_t i = 0; i < kTile * rows; ++i) {
          read_padded(g_, n, plane + k, count, kTile * a + i, 0, width, true,
                      lines + i * width * kLanes<A>, kLanes<A>);
        }
        A* to = m + k / kRows * panel_ + before * kRows + k % kRows;
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t b = 0; b < tiles_.width; ++b, to += kRows) {
            Vec<A> g[kTile * kTile], positions[kPositions];
            for (int p = 0; p < kTile * kTile; ++p) {
              g[p] = load<A>(lines +
                             ((kTile * i + p / kTile) * width + kTile * b + p % kTile) * kLanes<A>);
            }
            output_adjoint(g, positions);
#pragma GCC unroll 16
            for (int p = 0; p < kPositions; ++p) {
              for (int h = 0; h < kLanes<A>; h += part) {
                std::memcpy(to + (p * panels + h / kRows) * panel_,
                            reinterpret_cast<const A*>(&positions[p]) + h, part * sizeof(A));
              }
            }
          }
        }
      }
    });
  }

  void multiply(int64_t count, int64_t panels, const A* v, const A* m, bool add,
                const WeightGradPiece<A>& pieces, A* du) const {
    const int64_t blocks = (count + kSumDepth - 1) / kSumDepth,
                  block = (count + blocks - 1) / blocks;
    for (int p = 0; p < kPositions; ++p) {
      for (int64_t t = 0; t < count; t += block) {
        const int depth = static_cast<int>(std::min(block, count - t));
        for (int64_t j = 0; j < pieces.across; ++j) {
          const int cols = static_cast<int>(std::min<int64_t>(kCols<A>, planes_ - j * kCols<A>));
          const A* const columns = v + p * position_ + t * stride_ + j * kCols<A>;
          for (int64_t i = 0; i * kRows < outputs_; ++i) {
            const int used = static_cast<int>(std::min<int64_t>(kRows, outputs_ - i * kRows));
            micro_kernel_for<A, ShiftedColumns<A>>(used, cols)(
                depth, m + (p * panels + i) * panel_ + t * kRows, {columns, offsets_},
                du + pieces.at(p, i, j), add || t != 0);
          }
        }
      }
    }
  }

  const Im2col<T>&g_, &x_;
  Tiles tiles_;
  int64_t outputs_, planes_, first_row_, first_col_, rows_, stride_, position_, panel_;
  int64_t offsets_[kSumDepth];
};

// dw[k][c][3][3] for kRows outputs, or fewer, from panel i of `parts` dU's, `part` apart. Returns
// whether all are finite.
template <typename T>
bool finish_weight_grad(const Accumulator<T>* du, int64_t parts, int64_t part,
                        const WeightGradPiece<Accumulator<T>>& pieces, int64_t i, int rows,
                        int64_t planes, T* dw) {
  using A = Accumulator<T>;
  Vec<A> not_finite{};  // w - w is NaN where w is infinite or NaN
  for (int64_t c = 0; c < planes; c += kLanes<A>) {
    const auto count = static_cast<int>(std::min<int64_t>(kLanes<A>, planes - c));
    for (int r = 0; r < rows; ++r) {
      Vec<A> u[kPositions], w[kPlaces];
      for (int p = 0; p < kPositions; ++p) {
        const A* from = du + pieces.at(p, i, c / kCols<A>) + r * kCols<A> + c % kCols<A>;
        u[p] = load<A>(from);
        for (int64_t at = 1; at < parts; ++at) u[p] += load<A>(from + at * part);
      }
      weight_adjoint(u, w);
      A windows[(kPlaces + 1) * kLanes<A>];  // [channel][place]
      for (int lane = 0; lane < count; ++lane) {
        for (int t = 0; t < kPlaces; ++t) windows[lane * kPlaces + t] = w[t][lane];
      }
      std::fill_n(windows + count * kPlaces, kLanes<A>, A{0});
      for (int t = 0; t < count * kPlaces; t += kLanes<A>) {
        const Vec<A> value = load<A>(windows + t);
        not_finite += value - value;
      }
      write_row(windows, count * kPlaces, dw + (r * planes + c) * kPlaces, 1);
    }
  }
  return horizontal_sum<A>(not_finite) == 0;
}

}  // namespace d2lops::winograd
