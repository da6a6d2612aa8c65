// Pooling (D2L 7.5): the maximum or the average of each window, and the adjoints.
// csrc/cuda/pool2d.cuh has what happens at a target, csrc/common/window.h has the windows.
//
// Tiling: what a window sees is found once and used for several channels: a packet of 16 bytes
// where they lie side by side, else four that are apart. Lanes follow the memory: channels first,
// or columns. Windows of 2x2 and 3x3, the usual ones, are compiled for their sizes: no division, no
// loop, all loads in flight at once; overlapping windows share the first-level cache. Large windows
// that lie apart, or are few, are split among a team of threads.
//
// Bytes: each input and output once, and one for the argmax. Arithmetic: 4 instructions a tap and
// element for max, 2 for the rest, and two or three hundred to find a target. Memory limits all but
// 3x3 windows that are one apart.
#include <algorithm>
#include <type_traits>

#include "common/integer.h"
#include "cuda/launch.h"
#include "cuda/pool2d.cuh"
#include "operators.h"

namespace d2lops {
namespace {

unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(count, per_block));
}

// Calls f(kernel, stride) with what is known of the windows as constants; (0, 0) is nothing.
template <typename F>
void dispatch_known(const SlidingWindows& rows, const SlidingWindows& columns, F&& f) {
  const auto are = [&](auto kernel, auto stride) {
    const auto is = [&](const SlidingWindows& windows) {
      return windows.kernel == kernel && windows.stride == stride && windows.dilation == 1;
    };
    return is(rows) && is(columns);
  };
  constexpr auto zero = std::integral_constant<int, 0>{};
  constexpr auto one = std::integral_constant<int, 1>{};
  constexpr auto two = std::integral_constant<int, 2>{};
  constexpr auto three = std::integral_constant<int, 3>{};
  if (are(two, two)) return f(two, two);
  if (are(three, two)) return f(three, two);
  if (are(three, one)) return f(three, one);
  f(zero, zero);
}
template <typename F>
void dispatch_known(const AdaptiveWindows&, const AdaptiveWindows&, F&& f) {
  constexpr auto zero = std::integral_constant<int, 0>{};
  f(zero, zero);
}

// The threads that share a target's window, a power of two; 1 is no team. What is small and what is
// large does not depend on the GPU, so that sums do not.
template <typename Windows>
int team_size(const Pooling2d<Windows>& pooling, const TargetGrid& grid) {
  constexpr int64_t enough_threads = 1 << 17;
  const int64_t taps = std::min(pooling.rows.most_taps(), pooling.rows.inputs) *
                       std::min(pooling.columns.most_taps(), pooling.columns.inputs);
  const int64_t apart = pooling.columns.inputs / std::max<int64_t>(1, pooling.columns.outputs);
  const bool lanes_are_far_apart = !grid.channels_inside && apart >= 8;
  if (taps < 32 || (grid.count >= enough_threads && !lanes_are_far_apart)) return 1;
  const int most = grid.channels_inside ? kThreads / 4 : kThreads;
  int members = 1;
  while (members < most && 8 * members <= taps) members *= 2;
  return members;
}

const char* name_of(Op op) {
  switch (op) {
    case Op::max:
      return "max_pool2d";
    case Op::average:
      return "avg_pool2d";
    case Op::average_adjoint:
      return "avg_pool2d_adjoint";
    default:
      return "max_pool2d_scatter";
  }
}

// Images whose channels follow those of the one before are one image of many channels.
template <typename... Operands>
void merge_images(int64_t& images, int64_t& channels, const Operands&... operands) {
  if (((operands.data && operands.n != channels * operands.c) || ...)) return;
  channels *= images;
  images = 1;
}

template <bool side_by_side, Op op, typename T, typename J, typename Windows>
void launch_pool(const Pooling2d<Windows>& pooling, const Divisor& divisor,
                 const Operand<const T>& source, const Operand<T>& target,
                 const Operand<J>& argmax) {
  using Pool = Pool<op, T, J, side_by_side, Windows>;
  int64_t images = pooling.images, channels = pooling.channels;
  if (!side_by_side) merge_images(images, channels, source, target, argmax);
  const int64_t apart = ceil_div(channels, Pool::kChannels);
  const int64_t rows = kIsAdjoint<op> ? pooling.rows.inputs : pooling.rows.outputs;
  const int64_t columns = kIsAdjoint<op> ? pooling.columns.inputs : pooling.columns.outputs;
  const TargetGrid grid{images * apart * rows * columns, target.c == 1, Divider(apart),
                        Divider(rows), Divider(columns)};
  const Pool pool{pooling.rows, pooling.columns, pooling.pitch(), divisor, source,
                  target,       argmax,          channels,        apart,   grid};
  if constexpr (!kIsAdjoint<op>) {
    const int members = team_size(pooling, grid);
    if (members > 1) {
      const size_t shared = sizeof(typename Pool::States) * kThreads;
      launch(name_of(op), pool_by_team<op, T, J, side_by_side, Windows>,
             blocks_for(grid.count, kThreads / members), kThreads, shared, pool, members);
      return;
    }
  }
  const auto launch_known = [&](auto kernel, auto stride) {
    launch(name_of(op), pool_by_thread<kernel(), stride(), op, T, J, side_by_side, Windows>,
           blocks_for(grid.count, kThreads), kThreads, 0, pool);
  };
  if constexpr (sizeof(J) == 1) {
    dispatch_known(pooling.rows, pooling.columns, launch_known);
  } else {  // small windows do not need more than a byte
    launch_known(std::integral_constant<int, 0>{}, std::integral_constant<int, 0>{});
  }
}

// The same operand with its strides in packets of N channels.
template <int N, typename T>
Operand<T> in_packets(const Operand<T>& x) {
  return {{x.n / N, 1, x.h / N, x.w / N}, x.data};
}

// `argmax` is for max (Output) and its adjoint (Input) alone.
template <Op op, typename Windows, typename Argmax>
void pool(const Pooling2d<Windows>& pooling, const Input& source, const Output& target,
          const Argmax& argmax, const Divisor& divisor = {}) {
  dispatch_float(source.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Operand<const T> from = source.as<T>();
    const Operand<T> to = target.as<T>();
    const auto run = [&](auto index) {
      const auto places = argmax.template as<decltype(index)>();
      const auto fits = [&](const auto& x) {
        return fits_packets<kPacket<T>>(x, pooling.channels);
      };
      if (fits(from) && fits(to) && (!kHasArgmax<op> || fits(places))) {
        constexpr int N = kPacket<T>;
        launch_pool<true, op>(pooling, divisor, in_packets<N>(from), in_packets<N>(to),
                              in_packets<N>(places));
      } else {
        launch_pool<false, op>(pooling, divisor, from, to, places);
      }
    };
    if constexpr (kHasArgmax<op>) {
      dispatch_argmax(argmax.dtype, run);
    } else {
      run(uint8_t{});
    }
  });
}

// Where an output has its maximum, along each axis; that may be outside of the input.
template <typename Windows>
struct Places {
  Windows rows, columns;
  int64_t pitch;
  TargetGrid grid;

  __device__ __forceinline__ int64_t row(const Target& at, uint32_t tap) const {
    return rows.origin(at.h) + tap / static_cast<uint32_t>(pitch) * rows.dilation;
  }
  __device__ __forceinline__ int64_t column(const Target& at, uint32_t tap) const {
    return columns.origin(at.w) + tap % static_cast<uint32_t>(pitch) * columns.dilation;
  }
};

template <typename T>
__device__ __forceinline__ T* at(const Operand<T>& x, const Target& t) {
  return x.data + t.n * x.n + t.c * x.c + t.h * x.h + t.w * x.w;
}

template <typename T, typename J, typename Windows>
__global__ void __launch_bounds__(kThreads)
    gather(const __grid_constant__ Places<Windows> places, Operand<const T> x,
           Operand<const J> argmax, Operand<T> y) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= places.grid.count) return;
  const Target target = places.grid.at(index);
  const auto tap = static_cast<uint32_t>(*at(argmax, target));
  const int64_t h = places.row(target, tap), w = places.column(target, tap);
  const bool inside = tap < places.rows.most_taps() * places.pitch && h >= 0 &&
                      h < places.rows.inputs && w >= 0 && w < places.columns.inputs;
  *at(y, target) = inside ? *at(x, Target{target.n, target.c, h, w}) : T{};
}

template <typename J, typename Windows>
__global__ void __launch_bounds__(kThreads) indices(const __grid_constant__ Places<Windows> places,
                                                    Operand<const J> argmax, Operand<int64_t> y) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= places.grid.count) return;
  const Target target = places.grid.at(index);
  const auto tap = static_cast<uint32_t>(*at(argmax, target));
  *at(y, target) = places.row(target, tap) * places.columns.inputs + places.column(target, tap);
}

// Threads have the outputs of y.
template <typename Windows>
Places<Windows> places_of(const Pooling2d<Windows>& pooling, const Strides& y) {
  const int64_t rows = pooling.rows.outputs, columns = pooling.columns.outputs;
  return {pooling.rows, pooling.columns, pooling.pitch(),
          TargetGrid{pooling.images * pooling.channels * rows * columns, y.c == 1,
                     Divider(pooling.channels), Divider(rows), Divider(columns)}};
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
  const auto places = places_of(pooling, y);
  dispatch_float(x.dtype, [&](auto zero) {
    dispatch_argmax(argmax.dtype, [&](auto index) {
      using T = decltype(zero);
      using J = decltype(index);
      launch("max_pool2d_gather", gather<T, J, Windows>, blocks_for(places.grid.count, kThreads),
             kThreads, 0, places, x.as<T>(), argmax.as<J>(), y.as<T>());
    });
  });
}

template <typename Windows>
void max_pool2d_scatter(const Pooling2d<Windows>& pooling, const Input& g, const Input& argmax,
                        const Output& dx) {
  pool<Op::max_adjoint>(pooling, g, dx, argmax);
}

template <typename Windows>
void max_pool2d_indices(const Pooling2d<Windows>& pooling, const Input& argmax, const Output& y) {
  const auto places = places_of(pooling, y);
  dispatch_argmax(argmax.dtype, [&](auto index) {
    using J = decltype(index);
    launch("max_pool2d_indices", indices<J, Windows>, blocks_for(places.grid.count, kThreads),
           kThreads, 0, places, argmax.as<J>(), y.as<int64_t>());
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
