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
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/pool2d_argmax.h"
#include "cpu/pool2d_tiles.h"
#include "operators.h"

namespace d2lops {
namespace {

EvenWindows even_windows(const Pooling2d<SlidingWindows>& pooling) {
  const auto steps = [](const SlidingWindows& windows) -> EvenWindows::Steps {
    return {windows.kernel, windows.stride, windows.padding, windows.dilation};
  };
  return {steps(pooling.rows), steps(pooling.columns)};
}
EvenWindows even_windows(const Pooling2d<AdaptiveWindows>&) { return {}; }

// What averages are divided by, along each axis: `divisor`, or the windows' extents if it is 0.
template <typename Windows>
void set_extents(Axis& axis, const Windows& windows, int64_t divisor, bool count_include_pad,
                 bool adjoint) {
  for (int64_t o = 0; o < windows.outputs; ++o) {
    const int64_t extent = divisor ? divisor : windows.extent(o, count_include_pad);
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

// `argmax` is for max (Output) and its adjoint (Input) alone. Returns false, and does nothing, if
// that adjoint is better scattered.
template <Op op, typename Windows, typename Argmax>
bool pool(const Pooling2d<Windows>& pooling, const Input& source, const Output& target,
          const Argmax& argmax, const Divisor& divisor = {}) {
  constexpr bool adjoint = is_adjoint(op);
  Axis rows = adjoint ? adjoint_axis(pooling.rows) : forward_axis(pooling.rows);
  Axis columns = adjoint ? adjoint_axis(pooling.columns) : forward_axis(pooling.columns);
  if constexpr (!has_argmax(op)) {
    const bool include = divisor.count_include_pad;
    set_extents(rows, pooling.rows, divisor.override, include, adjoint);
    set_extents(columns, pooling.columns, divisor.override != 0, include, adjoint);
  }
  bool done = true;
  dispatch_float(source.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = [&](auto index) {
      const auto places = argmax.template as<decltype(index)>();
      using J = std::remove_pointer_t<decltype(places.data)>;
      const Pool<op, T, J> pool{std::move(rows), std::move(columns), even_windows(pooling),
                                pooling.pitch(), pooling.images,     pooling.channels,
                                source.as<T>(),  target.as<T>(),     places};
      if constexpr (op == Op::max_adjoint) {
        done = pool.run_adjoint();
      } else {
        pool.run();
      }
    };
    if constexpr (has_argmax(op)) {
      dispatch_argmax(argmax.dtype, run);
    } else {
      run(uint8_t{});
    }
  });
  return done;
}

// Calls f(T{}, the map that argmax picks), for tensors like x.
template <typename Windows, typename F>
void argmax_map(const Pooling2d<Windows>& pooling, const Input& x, const Input& argmax, F&& f) {
  dispatch_float(x.dtype, [&](auto zero) {
    dispatch_argmax(argmax.dtype, [&](auto index) {
      using J = decltype(index);
      f(zero, ArgmaxMap<decltype(zero), J>{{pooling.rows, pooling.rows.most_taps()},
                                           {pooling.columns, pooling.pitch()},
                                           pooling.columns.spacing(),
                                           pooling.images,
                                           pooling.channels,
                                           argmax.as<J>()});
    });
  });
}

}  // namespace

template <typename Windows>
void max_pool2d(const Pooling2d<Windows>& pooling, const Input& x, const Output& y,
                const Output& argmax) {
  pool<Op::max>(pooling, x, y, argmax);
}

template <typename Windows>
void max_pool2d_gather(const Pooling2d<Windows>& pooling, const Input& x, const Input& argmax,
                       const Output& y) {
  argmax_map(pooling, x, argmax, [&](auto zero, const auto& map) {
    using T = decltype(zero);
    map.gather(x.as<T>(), y.as<T>());
  });
}

template <typename Windows>
void max_pool2d_scatter(const Pooling2d<Windows>& pooling, const Input& g, const Input& argmax,
                        const Output& dx) {
  // Comparing costs each window all of its taps, over all lanes; scattering costs it one number.
  constexpr int64_t few = 2 * kLanes<float>;
  if (pooling.taps() <= few && pool<Op::max_adjoint>(pooling, g, dx, argmax)) return;
  argmax_map(pooling, g, argmax, [&](auto zero, const auto& map) {
    using T = decltype(zero);
    map.scatter(g.as<T>(), dx.as<T>());
  });
}

template <typename Windows>
void max_pool2d_indices(const Pooling2d<Windows>& pooling, const Input& argmax,
                        const Output& indices) {
  const Windows &rows = pooling.rows, &columns = pooling.columns;
  const int64_t images = pooling.images, channels = pooling.channels;
  const auto pitch = static_cast<uint32_t>(pooling.pitch());
  const auto to = indices.as<int64_t>();
  dispatch_argmax(argmax.dtype, [&](auto index) {
    const auto from = argmax.as<decltype(index)>();
    const int64_t grain = std::max<int64_t>(1, 16384 / (channels * columns.outputs));
    parallel_for(0, images * rows.outputs, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t h = task % rows.outputs, top = rows.origin(h);
        for (int64_t c = 0; c < channels; ++c) {
          const auto taps = plane(from, task / rows.outputs, c);
          const auto places = plane(to, task / rows.outputs, c);
          for (int64_t w = 0; w < columns.outputs; ++w) {
            const auto tap = static_cast<uint32_t>(*taps.at(h, w));
            const int64_t down = tap / pitch * rows.dilation;
            const int64_t across = tap % pitch * columns.dilation;
            *places.at(h, w) = (top + down) * columns.inputs + columns.origin(w) + across;
          }
        }
      }
    });
  });
}

template <typename Windows>
void avg_pool2d(const Pooling2d<Windows>& pooling, const Divisor& divisor, const Input& x,
                const Output& y) {
  pool<Op::average>(pooling, x, y, Input{}, divisor);
}

template <typename Windows>
void avg_pool2d_adjoint(const Pooling2d<Windows>& pooling, const Divisor& divisor, const Input& g,
                        const Output& dx) {
  pool<Op::average_adjoint>(pooling, g, dx, Input{}, divisor);
}

D2LOPS_INSTANTIATE_POOLING(SlidingWindows)
D2LOPS_INSTANTIATE_POOLING(AdaptiveWindows)

}  // namespace d2lops
