// How max- and average-pooling walk over memory: which lanes share windows, and in which order.
// csrc/cpu/pool2d.cpp says why.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/pool2d.h"
#include "cpu/pool2d_runs.h"

namespace d2lops {

// The sources of a range of targets.
inline Range sources_of(const Axis& axis, Range targets) {
  Range sources{std::numeric_limits<int64_t>::max(), 0};
  for (int64_t t = targets.begin; t < targets.end; ++t) {
    const Axis::Target& target = axis.targets[t];
    if (target.count == 0) continue;
    sources.begin = std::min(sources.begin, target.first);
    sources.end = std::max(sources.end, target.first + (target.count - 1) * axis.step + 1);
  }
  return sources.end == 0 ? Range{0, 0} : sources;
}

// Some rows and columns of several planes, with the planes side by side: pixel after pixel, each a
// vector of E.
template <typename E>
struct Tile {
  static constexpr int lanes = kLanes<E>;
  Range rows{}, columns{};
  std::unique_ptr<E[]> data;
  int64_t capacity = 0;

  Image<E> reset(Range new_rows, Range new_columns) {
    rows = new_rows;
    columns = new_columns;
    const int64_t needed = rows.size() * columns.size() * lanes;
    if (needed > capacity) {
      data.reset(new E[needed]);
      capacity = needed;
    }
    return {data.get(), columns.size() * lanes, lanes, rows.begin, columns.begin};
  }

  template <typename T>
  void read(const Operand<T>& x, const int64_t (&planes)[lanes]) {
    runs(x, [&](int64_t first, int64_t pixels, E* tile) {
      const T* from = x.data + first;
      blocks(
          x.w, pixels,
          [&](int64_t p) {
            Vec<E> block[lanes];
            for (int l = 0; l < lanes; ++l) block[l] = load_lanes<Vec<E>>(from + planes[l] + p);
            transpose<lanes, E>(block);
            for (int l = 0; l < lanes; ++l) store(tile + (p + l) * lanes, block[l]);
          },
          [&](int64_t p) {
            for (int l = 0; l < lanes; ++l) {
              tile[p * lanes + l] = load_lanes<E>(from + planes[l] + p * x.w);
            }
          });
    });
  }

  // Only the first `count` planes.
  template <typename T>
  void write(const Operand<T>& y, const int64_t (&planes)[lanes], int count) {
    runs(y, [&](int64_t first, int64_t pixels, const E* tile) {
      T* to = y.data + first;
      blocks(
          y.w, pixels,
          [&](int64_t p) {
            Vec<E> block[lanes];
            for (int l = 0; l < lanes; ++l) block[l] = load_bytes<Vec<E>>(tile + (p + l) * lanes);
            transpose<lanes, E>(block);
            for (int l = 0; l < count; ++l) store_lanes(to + planes[l] + p, block[l]);
          },
          [&](int64_t p) {
            for (int l = 0; l < count; ++l) {
              store_lanes(to + planes[l] + p * y.w, tile[p * lanes + l]);
            }
          });
    });
  }

 private:
  // f(where in a plane, how many pixels, where in the tile) for each run of evenly spaced pixels.
  template <typename T, typename F>
  void runs(const Operand<T>& x, F&& f) const {
    const int64_t first = rows.begin * x.h + columns.begin * x.w;
    if (columns.size() * x.w == x.h) {
      f(first, rows.size() * columns.size(), data.get());
      return;
    }
    for (int64_t r = 0; r < rows.size(); ++r) {
      f(first + r * x.h, columns.size(), data.get() + r * columns.size() * lanes);
    }
  }

  // A run in square blocks, of which the last may overlap the one before it, or pixel by pixel.
  template <typename Block, typename Pixel>
  static void blocks(int64_t stride, int64_t pixels, Block&& block, Pixel&& pixel) {
    if (stride == 1 && pixels >= lanes) {
      for (int64_t p = 0; p + lanes <= pixels; p += lanes) block(p);
      if (pixels % lanes != 0) block(pixels - lanes);
    } else {
      for (int64_t p = 0; p < pixels; ++p) pixel(p);
    }
  }
};

template <Op op, typename T, typename J>
struct Pool {
  using A = Accumulator<T>;
  static constexpr int lanes = kLanes<A>;
  // In pixels, sources and targets together: 96 KiB, and what is too much by far.
  static constexpr int64_t tile_pixels = 96 * 1024 / kVectorBytes;
  static constexpr int64_t most_tile_pixels = 64 * tile_pixels;

  Axis rows, columns;
  EvenWindows windows;  // strides are 0 if they are not even
  int64_t pitch;
  int64_t images, channels;
  Operand<const T> source;
  Operand<T> target;
  Operand<J> argmax;

  // Whether a vector's lanes are side by side as they are, in channels or in rows.
  bool fits_in_place() const {
    return source.c == 1 && target.c == 1 && (!has_argmax(op) || argmax.c == 1) &&
           channels >= lanes;
  }
  bool fits_in_runs() const {
    return source.w == 1 && target.w == 1 && (!has_argmax(op) || argmax.w == 1) &&
           RunPooling<op, T, J, 1>::suits(columns, windows);
  }

  // max_adjoint, only where no lanes have to be brought together; returns whether they had not.
  bool run_adjoint() const {
    if (fits_in_place()) {
      run_in_place();
    } else if (fits_in_runs()) {
      windows.across.stride == 1 ? run_in_runs<1>() : run_in_runs<2>();
    } else {
      return false;
    }
    return true;
  }

  void run() const {
    if (fits_in_place()) {
      run_in_place();
    } else if (op == Op::average_adjoint ? has_many_equal_rows() : has_long_runs()) {
      run_by_plane();
    } else if (fits_in_runs()) {
      windows.across.stride == 1 ? run_in_runs<1>() : run_in_runs<2>();
    } else {
      run_in_tiles();
    }
  }

 private:
  int64_t height() const { return rows.targets.size(); }
  int64_t width() const { return columns.targets.size(); }

  static int64_t grain(int64_t elements_per_task) {
    return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements_per_task));
  }

  Pooling<op, T, J> in_place(int64_t image, int64_t channel) const {
    return {rows,
            columns,
            pitch,
            plane(source, image, channel),
            plane(target, image, channel),
            plane(argmax, image, channel)};
  }

  void run_in_place() const {
    parallel_for(0, images * height(), grain(width() * channels), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t image = begin / height(), first = begin % height();
        const int64_t last = std::min(height(), first + end - begin);
        in_place(image, 0).template run<Vec<A>>({first, last}, {0, width()}, channels);
        begin += last - first;
      }
    });
  }

  // Whether every window has enough neighbours in memory to make up for merging lanes.
  bool has_long_runs() const {
    constexpr int64_t enough = op == Op::max ? 8 * lanes : lanes;
    if (op == Op::max_adjoint || source.w != 1 || columns.step != 1) return false;
    const auto pooling = in_place(0, 0);
    for (const Axis::Target& column : columns.targets) {
      if (column.count >= enough) continue;
      if (!pooling.one_run(column)) return false;
      for (const Axis::Target& row : rows.targets) {
        if (row.count * column.count < enough) return false;
      }
    }
    return true;
  }

  // Whether most rows of the adjoint are copies of the ones above.
  bool has_many_equal_rows() const {
    return target.w == 1 && 8 * static_cast<int64_t>(rows.advance.size()) <= height();
  }

  bool all_see_the_only_source() const {
    const auto sees_it = [](const Axis::Target& target) { return target.count == 1; };
    return rows.advance.size() == 1 && columns.advance.size() == 1 && target.h == width() &&
           std::all_of(rows.targets.begin(), rows.targets.end(), sees_it) &&
           std::all_of(columns.targets.begin(), columns.targets.end(), sees_it);
  }

  void run_by_plane() const {
    const int64_t sources = rows.advance.size() * columns.advance.size();
    const int64_t pixels = height() * width() + sources;
    const bool one_value = op == Op::average_adjoint && all_see_the_only_source();
    parallel_for(0, images * channels, grain(pixels), [&](int64_t begin, int64_t end) {
      int64_t image = begin / channels, channel = begin % channels;
      for (int64_t plane = begin; plane < end; ++plane) {
        const auto pooling = in_place(image, channel);
        if constexpr (op == Op::average_adjoint) {
          if (one_value) {
            pooling.template pixel<A>(0, 0, 1);
            std::fill_n(pooling.target.data, height() * width(), *pooling.target.data);
          } else {
            pooling.template run<A>({0, height()}, {0, width()}, 1);
          }
        } else {
          pooling.run_along_rows({0, height()}, {0, width()});
        }
        if (++channel == channels) ++image, channel = 0;
      }
    });
  }

  template <int stride>
  void run_in_runs() const {
    const RunPooling<op, T, J, stride> one(rows, columns, windows);
    const int64_t bands = ceil_div(height(), one.band_rows()), planes = images * channels;
    const int64_t pixels = one.band_rows() * (width() + int64_t(columns.advance.size()));
    parallel_for(0, planes * bands, grain(pixels), [&](int64_t begin, int64_t end) {
      auto pooling = one;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / bands;
        pooling.run(in_place(plane / channels, plane % channels), task % bands);
      }
    });
  }

  void run_in_tiles() const {
    const int64_t groups = ceil_div(images * channels, lanes);
    // Bands of targets, with room for their sources.
    const int64_t across = std::min<int64_t>(width(), 256);
    const int64_t sources_across = ceil_div(across * int64_t(columns.advance.size()), width());
    const int64_t sources_down = ceil_div(rows.advance.size(), height());
    const int64_t down =
        std::clamp<int64_t>(tile_pixels / (across + sources_down * sources_across), 1, height());
    const int64_t bands_across = ceil_div(width(), across), bands_down = ceil_div(height(), down);
    const int64_t bands = bands_across * bands_down;
    parallel_for(0, groups * bands, grain(down * across * lanes), [&](int64_t begin, int64_t end) {
      Tiles tiles;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task / bands * lanes, top = task % bands / bands_across * down;
        const int64_t left = task % bands_across * across;
        run_band(tiles, first, {top, std::min(top + down, height())},
                 {left, std::min(left + across, width())});
      }
    });
  }

  struct Tiles {
    Tile<A> source, target;
    Tile<Index<A>> argmax;
  };

  // Target rows and columns of planes first ... first + lanes - 1.
  void run_band(Tiles& tiles, int64_t first, Range h, Range w) const {
    const int count = static_cast<int>(std::min<int64_t>(lanes, images * channels - first));
    const Range sh = sources_of(rows, h), sw = sources_of(columns, w);
    if (count <= 2 || sh.size() * sw.size() > most_tile_pixels) {
      for (int64_t plane = first; plane < first + count; ++plane) {
        const auto pooling = in_place(plane / channels, plane % channels);
        pooling.template run<A>(h, w, 1);
      }
      return;
    }
    int64_t source_planes[lanes], target_planes[lanes], argmax_planes[lanes];
    for (int l = 0; l < lanes; ++l) {
      const int64_t plane = first + std::min(l, count - 1);
      const int64_t image = plane / channels, channel = plane % channels;
      source_planes[l] = image * source.n + channel * source.c;
      target_planes[l] = image * target.n + channel * target.c;
      argmax_planes[l] = image * argmax.n + channel * argmax.c;
    }
    Pooling<op, A, Index<A>> pooling{rows, columns, pitch, {}, {}, {}};
    const Image<A> from = tiles.source.reset(sh, sw);
    pooling.source = {from.data, from.row, from.column, from.h0, from.w0};
    pooling.target = tiles.target.reset(h, w);
    tiles.source.read(source, source_planes);
    if constexpr (op == Op::max) pooling.argmax = tiles.argmax.reset(h, w);
    pooling.template run<Vec<A>>(h, w, lanes);
    tiles.target.write(target, target_planes, count);
    if constexpr (op == Op::max) tiles.argmax.write(argmax, argmax_planes, count);
  }
};

}  // namespace d2lops
