// Cross-correlation without packing its image: the blocked product of gemm.h, whose B is read in
// place.
//
// A task owns some output rows of one image and group, or several small images. It copies the input
// rows that they need, padded with zeros, into a slab: per channel one plane for each phase of the
// stride, in which the inputs of neighbouring outputs are neighbours, image below image. Then, with
// position = a * (width of the slab) + b for output (a, b),
//
//   B[position, tap] = slab[position + offset(tap)]
//
// is 48 consecutive numbers for 48 consecutive positions, across the ends of rows: no bounds to
// check, nothing to pack, and an element of the image is copied once instead of once per place of
// the window. Positions beyond the output's width, a few at the end of each row, are computed and
// not written; where there are many outputs it is cheaper to leave them out, by copying the runs
// between them to a panel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/integer.h"
#include "cpu/im2col.h"
#include "cpu/micro_kernel.h"
#include "cpu/panels.h"
#include "cpu/scratch.h"

namespace d2lops {

template <typename A>
struct ShiftedColumns {
  const A* slab;
  const int64_t* offset;
  [[gnu::always_inline]] const A* at(int k) const { return slab + offset[k]; }
};

// A place of the window along one axis: which row or column of the kernel it is, and where it
// reads.
struct Place {
  int64_t index, shift;
};

// The outputs of a task: rows a ... a + rows - 1 of images n ... n + images - 1.
struct Band {
  int64_t n, images, a, rows;
};

template <typename T>
class Slab {
 public:
  using A = Accumulator<T>;

  // For `planes` planes of an image under the window rows x cols, `out_rows` rows of outputs of
  // `images` images at a time.
  Slab(const Im2col<T>& x, int64_t planes, const std::vector<Place>& rows,
       const std::vector<Place>& cols, int64_t images, int64_t out_rows)
      : x_(x),
        planes_(planes),
        images_(images),
        phases_h_(x.grid.step_h),
        phases_w_(x.grid.step_w) {
    const auto [row_least, row_most] = shifts(rows);
    const auto [col_least, col_most] = shifts(cols);
    first_row_ = row_least;
    first_col_ = col_least;
    height_ = out_rows + (row_most - row_least) / phases_h_;
    width_ = x.grid.width + (col_most - col_least) / phases_w_;
    plane_ = phases_h_ * phases_w_ * images_ * height_ * width_ + kLanes<A>;
    for (int64_t phase = 0; phase < phases_w_; ++phase)
      columns_.emplace_back(x, first_col_ + phase, width_, phases_w_);
    for (int64_t p = 0; p < planes; ++p) {
      for (const Place& r : rows) {
        for (const Place& s : cols) {
          const int64_t h = r.shift - first_row_, w = s.shift - first_col_;
          const int64_t phase = h % phases_h_ * phases_w_ + w % phases_w_;
          offsets_.push_back(p * plane_ + (phase * images_ * height_ + h / phases_h_) * width_ +
                             w / phases_w_);
        }
      }
    }
  }

  int64_t height() const { return height_; }  // of an image
  int64_t width() const { return width_; }
  const int64_t* offsets() const { return offsets_.data(); }
  // With room for a panel of columns at the last position.
  int64_t size() const { return planes_ * plane_ + kCols<A> + kLanes<A>; }

  // Input for the outputs of a band. `plane` is the first of the planes. Rows follow one another in
  // memory, so that what one writes beyond its end is written over by the next.
  void fill(const Band& band, int64_t plane, A* to) const {
    const int64_t together = planes_together(x_);
    for (int64_t p = 0; p < planes_; p += together) {
      const int64_t count = std::min(together, planes_ - p);
      A* const planes = to + p * plane_;
      for (int64_t phase = 0; phase < phases_h_ * phases_w_; ++phase) {
        for (int64_t image = 0; image < band.images; ++image) {
          A* row = planes + (phase * images_ + image) * height_ * width_;
          for (int64_t i = 0; i < height_; ++i, row += width_) {
            const int64_t h = (band.a + i) * phases_h_ + phase / phases_w_ + first_row_;
            columns_[phase % phases_w_].read_planes(band.n + image, plane + p, count, h, row,
                                                    plane_);
          }
        }
      }
      for (int64_t i = 1; i <= count; ++i) store(planes + i * plane_ - kLanes<A>, Vec<A>{});
    }
    std::fill_n(to + planes_ * plane_, kCols<A> + kLanes<A>, A{0});
  }

 private:
  static std::pair<int64_t, int64_t> shifts(const std::vector<Place>& places) {
    const auto [least, most] =
        std::minmax_element(places.begin(), places.end(),
                            [](const Place& a, const Place& b) { return a.shift < b.shift; });
    return {least->shift, most->shift};
  }

  const Im2col<T>& x_;
  int64_t planes_, images_, phases_h_, phases_w_, first_row_, first_col_, height_, width_;
  int64_t plane_;  // distance of planes: all phases, and what their last row writes beyond its end
  std::vector<PaddedRows<T>> columns_;  // of each phase
  std::vector<int64_t> offsets_;
};

// The weights of all groups as the panels that the micro-kernel reads: per group and block of k's,
// the panels of kRows outputs each.
template <typename T>
class PackedWeights {
 public:
  using A = Accumulator<T>;

  PackedWeights(int64_t groups, int64_t outputs, int64_t depth)
      : panels(ceil_div(outputs, kRows)),
        outputs_(outputs),
        depth_(depth),
        data_(new A[groups * panels * blocks() * kPanel]) {}

  // Packs panel `i` of group `group`, whose weights the reader has.
  void pack(const TapWeights<T>& reader, int64_t group, int64_t i) {
    for (int64_t k = 0; k < depth_; k += kDepth) {
      d2lops::pack<kRows>(reader, i * kRows, rows(i), k, depth(k),
                          const_cast<A*>(panel(group, i, k)));
    }
  }
  const A* panel(int64_t group, int64_t i, int64_t k) const {
    return data_.get() + ((group * blocks() + k / kDepth) * panels + i) * kPanel;
  }
  int rows(int64_t i) const {
    return static_cast<int>(std::min<int64_t>(kRows, outputs_ - i * kRows));
  }
  int depth(int64_t k) const { return static_cast<int>(std::min<int64_t>(kDepth, depth_ - k)); }

  const int64_t panels;

 private:
  // With room for the end of the last row's last vector.
  static constexpr int64_t kPanel = kRows * kDepth + kLanes<A>;
  int64_t blocks() const { return ceil_div(depth_, kDepth); }

  int64_t outputs_, depth_;
  std::unique_ptr<A[]> data_;
};

// Copies n numbers from `from` + each offset to the rows of a panel, and perhaps more of what
// follows them, but no more than `room`.
template <int Vectors, typename A>
void copy_run(const A* from, const int64_t* offsets, int depth, int n, int room, A* to) {
  constexpr int lanes = kLanes<A>;
  const int rest = n - (Vectors - 1) * lanes;
  const bool overhangs = Vectors * lanes > room;
  for (int k = 0; k < depth; ++k, to += kCols<A>) {
    const A* const row = from + offsets[k];
#pragma GCC unroll 4
    for (int v = 0; v + 1 < Vectors; ++v) store(to + v * lanes, load<A>(row + v * lanes));
    const Vec<A> end = load<A>(row + (Vectors - 1) * lanes);
    if (overhangs) {
      store_first(to + (Vectors - 1) * lanes, end, rest);
    } else {
      store(to + (Vectors - 1) * lanes, end);
    }
  }
}

// Columns j ... j + cols - 1 of the product, not counting positions that are no outputs, from a
// slab to a panel. They are runs of its rows: `rows` of each image, `width` columns of each.
template <typename T, typename A>
void copy_columns(const Slab<T>& slab, const A* image, const int64_t* offsets, int64_t rows,
                  int64_t width, int64_t j, int cols, int depth, A* panel) {
  using Copy = void (*)(const A*, const int64_t*, int, int, int, A*);
  static constexpr Copy copies[] = {copy_run<1, A>, copy_run<2, A>, copy_run<3, A>};
  static_assert(kVectors == 3);
  for (int at = 0; at < cols;) {
    const int64_t row = (j + at) / width, col = (j + at) % width;
    const int64_t slab_row = row / rows * slab.height() + row % rows;
    const int n = static_cast<int>(std::min<int64_t>(cols - at, width - col));
    // What follows a run is written over by the next one, within its row of the panel.
    copies[(n - 1) / kLanes<A>](image + slab_row * slab.width() + col, offsets, depth, n,
                                kCols<A> - at, panel + at);
    at += n;
  }
}

// How many columns the product of a band has, and what it costs for each k, in cycles: kCols columns
// take kVectors * kRows / 2 with each panel of outputs, and to copy them about five for each vector
// of a run; what that saves are positions that are no outputs.
template <typename A>
struct BandCost {
  int64_t positions, outputs, in_place, copied;

  BandCost(int64_t panels, int64_t images, int64_t rows, int64_t slab_height, int64_t slab_width,
           int64_t columns)
      : positions(((images - 1) * slab_height + rows - 1) * slab_width + columns),
        outputs(images * rows * columns) {
    const int64_t vectors = (kCols<A> / columns + 1) * ceil_div(columns, kLanes<A>);
    const int64_t product = panels * (kVectors * kRows / 2),
                  copy = 5 * std::min<int64_t>(vectors, kCols<A>);
    in_place = ceil_div(positions, kCols<A>) * product;
    copied = ceil_div(outputs, kCols<A>) * (product + copy);
  }
};

// One task: a band of outputs of one group. `out` points at its first row.
template <typename T>
void correlate_padded(const Slab<T>& slab, const PackedWeights<T>& weights, int64_t group,
                      const Band& band, int64_t plane, int64_t depth, ImageWriter<T> out) {
  using A = Accumulator<T>;
  constexpr int64_t piece = kRows * kCols<A>;
  const BandCost<A> cost(weights.panels, band.images, band.rows, slab.height(), slab.width(),
                         out.columns);
  const bool copied = cost.copied < cost.in_place;
  // Columns at a time: as many as keep their sums in the second-level cache.
  const int64_t tile = std::clamp<int64_t>(98304 / (weights.panels * piece), 1, 16) * kCols<A>;
  const bool one_block = depth <= kDepth;
  const int64_t panel_size = kDepth * kCols<A> + kLanes<A>;
  A* const image = scratch<A>(slab.size() + panel_size +
                              (one_block ? piece : weights.panels * piece * tile / kCols<A>));
  A* const panel = image + slab.size();
  A* const sums = panel + panel_size;
  slab.fill(band, plane, image);
  out.rows = band.rows;
  out.grid = {band.images, copied ? band.rows : slab.height(), copied ? out.columns : slab.width(),
              out.grid.step_h, out.grid.step_w};
  const int64_t positions = copied ? cost.outputs : cost.positions;
  for (int64_t j0 = 0; j0 < positions; j0 += tile) {
    const int64_t j1 = std::min(j0 + tile, positions);
    for (int64_t k = 0; k < depth; k += kDepth) {
      A* c = sums;
      for (int64_t j = j0; j < j1; j += kCols<A>) {
        const int cols = static_cast<int>(std::min<int64_t>(kCols<A>, j1 - j));
        if (copied) {
          copy_columns(slab, image, slab.offsets() + k, band.rows, out.columns, j, cols,
                       weights.depth(k), panel);
        }
        for (int64_t i = 0; i < weights.panels; ++i) {
          const int rows = weights.rows(i);
          const A* const w = weights.panel(group, i, k);
          if (copied) {
            micro_kernel_for<A, PackedColumns<A>>(rows, cols)(weights.depth(k), w, {panel}, c,
                                                              k != 0);
          } else {
            micro_kernel_for<A, ShiftedColumns<A>>(rows, cols)(
                weights.depth(k), w, {image + j, slab.offsets() + k}, c, k != 0);
          }
          if (k + kDepth >= depth) out(i * kRows, j, rows, cols, c);
          if (!one_block) c += piece;
        }
      }
    }
  }
}

}  // namespace d2lops
