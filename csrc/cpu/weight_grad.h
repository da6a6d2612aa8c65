// The weight gradient of corr2d: sums over pixels, in parts whose number depends on the sizes alone
// and whose results are added in a fixed order, so that bits do not depend on the threads. Five
// ways, of which `corr2d_weight_grad` chooses one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "common/integer.h"
#include "cpu/depthwise.h"
#include "cpu/gemm.h"
#include "cpu/geometry.h"
#include "cpu/im2col.h"
#include "cpu/padded_weight_grad.h"
#include "cpu/parallel.h"
#include "cpu/winograd_weight_grad.h"

namespace d2lops {

// dw = the sum of `parts` partial results in order: their element (row, t) is at row * row_step + t
// * tap_step.
template <typename T, typename A>
void add_parts(std::vector<A>& partial, int64_t parts, int64_t rows, int64_t row_step,
               int64_t tap_step, const std::vector<Tap>& taps, T* dw) {
  const auto n = static_cast<int64_t>(taps.size()), part = rows * n;
  parallel_for(0, part, grain(8 * parts), [&](int64_t begin, int64_t end) {
    for (int64_t p = 1; p < parts; ++p) {
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[p * part + i];
    }
  });
  parallel_for(0, rows, grain(8 * n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t t = 0; t < n; ++t) {
        store1(dw + row * n + taps[t].weight, partial[row * row_step + t * tap_step]);
      }
    }
  });
}

// The weight gradient with one input and one output channel per group. A part is a run of blocks of
// rows.
template <typename T>
void depthwise_weight_grad(int64_t channels, const Im2col<T>& g, const Im2col<T>& x,
                           const std::vector<Place>& rows, const std::vector<Place>& cols,
                           const std::vector<Tap>& taps, T* dw) {
  using A = Accumulator<T>;
  constexpr int lanes = kLanes<A>;
  const auto count = static_cast<int64_t>(taps.size());
  const bool pixels = x.strides.c == 1;
  const int64_t together = Strips<T>::channels_at_a_time(pixels, channels);
  const Patch<T> patch(x, rows, cols, together, pixels);
  const Patch<T> gradient(g, {{0, 0}}, {{0, 0}}, together, pixels);
  const Strips<T> strips(x, patch, channels);
  const int64_t blocks = g.grid.images * strips.blocks;
  const int64_t parts = std::clamp<int64_t>(blocks, 1, 32), run = ceil_div(blocks, parts);
  const int64_t size = patch.size(strips.rows), g_size = gradient.size(strips.rows);
  const int64_t stride = pixels ? round_up(strips.channels, lanes) : lanes;
  std::vector<A> partial(parts * count * channels);
  const int64_t work = run * strips.rows * strips.channels * g.grid.width * (8 + count);
  parallel_for(0, parts * strips.across, grain(work), [&](int64_t begin, int64_t end) {
    A* const values = scratch<A>(size + g_size + count * stride);
    A* const gradients = values + size;
    A* const sums = gradients + g_size;  // of each tap, for each channel or in one vector
    for (int64_t i = begin; i < end; ++i) {
      const int64_t part = i / strips.across, first = part * run;
      std::fill_n(sums, count * stride, A{0});
      for (int64_t block = first; block < std::min(first + run, blocks); ++block) {
        const auto [channel, width, a, height] =
            strips.at(block % strips.blocks, i % strips.across);
        const int64_t n = block / strips.blocks;
        const A* const xs = patch.at(n, channel, width, a, height, values);
        const A* const gs = gradient.at(n, channel, width, a, height, gradients);
        if (pixels) {
          for (int64_t h = 0; h < height; ++h) {
            for (const ColumnRange& range : patch.ranges) {
              add_products(patch.taps(range, a + h), range.end - range.begin, width,
                           gs + h * gradient.row_step + range.begin * gradient.col_step,
                           gradient.col_step,
                           xs + h * patch.row_step + range.begin * patch.col_step, patch.col_step,
                           sums, stride, 1);
            }
          }
        } else {
          add_products(patch.taps(patch.ranges.front(), a), height, g.grid.width, gs,
                       gradient.row_step, xs, patch.row_step, sums, stride, 0);
        }
      }
      const auto [channel, width, a, height] = strips.at(0, i % strips.across);
      A* const to = partial.data() + part * count * channels + channel;
      for (int64_t t = 0; t < count; ++t) {
        const A* const from = sums + t * stride;
        if (pixels) {
          std::copy_n(from, width, to + t * channels);
        } else {
          to[t * channels] = horizontal_sum<A>(load<A>(from));
        }
      }
    }
  });
  add_parts(partial, parts, channels, 1, channels, taps, dw);
}

// The weight gradient by packing. Each chunk of the pixels makes a partial result of its own; how
// many there are depends on the sizes alone, so that their sum, taken in order, does not depend on
// the threads.
template <typename T>
void weight_grad_packed(const Geometry& geo, Im2col<T> g, Im2col<T> x, const std::vector<Tap>& taps,
                        T* dw) {
  using A = Accumulator<T>;
  auto planes =
      make_taps(geo.out, {{0, 0}}, {{0, 0}}, g.strides, g.mask_strides, 0, {}, g.runs_over_taps);
  merge_rows(g);
  g.limit(planes);
  g.taps = planes.data();
  x.taps = taps.data();
  const int64_t m = geo.out, n = static_cast<int64_t>(taps.size()), pixels = x.grid.count();
  const Tiling tiling(m, n, 1, 1, kCols<A>);
  const int64_t tasks = geo.groups * tiling.count();
  const int64_t chunks = std::max<int64_t>(1, std::min(ceil_div(32, tasks), pixels / 1024));
  const int64_t chunk = round_up(ceil_div(pixels, chunks), kDepth);
  std::vector<A> partial(chunks * geo.groups * m * n);
  parallel_for(
      0, chunks * tasks, grain(chunk * tiling.rows * tiling.cols), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task / tiling.count() % geo.groups, tile = task % tiling.count();
          const int64_t first = task / tasks * chunk;
          A* to = partial.data() + (task / tasks * geo.groups + group) * m * n;
          Im2col<T> a = g, b = x;
          a.image += group * geo.out * g.strides.c;
          if (a.mask) a.mask += group * geo.out * g.mask_strides.c;
          b.image += group * geo.in * x.strides.c;
          const auto store = [&](int64_t i, int64_t j, int rows, int cols, const A* c) {
            for (int r = 0; r < rows; ++r)
              write_row(c + r * kCols<A>, cols, to + (i + r) * n + j, 1);
          };
          gemm_tile<A>(tiling, tile, first, std::min(first + chunk, pixels), a, b, store);
        }
      });
  add_parts(partial, chunks, geo.groups * m, n, 1, taps, dw);
}

// The weight gradient by slabs. A part is a run of tasks, at most 32 of them; both are a matter of
// sizes alone.
template <typename T>
void weight_grad_in_slabs(const Geometry& geo, const Im2col<T>& g, const Im2col<T>& x,
                          const std::vector<Place>& rows, const std::vector<Place>& cols,
                          const std::vector<Tap>& taps, T* dw) {
  using A = Accumulator<T>;
  const auto n = static_cast<int64_t>(taps.size());
  const int64_t row =
      geo.in * x.grid.step_h * x.grid.step_w * x.grid.width + geo.out * x.grid.width;
  const int64_t out_rows =
      std::clamp<int64_t>(131072 / row - static_cast<int64_t>(rows.size()), 1, x.grid.height);
  const int64_t blocks = ceil_div(x.grid.height, out_rows), tasks = x.grid.images * blocks;
  const int64_t parts = std::clamp<int64_t>(tasks, 1, 32), run = ceil_div(tasks, parts);
  const Slab<T> slab(x, geo.in, rows, cols, 1, out_rows);
  std::vector<A> partial(parts * geo.groups * geo.out * n);
  parallel_for(0, parts * geo.groups, grain(run * out_rows * x.grid.width * geo.out * n),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t part = i / geo.groups, group = i % geo.groups;
                   for (int64_t task = part * run; task < std::min((part + 1) * run, tasks);
                        ++task) {
                     const int64_t a = task % blocks * out_rows;
                     weight_grad_padded(slab, g, geo.out, n, task / blocks, group * geo.out,
                                        group * geo.in, a, std::min(out_rows, x.grid.height - a),
                                        partial.data() + i * geo.out * n);
                   }
                 }
               });
  add_parts(partial, parts, geo.groups * geo.out, n, 1, taps, dw);
}

// In how many parts the weight gradient by products sums over so many pixels: enough for some
// threads, as long as their results stay below 32 MB or so.
inline int64_t parts_of_pixels(int64_t pixels, int64_t least, int64_t result) {
  return std::clamp<int64_t>(std::min(pixels / least, (1 << 23) / result), 1, 16);
}

// How many outputs a task of the weight gradient by products owns: enough that reading the image
// once for each costs little.
template <typename A>
int64_t outputs_per_task(int64_t outputs, int64_t others) {
  const int64_t ranges =
      std::clamp<int64_t>(ceil_div(8, others), ceil_div(outputs, 128), ceil_div(outputs, 32));
  constexpr int whole = std::max(kRows, kLanes<A>);
  return round_up(ceil_div(outputs, ranges), whole);
}

// The weight gradient by products (products.h). Tasks are parts of the rows times ranges of the
// outputs, as sizes alone have it. Returns whether all weights are finite.
template <typename T, typename Products>
bool weight_grad_by_products(const Geometry& geo, const Products& products, int64_t parts,
                             int64_t range, T* dw) {
  using A = Accumulator<T>;
  const int64_t rows = products.rows().count(), part_rows = ceil_div(rows, parts);
  parts = ceil_div(rows, part_rows);
  const ProductPieces<A> pieces(products.positions(), range, geo.in);
  const int64_t ranges = ceil_div(geo.out, range), tasks = geo.groups * ranges,
                part = tasks * pieces.size();
  A* const du = scratch<A, 1>(parts * part);
  parallel_for(0, parts * tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i % tasks / ranges, k = i % ranges * range, row = i / tasks * part_rows;
      products.sum(group * geo.out + k, std::min(range, geo.out - k), group * geo.in, row,
                   std::min(row + part_rows, rows), pieces, du + i * pieces.size());
    }
  });
  std::atomic<bool> finite = true;
  parallel_for(0, tasks * pieces.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = i / pieces.panels, panel = i % pieces.panels, group = task / ranges,
                    k = task % ranges * range + panel * kRows;
      const int used = static_cast<int>(std::clamp<int64_t>(geo.out - k, 0, kRows));
      T* const to = dw + (group * geo.out + k) * geo.in * products.places();
      if (!finish_weight_grad(products, du + task * pieces.size(), parts, part, pieces, panel, used,
                              geo.in, to)) {
        finite = false;
      }
    }
  });
  return finite;
}

// By Winograd's transforms (winograd_weight_grad.h). False where a result is not finite, and so
// perhaps wrong.
template <typename T>
bool weight_grad_by_winograd(const Geometry& geo, const Im2col<T>& g, const Im2col<T>& x, T* dw) {
  const int64_t tiles = winograd::Tiles(geo.images, geo.output.h, geo.output.w).count();
  const int64_t parts =
      parts_of_pixels(tiles, 1024, winograd::kPositions * geo.groups * geo.out * geo.in);
  const int64_t range = outputs_per_task<Accumulator<T>>(geo.out, parts * geo.groups);
  const winograd::TileProducts<T> products(g, x, -geo.before.h, -geo.before.w, geo.in,
                                           std::min(range, geo.out));
  return weight_grad_by_products(geo, products, parts, range, dw);
}

// By a product for each place of the window.
template <typename T>
void weight_grad_by_places(const Geometry& geo, const Im2col<T>& g, const Im2col<T>& x,
                           const std::vector<Place>& rows, const std::vector<Place>& cols, T* dw) {
  const int64_t parts = parts_of_pixels(
      x.grid.count(), 4096, geo.kernel.h * geo.kernel.w * geo.groups * geo.out * geo.in);
  const int64_t range = outputs_per_task<Accumulator<T>>(geo.out, parts * geo.groups);
  const WindowProducts<T> products(g, x, rows, cols, geo.in, std::min(range, geo.out));
  weight_grad_by_products(geo, products, parts, range, dw);
}

// dw is contiguous.
template <typename T>
void corr2d_weight_grad(const Geometry& geo, const Operand<const T>& g, const Operand<const T>& y,
                        const Operand<const T>& x, T* dw) {
  const Strides ws{0, geo.kernel.h * geo.kernel.w, geo.kernel.w, 1};
  const Grid grid{geo.images, geo.output.h, geo.output.w};
  const Grid strided{geo.images, geo.output.h, geo.output.w, geo.stride.h, geo.stride.w};
  Im2col<T> gradient{g.data, g,       y.data, y,     geo.output.h, geo.output.w,
                     grid,   nullptr, g.c,    false, false};
  Im2col<T> image{x.data,  x,       nullptr, {},    geo.input.h, geo.input.w,
                  strided, nullptr, x.c,     false, false};
  const auto rows = window(geo.kernel.h, geo.dilation.h, geo.before.h);
  const auto cols = window(geo.kernel.w, geo.dilation.w, geo.before.w);
  const GroupStep step{geo.in, 0, geo.out};
  const bool tiles = prefers_tiles(step, image);
  if (!tiles && fits_winograd(step, image, rows, cols) &&
      weight_grad_by_winograd(geo, gradient, image, dw)) {
    return;
  }
  const bool depthwise = is_depthwise(geo.groups, step, image);
  const bool slabs = !depthwise && !tiles && fits_slabs(image, geo.in, rows, cols) &&
                     image.grid.height * image.grid.width >= 32 &&
                     geo.out * geo.in * geo.kernel.h * geo.kernel.w <= 16384;
  // Windows of one place have no use for an image that can be shifted.
  if (!depthwise && !tiles && rows.size() * cols.size() > 1 && geo.stride.w == 1 &&
      geo.in >= kLanes<Accumulator<T>> && geo.out >= kRows && image.grid.count() > 0) {
    return weight_grad_by_places(geo, gradient, image, rows, cols, dw);
  }
  gradient.runs_over_taps = runs_over_taps(g, geo.out);
  image.runs_over_taps = !depthwise && !slabs && runs_over_taps(x, geo.in);
  auto taps = make_taps(geo.in, rows, cols, x, {}, ws.c, ws, image.runs_over_taps);
  image.limit(taps);
  if (taps.empty() || geo.out == 0) return;
  if (depthwise) return depthwise_weight_grad(geo.groups, gradient, image, rows, cols, taps, dw);
  if (slabs) return weight_grad_in_slabs(geo, gradient, image, rows, cols, taps, dw);
  weight_grad_packed(geo, gradient, image, taps, dw);
}
}  // namespace d2lops
