// Pooling (D2L 6.5): the maximum or the average of each window, and the adjoints. csrc/cpu/pool2d.h
// has what happens at a pixel, csrc/common/window.h has the windows.
//
// Tiling: the lanes of a vector are channels, which share windows. Where channels lie side by side
// (channels_last), the kernel works on memory as it is. Else 4 to 16 planes are transposed into a
// tile that has them side by side, a band of rows at a time, so that sources and targets fit in
// the second cache; the targets are transposed back. Windows wide enough to fill vectors with their
// own rows (global pooling) are read in place. Where nothing of that makes sense (a plane or two,
// or windows with a span of megabytes), one lane at a time. An argmax's map and its adjoint are in
// csrc/cpu/pool2d_argmax.h.
//
// Bytes: each input and output once, and one for the argmax. Arithmetic: 2 comparisons and 4 blends
// a tap for max, 1 addition for average, over all lanes; 1/4 to 1/2 shuffle an element for the
// transposition. Main memory limits windows of up to about 3x3, the arithmetic larger ones.
#include "cpu/pool2d.h"

#include <algorithm>
#include <memory>
#include <tuple>

#include "cpu/pool2d_argmax.h"
#include "cpu/tensor.h"

namespace d2lops {
namespace {

template <typename T>
Operand<T> operand(T* data, const Tensor& x) {
  return {data, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// The sources of a range of targets.
Range sources_of(const Axis& axis, Range targets) {
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
  int64_t pitch;
  int64_t images, channels;
  Operand<const T> source;
  Operand<T> target;
  Operand<J> argmax;

  void run() const {
    if (source.c == 1 && target.c == 1 && (op != Op::max || argmax.c == 1) && channels >= lanes) {
      run_in_place();
    } else if (op != Op::average_adjoint && has_long_runs()) {
      run_along_rows();
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
            source.plane(image, channel),
            target.plane(image, channel),
            argmax.plane(image, channel)};
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
    if (source.w != 1 || columns.step != 1) return false;
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

  void run_along_rows() const {
    const int64_t per_plane = rows.advance.size() * columns.advance.size();
    parallel_for(0, images * channels, grain(per_plane), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const auto pooling = in_place(plane / channels, plane % channels);
        for (int64_t h = 0; h < height(); ++h) {
          for (int64_t w = 0; w < width(); ++w) pooling.pixel_along_rows(h, w);
        }
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

// Bindings.

// The windows of a plane's rows and columns.
template <typename Windows>
struct Grid {
  Windows rows, columns;

  int64_t pitch() const { return columns.most_taps(); }
  int64_t taps() const { return rows.most_taps() * columns.most_taps(); }
};

constexpr int64_t kMost = std::numeric_limits<int32_t>::max();

void check_image(const char* op, const char* name, const Tensor& x) {
  check_dim(op, name, x, 4);
  for (int64_t d = 1; d < 4; ++d) {
    D2LOPS_CHECK(x.size(d) >= 1 && x.size(d) <= kMost, op, ": size ", d, " of ", name,
                 " must be between 1 and 2^31 - 1, got ", x.size(d));
  }
}

Grid<SlidingWindows> sliding(const char* op, int64_t height, int64_t width, const Sizes& kernel,
                             const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  check_length(op, "kernel", kernel, 2);
  check_length(op, "stride", stride, 2);
  check_length(op, "padding", padding, 4);
  check_length(op, "dilation", dilation, 2);
  check_at_least(op, "kernel", kernel, 1);
  check_at_least(op, "stride", stride, 1);
  check_at_least(op, "padding", padding, 0);
  check_at_least(op, "dilation", dilation, 1);
  D2LOPS_CHECK(kernel[0] * kernel[1] <= kMost, op, ": the window has more than 2^31 - 1 elements");
  return {{height, 0, kernel[0], stride[0], padding[0], padding[1], dilation[0]},
          {width, 0, kernel[1], stride[1], padding[2], padding[3], dilation[1]}};
}

void set_outputs(const char* op, Grid<SlidingWindows>& grid, bool ceil_mode) {
  grid.rows.outputs = grid.rows.count(ceil_mode);
  grid.columns.outputs = grid.columns.count(ceil_mode);
  D2LOPS_CHECK(grid.rows.outputs >= 1 && grid.columns.outputs >= 1, op,
               ": the window is larger than the padded input");
}

// Takes the output's sizes from a tensor that should have them, in whichever mode.
void set_outputs(const char* op, Grid<SlidingWindows>& grid, const char* name, const Tensor& y) {
  grid.rows.outputs = y.size(2);
  grid.columns.outputs = y.size(3);
  for (const SlidingWindows* windows : {&grid.rows, &grid.columns}) {
    D2LOPS_CHECK(
        windows->outputs == windows->count(false) || windows->outputs == windows->count(true), op,
        ": ", name, " does not have the size that the other arguments give it");
  }
}

Grid<AdaptiveWindows> adaptive(const char* op, int64_t height, int64_t width, int64_t outputs_down,
                               int64_t outputs_across) {
  const Grid<AdaptiveWindows> grid{{height, outputs_down}, {width, outputs_across}};
  D2LOPS_CHECK(grid.taps() <= kMost, op, ": the window has more than 2^31 - 1 elements");
  return grid;
}

Sizes output_size(const char* op, const Sizes& size) {
  check_length(op, "output_size", size, 2);
  check_at_least(op, "output_size", size, 0);
  return size;
}

Sizes input_size(const char* op, const Sizes& size, const Tensor& g) {
  check_length(op, "input_size", size, 4);
  check_at_least(op, "input_size", size, 0);
  D2LOPS_CHECK(size[0] == g.size(0) && size[1] == g.size(1) && size[2] >= 1 && size[3] >= 1, op,
               ": input_size does not fit the other arguments");
  return size;
}

struct Divisor {
  bool count_include_pad = false;
  std::optional<int64_t> override;
};

// What averages are divided by, along each axis; the adjoint multiplies by the inverse.
template <typename Windows>
void set_weights(Axis& rows, Axis& columns, const Grid<Windows>& grid, Divisor divisor,
                 bool inverse) {
  const auto set = [&](Axis& axis, const Windows& windows, std::optional<int64_t> override) {
    for (int64_t o = 0; o < windows.outputs; ++o) {
      const auto extent =
          static_cast<double>(override ? *override : windows.extent(o, divisor.count_include_pad));
      axis.weight.push_back(inverse ? 1 / extent : extent);
    }
  };
  set(rows, grid.rows, divisor.override);
  set(columns, grid.columns, divisor.override ? std::optional<int64_t>(1) : std::nullopt);
}

// `argmax` is for max alone.
template <Op op, typename Windows>
void pool(const char* name, const Grid<Windows>& grid, const Tensor& source, const Tensor& target,
          const Tensor& argmax, Divisor divisor = {}) {
  if (target.numel() == 0) return;
  constexpr bool adjoint = op == Op::average_adjoint;
  Axis rows = adjoint ? adjoint_axis(grid.rows) : forward_axis(grid.rows);
  Axis columns = adjoint ? adjoint_axis(grid.columns) : forward_axis(grid.columns);
  if (op != Op::max) set_weights(rows, columns, grid, divisor, adjoint);
  dispatch_dtype(name, source, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto index) {
      using J = decltype(index);
      Operand<J> places{};
      if constexpr (op == Op::max) places = operand(mutable_data<J>(argmax), argmax);
      Pool<op, T, J>{std::move(rows),
                     std::move(columns),
                     grid.pitch(),
                     source.size(0),
                     source.size(1),
                     operand(data<T>(source), source),
                     operand(mutable_data<T>(target), target),
                     places}
          .run();
    };
    if constexpr (op == Op::max) {
      argmax.scalar_type() == ScalarType::Byte ? run(uint8_t{}) : run(int32_t{});
    } else {
      run(uint8_t{});
    }
  });
}

void check_argmax(const char* op, const Tensor& argmax) {
  check_dim(op, "argmax", argmax, 4);
  D2LOPS_CHECK(argmax.scalar_type() == ScalarType::Byte || argmax.scalar_type() == ScalarType::Int,
               op, ": argmax must be a uint8 or int32 tensor");
}

void check_argmax(const char* op, const Tensor& argmax, const Tensor& g) {
  check_argmax(op, argmax);
  check_sizes(op, "argmax", argmax, {g.size(0), g.size(1), g.size(2), g.size(3)});
}

// Max-pooling and its three companions, for either kind of windows.

template <typename Windows>
std::tuple<Tensor, Tensor> max_forward(const char* op, const Tensor& x, const Grid<Windows>& grid) {
  const Sizes size{x.size(0), x.size(1), grid.rows.outputs, grid.columns.outputs};
  const bool channels_last = is_channels_last(x);
  Tensor y = empty(size, x.scalar_type(), channels_last);
  Tensor argmax =
      empty(size, grid.taps() <= 255 ? ScalarType::Byte : ScalarType::Int, channels_last);
  pool<Op::max>(op, grid, x, y, argmax);
  return {y, argmax};
}

// Calls f(T{}, the map that argmax picks), for tensors like x.
template <typename Windows, typename F>
void argmax_map(const char* op, const Grid<Windows>& grid, const Tensor& x, const Tensor& argmax,
                F&& f) {
  dispatch_dtype(op, x, [&](auto zero) {
    const auto run = [&](auto index) {
      using J = decltype(index);
      f(zero, ArgmaxMap<decltype(zero), J>{{grid.rows, grid.rows.most_taps()},
                                           {grid.columns, grid.pitch()},
                                           grid.columns.spacing(),
                                           x.size(0),
                                           x.size(1),
                                           operand(data<J>(argmax), argmax)});
    };
    argmax.scalar_type() == ScalarType::Byte ? run(uint8_t{}) : run(int32_t{});
  });
}

template <typename Windows>
Tensor max_gather(const char* op, const Tensor& x, const Tensor& argmax,
                  const Grid<Windows>& grid) {
  const Sizes size{x.size(0), x.size(1), argmax.size(2), argmax.size(3)};
  check_sizes(op, "argmax", argmax, size);
  Tensor y = empty(size, x.scalar_type(), is_channels_last(x));
  if (y.numel() == 0) return y;
  argmax_map(op, grid, x, argmax, [&](auto zero, const auto& map) {
    using T = decltype(zero);
    map.gather(operand(data<T>(x), x), operand(mutable_data<T>(y), y));
  });
  return y;
}

template <typename Windows>
Tensor max_scatter(const char* op, const Tensor& g, const Tensor& argmax, const Sizes& size,
                   const Grid<Windows>& grid) {
  Tensor x = empty(size, g.scalar_type(), is_channels_last(g));
  if (x.numel() == 0) return x;
  argmax_map(op, grid, g, argmax, [&](auto zero, const auto& map) {
    using T = decltype(zero);
    map.scatter(operand(data<T>(g), g), operand(mutable_data<T>(x), x));
  });
  return x;
}

// Where in its plane (h * width + w) each argmax points.
template <typename Windows>
Tensor max_indices(const Tensor& argmax, const Grid<Windows>& grid) {
  const Sizes size{argmax.size(0), argmax.size(1), argmax.size(2), argmax.size(3)};
  Tensor indices = empty(size, ScalarType::Long, is_channels_last(argmax));
  if (indices.numel() == 0) return indices;
  const int64_t pitch = grid.pitch(), width = grid.columns.inputs;
  const auto run = [&](auto index) {
    const auto from = operand(data<decltype(index)>(argmax), argmax);
    const auto to = operand(mutable_data<int64_t>(indices), indices);
    const int64_t grain = std::max<int64_t>(1, 16384 / (size[1] * size[3]));
    parallel_for(0, size[0] * size[2], grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t h = task % size[2], top = grid.rows.origin(h);
        for (int64_t c = 0; c < size[1]; ++c) {
          const auto taps = from.plane(task / size[2], c);
          const auto places = to.plane(task / size[2], c);
          for (int64_t w = 0; w < size[3]; ++w) {
            const auto tap = static_cast<uint32_t>(*taps.at(h, w));
            const int64_t down = tap / static_cast<uint32_t>(pitch) * grid.rows.dilation;
            const int64_t across = tap % static_cast<uint32_t>(pitch) * grid.columns.dilation;
            *places.at(h, w) = (top + down) * width + grid.columns.origin(w) + across;
          }
        }
      }
    });
  };
  argmax.scalar_type() == ScalarType::Byte ? run(uint8_t{}) : run(int32_t{});
  return indices;
}

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, const Sizes& kernel, const Sizes& stride,
                                      const Sizes& padding, const Sizes& dilation, bool ceil_mode) {
  check_image("max_pool2d", "x", x);
  auto grid = sliding("max_pool2d", x.size(2), x.size(3), kernel, stride, padding, dilation);
  set_outputs("max_pool2d", grid, ceil_mode);
  return max_forward("max_pool2d", x, grid);
}

Tensor max_pool2d_gather(const Tensor& x, const Tensor& argmax, const Sizes& kernel,
                         const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  const char* op = "max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  auto grid = sliding(op, x.size(2), x.size(3), kernel, stride, padding, dilation);
  set_outputs(op, grid, "argmax", argmax);
  return max_gather(op, x, argmax, grid);
}

Tensor max_pool2d_scatter(const Tensor& g, const Tensor& argmax, const Sizes& size,
                          const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                          const Sizes& dilation) {
  const char* op = "max_pool2d_scatter";
  check_image(op, "g", g);
  check_argmax(op, argmax, g);
  input_size(op, size, g);
  auto grid = sliding(op, size[2], size[3], kernel, stride, padding, dilation);
  set_outputs(op, grid, "g", g);
  return max_scatter(op, g, argmax, size, grid);
}

Tensor max_pool2d_indices(const Tensor& argmax, const Sizes& size, const Sizes& kernel,
                          const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  const char* op = "max_pool2d_indices";
  check_argmax(op, argmax);
  check_image(op, "argmax", argmax);
  input_size(op, size, argmax);
  auto grid = sliding(op, size[2], size[3], kernel, stride, padding, dilation);
  set_outputs(op, grid, "argmax", argmax);
  return max_indices(argmax, grid);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d(const Tensor& x, const Sizes& size) {
  const char* op = "adaptive_max_pool2d";
  check_image(op, "x", x);
  output_size(op, size);
  return max_forward(op, x, adaptive(op, x.size(2), x.size(3), size[0], size[1]));
}

Tensor adaptive_max_pool2d_gather(const Tensor& x, const Tensor& argmax) {
  const char* op = "adaptive_max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  const auto grid = adaptive(op, x.size(2), x.size(3), argmax.size(2), argmax.size(3));
  return max_gather(op, x, argmax, grid);
}

Tensor adaptive_max_pool2d_scatter(const Tensor& g, const Tensor& argmax, const Sizes& size) {
  const char* op = "adaptive_max_pool2d_scatter";
  check_dim(op, "g", g, 4);
  check_argmax(op, argmax, g);
  input_size(op, size, g);
  return max_scatter(op, g, argmax, size, adaptive(op, size[2], size[3], g.size(2), g.size(3)));
}

Tensor adaptive_max_pool2d_indices(const Tensor& argmax, const Sizes& size) {
  const char* op = "adaptive_max_pool2d_indices";
  check_argmax(op, argmax);
  input_size(op, size, argmax);
  return max_indices(argmax, adaptive(op, size[2], size[3], argmax.size(2), argmax.size(3)));
}

void check_divisor(const char* op, std::optional<int64_t> divisor) {
  D2LOPS_CHECK(!divisor || *divisor != 0, op, ": divisor must not be zero");
}

Tensor avg_pool2d(const Tensor& x, const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                  bool ceil_mode, bool count_include_pad, std::optional<int64_t> divisor) {
  const char* op = "avg_pool2d";
  check_image(op, "x", x);
  check_divisor(op, divisor);
  auto grid = sliding(op, x.size(2), x.size(3), kernel, stride, padding, {1, 1});
  set_outputs(op, grid, ceil_mode);
  Tensor y = empty({x.size(0), x.size(1), grid.rows.outputs, grid.columns.outputs}, x.scalar_type(),
                   is_channels_last(x));
  pool<Op::average>(op, grid, x, y, Tensor(), {count_include_pad, divisor});
  return y;
}

Tensor avg_pool2d_adjoint(const Tensor& g, const Sizes& size, const Sizes& kernel,
                          const Sizes& stride, const Sizes& padding, bool count_include_pad,
                          std::optional<int64_t> divisor) {
  const char* op = "avg_pool2d_adjoint";
  check_image(op, "g", g);
  check_divisor(op, divisor);
  input_size(op, size, g);
  auto grid = sliding(op, size[2], size[3], kernel, stride, padding, {1, 1});
  set_outputs(op, grid, "g", g);
  Tensor x = empty(size, g.scalar_type(), is_channels_last(g));
  pool<Op::average_adjoint>(op, grid, g, x, Tensor(), {count_include_pad, divisor});
  return x;
}

Tensor adaptive_avg_pool2d(const Tensor& x, const Sizes& size) {
  const char* op = "adaptive_avg_pool2d";
  check_image(op, "x", x);
  output_size(op, size);
  Tensor y = empty({x.size(0), x.size(1), size[0], size[1]}, x.scalar_type(), is_channels_last(x));
  pool<Op::average>(op, Grid<AdaptiveWindows>{{x.size(2), size[0]}, {x.size(3), size[1]}}, x, y,
                    Tensor());
  return y;
}

Tensor adaptive_avg_pool2d_adjoint(const Tensor& g, const Sizes& size) {
  const char* op = "adaptive_avg_pool2d_adjoint";
  check_dim(op, "g", g, 4);
  input_size(op, size, g);
  Tensor x = empty(size, g.scalar_type(), is_channels_last(g));
  pool<Op::average_adjoint>(op, Grid<AdaptiveWindows>{{size[2], g.size(2)}, {size[3], g.size(3)}},
                            g, x, Tensor());
  return x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(d2lops, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d));
  m.impl("max_pool2d_gather", TORCH_BOX(&max_pool2d_gather));
  m.impl("max_pool2d_scatter", TORCH_BOX(&max_pool2d_scatter));
  m.impl("max_pool2d_indices", TORCH_BOX(&max_pool2d_indices));
  m.impl("adaptive_max_pool2d", TORCH_BOX(&adaptive_max_pool2d));
  m.impl("adaptive_max_pool2d_gather", TORCH_BOX(&adaptive_max_pool2d_gather));
  m.impl("adaptive_max_pool2d_scatter", TORCH_BOX(&adaptive_max_pool2d_scatter));
  m.impl("adaptive_max_pool2d_indices", TORCH_BOX(&adaptive_max_pool2d_indices));
  m.impl("avg_pool2d", TORCH_BOX(&avg_pool2d));
  m.impl("avg_pool2d_adjoint", TORCH_BOX(&avg_pool2d_adjoint));
  m.impl("adaptive_avg_pool2d", TORCH_BOX(&adaptive_avg_pool2d));
  m.impl("adaptive_avg_pool2d_adjoint", TORCH_BOX(&adaptive_avg_pool2d_adjoint));
}

}  // namespace d2lops
