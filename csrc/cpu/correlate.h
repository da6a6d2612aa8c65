// The forward map of corr2d and its input gradient: an image under a window, with weights. They
// differ in which image is read and which is written, and in the places of the window; the input
// gradient runs once per phase of the stride. Four ways, of which `correlate` chooses one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/integer.h"
#include "cpu/depthwise.h"
#include "cpu/gemm.h"
#include "cpu/geometry.h"
#include "cpu/im2col.h"
#include "cpu/padded.h"
#include "cpu/parallel.h"
#include "cpu/winograd.h"

namespace d2lops {

// Whether channels are the rows of the product or its columns, which should be the long side of a
// piece.
template <typename T>
bool channels_first(const Strides& image, int64_t planes) {
  return image.c != 1 || planes < kLanes<Accumulator<T>>;
}

inline bool dense_weights(const std::vector<Tap>& taps) {
  for (size_t t = 0; t < taps.size(); ++t) {
    if (taps[t].weight != static_cast<int64_t>(t)) return false;
  }
  return true;
}

template <typename T>
ImageWriter<T> writer_of_group(ImageWriter<T> out, int64_t group, const GroupStep& step) {
  out.image += group * step.outputs * out.strides.c;
  if (out.epilogue.bias) out.epilogue.bias += group * step.outputs * out.epilogue.bias_stride;
  return out;
}

// out = taps x weights, for every group, by packing: windows of one place, and outputs too small
// for a slab.
template <typename T>
void correlate_packed(int64_t groups, const GroupStep& step, const Im2col<T>& x, int64_t depth,
                      const TapWeights<T>& weights, const ImageWriter<T>& out) {
  using A = Accumulator<T>;
  const int64_t pixels = x.grid.count();
  const int64_t m = out.channels_first ? step.outputs : pixels,
                n = out.channels_first ? pixels : step.outputs;
  const Tiling tiling(m, n, groups, get_num_threads(), kCols<A>);
  parallel_for(0, groups * tiling.count(), grain(tiling.rows * tiling.cols * depth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t group = task / tiling.count(), tile = task % tiling.count();
                   Im2col<T> image = x;
                   image.image += group * step.planes * x.strides.c;
                   if (x.mask) image.mask += group * step.planes * x.mask_strides.c;
                   TapWeights<T> weight = weights;
                   weight.data += group * step.weights;
                   const ImageWriter<T> writer = writer_of_group(out, group, step);
                   if (out.channels_first) {
                     gemm_tile<A>(tiling, tile, 0, depth, weight, image, writer);
                   } else {
                     gemm_tile<A>(tiling, tile, 0, depth, image, weight, writer);
                   }
                 }
               });
}

// How many images, and rows of outputs of each, share a slab of half a megabyte or so: enough to
// fill the panels of a product, and some tasks for each thread.
template <typename T>
std::pair<int64_t, int64_t> slab_of_tasks(int64_t groups, const GroupStep& step, const Im2col<T>& x,
                                          const std::vector<Place>& rows,
                                          const std::vector<Place>& cols) {
  constexpr int64_t room = 131072, columns = kCols<Accumulator<T>>;
  const Grid& grid = x.grid;
  const int64_t above = rows.size() / grid.step_h, beside = cols.size() / grid.step_w;
  const int64_t threads = get_num_threads(), planes = step.planes * grid.step_h * grid.step_w;
  const int64_t fitting = std::max<int64_t>(room / (planes * grid.width) - above, 4);
  const int64_t fair =
      std::max(grid.height * grid.images * groups / (4 * threads), ceil_div(columns, grid.width));
  const int64_t out_rows = std::min({fitting, fair, grid.height});
  if (out_rows < grid.height) return {1, out_rows};
  const int64_t height = grid.height + above, width = grid.width + beside;
  const int64_t most =
      std::min(room / (planes * height * width), 8 * columns / (grid.height * grid.width));
  const int64_t tasks = ceil_div(grid.images, std::max<int64_t>(most, 1));
  const int64_t images =
      ceil_div(grid.images, groups % threads == 0 ? tasks : round_up(tasks, threads));
  const auto cost = [&](int64_t images) {
    const BandCost<Accumulator<T>> band(ceil_div(step.outputs, kRows), images, grid.height, height,
                                        width, grid.width);
    return std::min(band.in_place, band.copied);
  };
  return {cost(images) < images * cost(1) ? images : 1, out_rows};
}

// The same by slabs (padded.h): windows of several places.
template <typename T>
void correlate_in_slabs(int64_t groups, const GroupStep& step, const Im2col<T>& x, int64_t depth,
                        const std::vector<Place>& rows, const std::vector<Place>& cols,
                        const TapWeights<T>& weights, ImageWriter<T> out) {
  PackedWeights<T> packed(groups, step.outputs, depth);
  parallel_for(0, groups * packed.panels, grain(8 * kRows * depth),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   TapWeights<T> weight = weights;
                   weight.data += i / packed.panels * step.weights;
                   packed.pack(weight, i / packed.panels, i % packed.panels);
                 }
               });
  const auto [images, out_rows] = slab_of_tasks(groups, step, x, rows, cols);
  const int64_t blocks = ceil_div(x.grid.height, out_rows);
  const Slab<T> slab(x, step.planes, rows, cols, images, out_rows);
  out.channels_first = true;
  const int64_t work = images * out_rows * slab.width() * step.outputs * depth;
  const int64_t tasks = ceil_div(x.grid.images, images) * groups * blocks;
  parallel_for(0, tasks, grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t a = task % blocks * out_rows, group = task / blocks % groups,
                    n = task / blocks / groups * images;
      const Band band{n, std::min(images, x.grid.images - n), a,
                      std::min(out_rows, x.grid.height - a)};
      ImageWriter<T> writer = writer_of_group(out, group, step);
      writer.image += n * out.strides.n + a * out.grid.step_h * out.strides.h;
      correlate_padded(slab, packed, group, band, group * step.planes, depth, writer);
    }
  });
}

inline int64_t least_shift(const std::vector<Place>& places) {
  int64_t least = places[0].shift;
  for (const Place& place : places) least = std::min(least, place.shift);
  return least;
}

// The same by Winograd's transforms (winograd.h): windows of 3 x 3. False where a result is not
// finite, and so perhaps wrong.
template <typename T>
bool correlate_by_winograd(int64_t groups, const GroupStep& step, const Im2col<T>& x,
                           const std::vector<Place>& rows, const std::vector<Place>& cols,
                           const T* w, int64_t w_output, int64_t w_plane, const Strides& ws,
                           ImageWriter<T> out) {
  using winograd::kTile;
  const winograd::Tiles tiles(x.grid.images, x.grid.height, x.grid.width);
  const int64_t first_row = least_shift(rows), first_col = least_shift(cols);
  int64_t places[winograd::kPlaces];
  for (const Place& r : rows) {
    for (const Place& s : cols) {
      places[(r.shift - first_row) * winograd::kWindow + s.shift - first_col] =
          r.index * ws.h + s.index * ws.w;
    }
  }
  winograd::TransformedWeights<T> weights(groups, step.outputs, step.planes);
  parallel_for(0, groups * weights.pieces(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / weights.pieces();
      weights.fill(w + group * step.weights, w_output, w_plane, places, group,
                   i % weights.pieces());
    }
  });
  const int64_t block_rows =
      winograd::rows_per_task<Accumulator<T>>(tiles, groups, get_num_threads());
  const int64_t blocks = ceil_div(tiles.rows(), block_rows);
  const winograd::TransformedImage<T> image(x, tiles, step.planes, first_row, first_col,
                                            block_rows);
  out.channels_first = true;
  const int64_t y_row = out.grid.step_h * out.strides.h;
  out.grid = {tiles.images, tiles.height, kTile * tiles.width, kTile * out.grid.step_h,
              out.grid.step_w};
  std::atomic<bool> finite = true;
  parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / blocks, row = task % blocks * block_rows;
      ImageWriter<T> even = writer_of_group(out, group, step), odd = even;
      odd.image += y_row;
      odd.rows = x.grid.height / kTile;
      if (!winograd::correlate(image, weights, tiles, group, step.planes, row,
                               std::min(block_rows, tiles.rows() - row), {even, odd})) {
        finite = false;
      }
    }
  });
  return finite;
}

// The same with one input and one output channel per group (depthwise.h).
template <typename T>
void correlate_depthwise(int64_t channels, const Im2col<T>& x, const std::vector<Place>& rows,
                         const std::vector<Place>& cols, const T* w, int64_t w_channel,
                         const Strides& ws, const ImageWriter<T>& out) {
  using A = Accumulator<T>;
  const bool pixels = x.strides.c == 1;
  const Patch<T> patch(x, rows, cols, Strips<T>::channels_at_a_time(pixels, channels), pixels);
  const Strips<T> strips(x, patch, channels);
  const WindowWeights<T> weights(channels, patch, w, w_channel, ws, out.epilogue);
  const int64_t y_row = out.grid.step_h * out.strides.h, y_col = out.grid.step_w * out.strides.w;
  const int64_t work = strips.rows * strips.channels * x.grid.width *
                       (8 + static_cast<int64_t>(patch.places.size()));
  const auto run = [&](int64_t n, const typename Strips<T>::Strip& strip) {
    const auto [channel, count, a, height] = strip;
    const A* const from = patch.at(n, channel, count, a, height, scratch<A>(patch.size(height)));
    T* const to = out.image + n * out.strides.n + channel * out.strides.c + a * y_row;
    if (pixels) {
      const WindowSum<T> sum{
          weights.at(channel), weights.tap_step, weights.tap_step, 1, patch.col_step, y_col,
          out.strides.c,       out.epilogue.relu};
      for (int64_t i = 0; i < height; ++i) {
        for (const ColumnRange& range : patch.ranges) {
          sum(range.line, patch.taps(range, a + i), range.end - range.begin, count,
              from + i * patch.row_step + range.begin * patch.col_step,
              to + i * y_row + range.begin * y_col);
        }
      }
    } else {
      const WindowSum<T> sum{weights.at(channel),
                             weights.tap_step,
                             weights.tap_step * static_cast<int64_t>(cols.size()),
                             0,
                             patch.row_step,
                             y_row,
                             y_col,
                             out.epilogue.relu};
      const ColumnRange& all = patch.ranges.front();
      sum(all.line, patch.taps(all, a), height, x.grid.width, from, to);
    }
  };
  parallel_for(0, x.grid.images * strips.across * strips.blocks, grain(work),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t plane = task / strips.blocks;
                   run(plane / strips.across,
                       strips.at(task % strips.blocks, plane % strips.across));
                 }
               });
}

// One direction, and one phase of the stride: `out` = `x` under a window, with weights at the given
// strides.
template <typename T>
void correlate(int64_t groups, const GroupStep& step, Im2col<T> x, const std::vector<Place>& rows,
               const std::vector<Place>& cols, const T* w, int64_t w_output, int64_t w_plane,
               const Strides& ws, const ImageWriter<T>& out) {
  if (x.grid.count() == 0 || step.outputs == 0) return;
  const bool tiles = prefers_tiles(step, x);
  if (!tiles && fits_winograd(step, x, rows, cols) &&
      correlate_by_winograd(groups, step, x, rows, cols, w, w_output, w_plane, ws, out)) {
    return;
  }
  if (is_depthwise(groups, step, x))
    return correlate_depthwise(groups, x, rows, cols, w, step.weights, ws, out);
  const bool slabs =
      !tiles && fits_slabs(x, step.planes, rows, cols) && x.grid.height * x.grid.width >= 8;
  x.runs_over_taps = !slabs && runs_over_taps(x.strides, step.planes);
  auto taps =
      make_taps(step.planes, rows, cols, x.strides, x.mask_strides, w_plane, ws, x.runs_over_taps);
  const TapWeights<T> weights{w, w_output, taps.data(), dense_weights(taps)};
  const auto depth = static_cast<int64_t>(taps.size());
  if (rows.size() == 1 && cols.size() == 1 && rows[0].shift == 0 && cols[0].shift == 0)
    merge_rows(x);
  x.limit(taps);
  x.taps = taps.data();
  if (slabs) return correlate_in_slabs(groups, step, x, depth, rows, cols, weights, out);
  correlate_packed(groups, step, x, depth, weights, out);
}

template <typename T>
void corr2d(const Geometry& geo, const Operand<const T>& x, const Operand<const T>& w,
            const Epilogue<T>& epilogue, const Operand<T>& y) {
  const Grid read{geo.images, geo.output.h, geo.output.w, geo.stride.h, geo.stride.w};
  const Grid written{geo.images, geo.output.h, geo.output.w};
  const Im2col<T> image{x.data, x,       nullptr, {},    geo.input.h, geo.input.w,
                        read,   nullptr, x.c,     false, true};
  correlate<T>(geo.groups, {geo.in, geo.out * w.n, geo.out}, image,
               window(geo.kernel.h, geo.dilation.h, geo.before.h),
               window(geo.kernel.w, geo.dilation.w, geo.before.w), w.data, w.n, w.c, w,
               {y.data, y, written, epilogue, channels_first<T>(y, geo.out), geo.output.w});
}

// Whether the elements of a plane, and planes, follow one another.
inline bool is_dense(const Strides& s, const Pair& size) {
  return s.w == 1 && s.h == size.w && s.c == size.h * size.w;
}

template <typename T>
void corr2d_input_grad(const Geometry& geo, const Operand<const T>& g, const Operand<const T>& y,
                       const Operand<const T>& w, const Operand<T>& dx) {
  const int64_t places = geo.kernel.h * geo.kernel.w;
  if (geo.covers_image() && places > 1 && is_dense(w, geo.kernel) && is_dense(dx, geo.input)) {
    // Each input has one place in the window: what is an element of a plane can be called a plane.
    const Geometry flat{geo.images, geo.groups, geo.in * places, geo.out, {1, 1}, {1, 1},
                        {1, 1},     {1, 1},     {1, 1},          {},      {}};
    return corr2d_input_grad(flat, g, y, Operand<const T>{{w.n, 1, 1, 1}, w.data},
                             Operand<T>{{dx.n, 1, 1, 1}, dx.data});
  }
  for (int64_t ph = 0; ph < std::min(geo.stride.h, geo.input.h); ++ph) {
    for (int64_t pw = 0; pw < std::min(geo.stride.w, geo.input.w); ++pw) {
      const Grid read{geo.images, ceil_div(geo.input.h - ph, geo.stride.h),
                      ceil_div(geo.input.w - pw, geo.stride.w)};
      Grid written = read;
      written.step_h = geo.stride.h;
      written.step_w = geo.stride.w;
      const Im2col<T> image{g.data, g,       y.data, y,     geo.output.h, geo.output.w,
                            read,   nullptr, g.c,    false, true};
      correlate<T>(geo.groups, {geo.out, geo.out * w.n, geo.in}, image,
                   window_of_phase(ph, geo.kernel.h, geo.stride.h, geo.dilation.h, geo.before.h),
                   window_of_phase(pw, geo.kernel.w, geo.stride.w, geo.dilation.w, geo.before.w),
                   w.data, w.c, w.n, w,
                   {dx.data + ph * dx.h + pw * dx.w,
                    dx,
                    written,
                    {},
                    channels_first<T>(dx, geo.in),
                    read.width});
    }
  }
}
}  // namespace d2lops
