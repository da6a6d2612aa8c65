// The weight gradient as a few matrix products whose depth are pixels, with channels side by side:
//
//   dU[position, k, c] = sum over pixels of M[position, pixel, k] V[position, pixel, c]
//
// M comes from the gradient, as panels for the micro-kernel, and V from the image, in rows that it
// reads in place. Two kinds: here, a product for each place of the window, V being the padded image
// shifted by it and M the gradient itself (`WindowProducts`); in winograd_weight_grad.h, fewer
// products of transformed tiles. A task owns some outputs, k's, and a part of the rows; it sums dU
// over them in memory, from blocks whose V and M fit the second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/integer.h"
#include "cpu/im2col.h"
#include "cpu/micro_kernel.h"
#include "cpu/padded.h"
#include "cpu/panels.h"
#include "cpu/scratch.h"

namespace d2lops {

// How dU of some outputs lies in memory: pieces as the micro-kernel writes them,
// dU[position][panel of outputs][columns of channels].
template <typename A>
struct ProductPieces {
  static constexpr int64_t kSize = kRows * kCols<A>;
  int64_t positions, panels, across;

  ProductPieces(int64_t positions, int64_t outputs, int64_t planes)
      : positions(positions),
        panels(ceil_div(outputs, kRows)),
        across(ceil_div(planes, kCols<A>)) {}
  int64_t size() const { return positions * panels * across * kSize; }
  int64_t at(int64_t position, int64_t i, int64_t j) const {
    return ((position * panels + i) * across + j) * kSize;
  }
};

// Rows of a batch of images, counted through all of them.
struct ImageRows {
  int64_t images, height;

  int64_t count() const { return images * height; }
  // Calls f(image, first row in it, rows) for the images that rows `row` ... + `rows` - 1 touch.
  template <typename F>
  void for_each_image(int64_t row, int64_t rows, F&& f) const {
    for (const int64_t end = row + rows; row < end; row += rows) {
      rows = std::min(end - row, height - row % height);
      f(row / height, row % height, rows);
    }
  }
};

// Writes a vector of outputs of one pixel to the panels that hold them.
template <typename A>
inline void store_to_panels(Vec<A> outputs, int64_t panel, A* to) {
  constexpr int part = std::min(kRows, kLanes<A>);
  for (int h = 0; h < kLanes<A>; h += part) {
    std::memcpy(to + h / kRows * panel, reinterpret_cast<const A*>(&outputs) + h, part * sizeof(A));
  }
}
// Panels that vectors of outputs fill.
template <typename A>
constexpr int64_t panels_of_vectors(int64_t outputs) {
  constexpr int whole = std::max(kRows, kLanes<A>);
  return round_up(outputs, whole) / kRows;
}

// dU[position] (+)= M V over `count` pixels. m: panels `panel` apart; v: rows at the offsets.
template <typename A>
void multiply_pixels(int64_t position, int64_t count, int64_t most, int64_t outputs, int64_t planes,
                     const A* m, int64_t panel, const A* v, const int64_t* offsets, bool add,
                     const ProductPieces<A>& pieces, A* du) {
  const int64_t blocks = ceil_div(count, most), block = ceil_div(count, blocks);
  for (int64_t t = 0; t < count; t += block) {
    const int depth = static_cast<int>(std::min(block, count - t));
    for (int64_t j = 0; j < pieces.across; ++j) {
      const int cols = static_cast<int>(std::min<int64_t>(kCols<A>, planes - j * kCols<A>));
      for (int64_t i = 0; i * kRows < outputs; ++i) {
        const int rows = static_cast<int>(std::min<int64_t>(kRows, outputs - i * kRows));
        micro_kernel_for<A, ShiftedColumns<A>>(rows, cols)(
            depth, m + i * panel + t * kRows, {v + j * kCols<A>, offsets + t},
            du + pieces.at(position, i, j), add || t != 0);
      }
    }
  }
}

template <typename T>
class WindowProducts {
 public:
  using A = Accumulator<T>;

  // Of g, and of x at the places of a window; x.grid tells where windows lie.
  WindowProducts(const Im2col<T>& g, const Im2col<T>& x, const std::vector<Place>& rows,
                 const std::vector<Place>& cols, int64_t planes, int64_t outputs)
      : g_(g),
        x_(x),
        rows_{x.grid.images, x.grid.height},
        places_h_(rows),
        places_w_(cols),
        planes_(planes),
        stride_(round_up(planes, kLanes<A>)),
        span_(rows.back().shift - rows[0].shift + 1),
        width_((x.grid.width - 1) * x.grid.step_w + cols.back().shift - cols[0].shift + 1) {
    const int64_t row = x.grid.width * (planes * x.grid.step_h * x.grid.step_w + outputs);
    block_ = std::clamp<int64_t>(131072 / row, 1, std::max<int64_t>(1024 / x.grid.width, 1));
  }

  const ImageRows& rows() const { return rows_; }
  int64_t positions() const { return places_h_.size() * places_w_.size(); }
  int64_t places() const { return positions(); }
  int64_t pixels() const { return rows_.count() * x_.grid.width; }

  // Sums dU over rows `begin` ... `end` - 1, for `outputs` channels from g_plane on.
  void sum(int64_t g_plane, int64_t outputs, int64_t x_plane, int64_t begin, int64_t end,
           const ProductPieces<A>& pieces, A* du) const {
    const int64_t block = std::min(block_, end - begin), pixels = block * x_.grid.width;
    const int64_t lines = block * x_.grid.step_h + (block / rows_.height + 2) * span_;
    const int64_t panels = panels_of_vectors<A>(outputs), panel = pixels * kRows + kLanes<A>;
    const int64_t slab_size = lines * width_ * stride_ + kCols<A>;
    A* const slab = scratch<A>(slab_size + panels * panel + x_.grid.width * kLanes<A>);
    A* const m = slab + slab_size;
    std::vector<int64_t> offsets(pixels);
    for (int64_t row = begin; row < end; row += block) {
      const int64_t rows = std::min(block, end - row);
      fill_image(x_plane, row, rows, slab, offsets.data());
      fill_gradient(g_plane, outputs, row, rows, m, panel, m + panels * panel);
      int64_t position = 0;
      for (const Place& r : places_h_) {
        for (const Place& s : places_w_) {
          const int64_t shift =
              (r.shift - places_h_[0].shift) * width_ + s.shift - places_w_[0].shift;
          multiply_pixels(position++, rows * x_.grid.width, kDepth, outputs, planes_, m, panel,
                          slab + shift * stride_, offsets.data(), row != begin, pieces, du);
        }
      }
    }
  }

  // A window of weights from their dU: vectors of channels, one for each place.
  void finish(const A* u, A* w) const { std::copy_n(u, positions() * kLanes<A>, w); }

 private:
  void fill_image(int64_t plane, int64_t row, int64_t rows, A* to, int64_t* offsets) const {
    const Grid& grid = x_.grid;
    const PaddedRows<T> columns(x_, places_w_[0].shift, width_);
    int64_t line = 0;
    rows_.for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t b = 0; b < grid.width; ++b)
          *offsets++ = ((line + i * grid.step_h) * width_ + b * grid.step_w) * stride_;
      }
      const int64_t lines = (rows - 1) * grid.step_h + span_;
      for (int64_t i = 0; i < lines; ++i, ++line) {
        for (int64_t c = 0; c < planes_; c += kLanes<A>) {
          const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, planes_ - c));
          columns.read_pixels(n, plane + c, count, a * grid.step_h + i + places_h_[0].shift,
                              to + line * width_ * stride_ + c, stride_);
        }
      }
    });
  }

  void fill_gradient(int64_t plane, int64_t outputs, int64_t row, int64_t rows, A* m, int64_t panel,
                     A* line) const {
    const int64_t width = x_.grid.width;
    const PaddedRows<T> columns(g_, 0, width);
    rows_.for_each_image(row, rows, [&](int64_t n, int64_t a, int64_t rows) {
      for (int64_t i = 0; i < rows; ++i, m += width * kRows) {
        for (int64_t k = 0; k < outputs; k += kLanes<A>) {
          const int count = static_cast<int>(std::min<int64_t>(kLanes<A>, outputs - k));
          columns.read_pixels(n, plane + k, count, a + i, line, kLanes<A>);
          A* const to = m + k / kRows * panel + k % kRows;
          for (int64_t b = 0; b < width; ++b)
            store_to_panels<A>(load<A>(line + b * kLanes<A>), panel, to + b * kRows);
        }
      }
    });
  }

  const Im2col<T>&g_, &x_;
  ImageRows rows_;
  std::vector<Place> places_h_, places_w_;
  int64_t planes_, stride_, span_, width_, block_;
};

// dw[k][c][place] for kRows outputs, or fewer, from panel i of `parts` dU's, `part` apart. Returns
// whether all are finite.
template <typename T, typename Products>
bool finish_weight_grad(const Products& products, const Accumulator<T>* du, int64_t parts,
                        int64_t part, const ProductPieces<Accumulator<T>>& pieces, int64_t i,
                        int rows, int64_t planes, T* dw) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t places = products.places();
  A* const u = scratch<A>((pieces.positions + places + places + 1) * lanes);
  A *const w = u + pieces.positions * lanes, *const windows = w + places * lanes;
  Vec<A> not_finite{};  // w - w is NaN where w is infinite or NaN
  for (int64_t c = 0; c < planes; c += lanes) {
    const auto count = std::min<int64_t>(lanes, planes - c);
    for (int r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < pieces.positions; ++p) {
        const A* from = du + pieces.at(p, i, c / kCols<A>) + r * kCols<A> + c % kCols<A>;
        Vec<A> sum = load<A>(from);
        for (int64_t at = 1; at < parts; ++at) sum += load<A>(from + at * part);
        store(u + p * lanes, sum);
      }
      products.finish(u, w);
      for (int64_t lane = 0; lane < count; ++lane) {  // to [channel][place]
        for (int64_t t = 0; t < places; ++t) windows[lane * places + t] = w[t * lanes + lane];
      }
      std::fill_n(windows + count * places, lanes, A{0});
      for (int64_t t = 0; t < count * places; t += lanes) {
        const Vec<A> value = load<A>(windows + t);
        not_finite += value - value;
      }
      write_row(windows, count * places, dw + (r * planes + c) * places, 1);
    }
  }
  return horizontal_sum<A>(not_finite) == 0;
}

}  // namespace d2lops
