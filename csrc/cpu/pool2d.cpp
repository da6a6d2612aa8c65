// Pooling (D2L 7.5): the maximum or the average of each window, and the adjoints. csrc/cpu/pool2d.h
// has what happens at a pixel, csrc/common/window.h has the windows.
//
// Tiling: the lanes of a vector share windows, or have windows that are evenly spaced.
//   - Channels that lie side by side (channels_last) are read as they are.
//   - Neighbours in a window that is wide enough (global pooling).
//   - Neighbours in a row, where windows are 1 or 2 columns apart and have few taps: a band of rows
//     is staged in the first cache, where each tap is one run (csrc/cpu/pool2d_runs.h).
//   - Else, 4 to 16 planes are transposed into a tile that has them side by side, a band of rows at
//     a time, so that sources and targets fit in the second cache; the targets are transposed back
//     (csrc/cpu/pool2d_tiles.h).
//   - A plane or two, or windows with a span of megabytes: one lane at a time.
// The adjoint of a maximum compares its argmax with every tap if channels or neighbours in a row
// are the lanes and taps are few; else it scatters (csrc/cpu/pool2d_argmax.h).
//
// Bytes: each input and output once, and one for the argmax. Arithmetic, over all lanes: maximum,
// addition, comparison and selection a tap for max; 1 addition for average; comparison and addition
// for max's adjoint. Memory limits windows of up to about 3x3, the arithmetic larger ones.
#include <algorithm>
#include <tuple>

#include "cpu/pool2d_argmax.h"
#include "cpu/pool2d_tiles.h"
#include "cpu/tensor.h"

namespace d2lops {
namespace {

template <typename T>
Operand<T> operand(T* data, const Tensor& x) {
  return {data, x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

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
  for (int64_t d = 2; d < 4; ++d) {
    D2LOPS_CHECK(x.size(d) >= 1 && x.size(d) <= kMost, op, ": size ", d, " of ", name,
                 " must be between 1 and 2^31 - 1, got ", x.size(d));
  }
}

// The windows that a raw operator's argument describes; averages have no dilation.
Grid<SlidingWindows> sliding(const char* op, int64_t height, int64_t width, SizesRef window,
                             bool dilated = true) {
  check_length(op, "window", window, dilated ? 10 : 8);
  check_at_least(op, "kernel", {window[0], window[1]}, 1);
  check_at_least(op, "stride", {window[2], window[3]}, 1);
  check_at_least(op, "padding", {window[4], window[5], window[6], window[7]}, 0);
  if (dilated) check_at_least(op, "dilation", {window[8], window[9]}, 1);
  for (int64_t axis : {0, 1}) {
    const int64_t span = (window[axis] - 1) * (dilated ? window[8 + axis] : 1) + 1;
    D2LOPS_CHECK(2 * window[4 + 2 * axis] <= span && 2 * window[5 + 2 * axis] <= span, op,
                 ": padding must be at most half of the window");
  }
  D2LOPS_CHECK(window[0] * window[1] <= kMost, op, ": the window has more than 2^31 - 1 elements");
  return {{height, 0, window[0], window[2], window[4], window[5], dilated ? window[8] : 1},
          {width, 0, window[1], window[3], window[6], window[7], dilated ? window[9] : 1}};
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

Sizes input_size(const char* op, const Tensor& g, int64_t height, int64_t width) {
  check_at_least(op, "input_size", {height, width}, 1);
  return {g.size(0), g.size(1), height, width};
}

EvenWindows even_windows(const Grid<SlidingWindows>& grid) {
  const auto steps = [](const SlidingWindows& windows) -> EvenWindows::Steps {
    return {windows.kernel, windows.stride, windows.padding, windows.dilation};
  };
  return {steps(grid.rows), steps(grid.columns)};
}
EvenWindows even_windows(const Grid<AdaptiveWindows>&) { return {}; }

struct Divisor {
  bool count_include_pad = false;
  std::optional<int64_t> override;
};

// What averages are divided by, along each axis.
template <typename Windows>
void set_extents(Axis& axis, const Windows& windows, std::optional<int64_t> divisor,
                 bool count_include_pad, bool adjoint) {
  for (int64_t o = 0; o < windows.outputs; ++o) {
    const int64_t extent = divisor ? *divisor : windows.extent(o, count_include_pad);
    if (adjoint) {
      axis.extent.push_back(static_cast<double>(extent));
    } else {
      axis.targets[o].extent = static_cast<double>(extent);
    }
  }
  if (!adjoint) return;
  std::vector<int64_t> same_until(axis.extent.size());
  for (int64_t o = same_until.size(); o-- > 0;) {
    const bool same = o + 1 < windows.outputs && axis.extent[o] == axis.extent[o + 1];
    same_until[o] = same ? same_until[o + 1] : o + 1;
  }
  for (Axis::Target& target : axis.targets) {
    if (target.count > 0 && target.first + target.count <= same_until[target.first]) {
      target.extent = axis.extent[target.first];
    }
  }
}

// `argmax` is for max and its adjoint alone. Returns false, and does nothing, if that adjoint is
// better scattered.
template <Op op, typename Windows>
bool pool(const char* name, const Grid<Windows>& grid, const Tensor& source, const Tensor& target,
          const Tensor& argmax, Divisor divisor = {}) {
  if (target.numel() == 0) return true;
  constexpr bool adjoint = is_adjoint(op);
  Axis rows = adjoint ? adjoint_axis(grid.rows) : forward_axis(grid.rows);
  Axis columns = adjoint ? adjoint_axis(grid.columns) : forward_axis(grid.columns);
  if constexpr (!has_argmax(op)) {
    const auto across = divisor.override ? std::optional<int64_t>(1) : std::nullopt;
    set_extents(rows, grid.rows, divisor.override, divisor.count_include_pad, adjoint);
    set_extents(columns, grid.columns, across, divisor.count_include_pad, adjoint);
  }
  bool done = true;
  dispatch_dtype(name, source, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto index) {
      using J = std::conditional_t<adjoint, const decltype(index), decltype(index)>;
      Operand<J> places{};
      if constexpr (op == Op::max) places = operand(mutable_data<J>(argmax), argmax);
      if constexpr (op == Op::max_adjoint) places = operand(data<J>(argmax), argmax);
      const Pool<op, T, J> pool{std::move(rows),
                                std::move(columns),
                                even_windows(grid),
                                grid.pitch(),
                                source.size(0),
                                source.size(1),
                                operand(data<T>(source), source),
                                operand(mutable_data<T>(target), target),
                                places};
      if constexpr (op == Op::max_adjoint) {
        done = pool.run_adjoint();
      } else {
        pool.run();
      }
    };
    if constexpr (has_argmax(op)) {
      argmax.scalar_type() == ScalarType::Byte ? run(uint8_t{}) : run(int32_t{});
    } else {
      run(uint8_t{});
    }
  });
  return done;
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
  D2LOPS_CHECK(x.size(1) >= 1, op, ": x must have channels");
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
  // Comparing costs each window all of its taps, over all lanes; scattering costs it one number.
  constexpr int64_t few = 2 * kLanes<float>;
  if (grid.taps() <= few && pool<Op::max_adjoint>(op, grid, g, x, argmax)) return x;
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

std::tuple<Tensor, Tensor> max_pool2d(const Tensor& x, Sizes window, bool ceil_mode) {
  check_image("max_pool2d", "x", x);
  auto grid = sliding("max_pool2d", x.size(2), x.size(3), window);
  set_outputs("max_pool2d", grid, ceil_mode);
  return max_forward("max_pool2d", x, grid);
}

Tensor max_pool2d_gather(const Tensor& x, const Tensor& argmax, Sizes window) {
  const char* op = "max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  auto grid = sliding(op, x.size(2), x.size(3), window);
  set_outputs(op, grid, "argmax", argmax);
  return max_gather(op, x, argmax, grid);
}

Tensor max_pool2d_scatter(const Tensor& g, const Tensor& argmax, int64_t height, int64_t width,
                          Sizes window) {
  const char* op = "max_pool2d_scatter";
  check_image(op, "g", g);
  check_argmax(op, argmax, g);
  const Sizes size = input_size(op, g, height, width);
  auto grid = sliding(op, height, width, window);
  set_outputs(op, grid, "g", g);
  return max_scatter(op, g, argmax, size, grid);
}

Tensor max_pool2d_indices(const Tensor& argmax, int64_t height, int64_t width, Sizes window) {
  const char* op = "max_pool2d_indices";
  check_argmax(op, argmax);
  check_image(op, "argmax", argmax);
  input_size(op, argmax, height, width);
  auto grid = sliding(op, height, width, window);
  set_outputs(op, grid, "argmax", argmax);
  return max_indices(argmax, grid);
}

std::tuple<Tensor, Tensor> adaptive_max_pool2d(const Tensor& x, int64_t height, int64_t width) {
  const char* op = "adaptive_max_pool2d";
  check_image(op, "x", x);
  check_at_least(op, "output_size", {height, width}, 0);
  return max_forward(op, x, adaptive(op, x.size(2), x.size(3), height, width));
}

Tensor adaptive_max_pool2d_gather(const Tensor& x, const Tensor& argmax) {
  const char* op = "adaptive_max_pool2d_gather";
  check_image(op, "x", x);
  check_argmax(op, argmax);
  const auto grid = adaptive(op, x.size(2), x.size(3), argmax.size(2), argmax.size(3));
  return max_gather(op, x, argmax, grid);
}

Tensor adaptive_max_pool2d_scatter(const Tensor& g, const Tensor& argmax, int64_t height,
                                   int64_t width) {
  const char* op = "adaptive_max_pool2d_scatter";
  check_dim(op, "g", g, 4);
  check_argmax(op, argmax, g);
  const Sizes size = input_size(op, g, height, width);
  return max_scatter(op, g, argmax, size, adaptive(op, height, width, g.size(2), g.size(3)));
}

Tensor adaptive_max_pool2d_indices(const Tensor& argmax, int64_t height, int64_t width) {
  const char* op = "adaptive_max_pool2d_indices";
  check_argmax(op, argmax);
  input_size(op, argmax, height, width);
  return max_indices(argmax, adaptive(op, height, width, argmax.size(2), argmax.size(3)));
}

void check_divisor(const char* op, std::optional<int64_t> divisor) {
  D2LOPS_CHECK(!divisor || *divisor != 0, op, ": divisor must not be zero");
}

Tensor avg_pool2d(const Tensor& x, Sizes window, bool count_include_pad,
                  std::optional<int64_t> divisor, bool ceil_mode) {
  const char* op = "avg_pool2d";
  check_image(op, "x", x);
  D2LOPS_CHECK(x.size(1) >= 1, op, ": x must have channels");
  check_divisor(op, divisor);
  auto grid = sliding(op, x.size(2), x.size(3), window, false);
  set_outputs(op, grid, ceil_mode);
  Tensor y = empty({x.size(0), x.size(1), grid.rows.outputs, grid.columns.outputs}, x.scalar_type(),
                   is_channels_last(x));
  pool<Op::average>(op, grid, x, y, Tensor(), {count_include_pad, divisor});
  return y;
}

Tensor avg_pool2d_adjoint(const Tensor& g, int64_t height, int64_t width, Sizes window,
                          bool count_include_pad, std::optional<int64_t> divisor) {
  const char* op = "avg_pool2d_adjoint";
  check_image(op, "g", g);
  check_divisor(op, divisor);
  const Sizes size = input_size(op, g, height, width);
  auto grid = sliding(op, height, width, window, false);
  set_outputs(op, grid, "g", g);
  Tensor x = empty(size, g.scalar_type(), is_channels_last(g));
  pool<Op::average_adjoint>(op, grid, g, x, Tensor(), {count_include_pad, divisor});
  return x;
}

Tensor adaptive_avg_pool2d(const Tensor& x, int64_t height, int64_t width) {
  const char* op = "adaptive_avg_pool2d";
  check_image(op, "x", x);
  check_at_least(op, "output_size", {height, width}, 0);
  Tensor y = empty({x.size(0), x.size(1), height, width}, x.scalar_type(), is_channels_last(x));
  pool<Op::average>(op, Grid<AdaptiveWindows>{{x.size(2), height}, {x.size(3), width}}, x, y,
                    Tensor());
  return y;
}

Tensor adaptive_avg_pool2d_adjoint(const Tensor& g, int64_t height, int64_t width) {
  const char* op = "adaptive_avg_pool2d_adjoint";
  check_dim(op, "g", g, 4);
  const Sizes size = input_size(op, g, height, width);
  Tensor x = empty(size, g.scalar_type(), is_channels_last(g));
  pool<Op::average_adjoint>(op, Grid<AdaptiveWindows>{{height, g.size(2)}, {width, g.size(3)}}, g,
                            x, Tensor());
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
