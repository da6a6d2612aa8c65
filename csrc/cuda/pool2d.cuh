// Pooling, target by target: a thread, or some of a block's threads together, ask for the sources
// of a target, which is written once. The adjoint's targets are inputs, and their sources the
// outputs whose windows cover them: so it needs no atomics.
//
//   max              y[o] = max x[i],  argmax[o] = the tap of i in o  (first of equals, last NaN)
//   average          y[o] = (sum of x[i]) / area[o]
//   average_adjoint  x[i] = sum of g[o] / area[o]
//   max_adjoint      x[i] = sum of g[o] where argmax[o] is the tap of i in o
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/geometry.h"
#include "common/operand.h"
#include "common/window.h"
#include "cuda/device.h"
#include "cuda/index.h"

namespace d2lops {

enum class Op { max, average, average_adjoint, max_adjoint };

template <Op op>
constexpr bool kIsAdjoint = op == Op::average_adjoint || op == Op::max_adjoint;
template <Op op>
constexpr bool kHasArgmax = op == Op::max || op == Op::max_adjoint;

template <typename A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// Which threads have which targets: in the order of their memory.
struct Target {
  int64_t n, c, h, w;  // c is the thread's first channel, or the number of its packet
};
struct TargetGrid {
  int64_t count;  // of threads, or of teams
  bool channels_inside;
  Divider channels, rows, columns;

  __device__ __forceinline__ Target at(int64_t index) const {
    Target t;
    if (channels_inside) t.c = channels.split(index);
    t.w = columns.split(index);
    t.h = rows.split(index);
    if (!channels_inside) t.c = channels.split(index);
    t.n = index;
    return t;
  }
};

// What a target has seen of its sources.
template <Op op, typename A>
struct State {
  A total;
  int32_t where;

  static __device__ __forceinline__ State begin(int64_t first_tap) {
    return {op == Op::max ? -kInfinity<A> : A{0}, static_cast<int32_t>(first_tap)};
  }

  __device__ __forceinline__ void take(A x, int64_t tap) {
    if constexpr (op == Op::max) {
      if (x > total || x != x) {
        total = x;
        where = static_cast<int32_t>(tap);
      }
    } else {
      total += x;
    }
  }

  // What others have seen, in whichever order.
  __device__ __forceinline__ void merge(const State& other) {
    if constexpr (op == Op::max) {
      const A x = other.total;
      const bool is_earlier = x == total && other.where < where;
      const bool is_nan = x != x && (total == total || other.where > where);
      if (x > total || is_earlier || is_nan) *this = other;
    } else {
      total += other.total;
    }
  }
};

template <typename State, int n>
__device__ __forceinline__ void fill(State (&states)[n], const State& with) {
#pragma unroll
  for (State& state : states) state = with;
}
template <typename State, int n>
__device__ __forceinline__ void merge(State (&states)[n], const State (&others)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) states[i].merge(others[i]);
}

// The same windows, with what is known of them when a kernel is compiled: K > 0 says that they are
// K wide, S apart and not dilated. Divisions by known numbers are none.
template <int K, int S>
__device__ __forceinline__ SlidingWindows known(SlidingWindows windows) {
  if constexpr (K > 0) {
    windows.kernel = K;
    windows.stride = S;
    windows.dilation = 1;
  }
  return windows;
}
template <int K, int S>
__device__ __forceinline__ AdaptiveWindows known(AdaptiveWindows windows) {
  return windows;
}

// Asks windows without dilation, which most are, apart: division by it takes longest.
template <typename F>
__device__ __forceinline__ auto ask(const SlidingWindows& windows, F&& f) {
  if (windows.dilation != 1) return f(windows);
  SlidingWindows plain = windows;
  plain.dilation = 1;
  return f(plain);
}
template <typename F>
__device__ __forceinline__ auto ask(const AdaptiveWindows& windows, F&& f) {
  return f(windows);
}

// The sources of a target along one axis.
template <Op op, typename Windows>
class Sources {
 public:
  __device__ __forceinline__ Sources(const Windows& windows, int64_t target)
      : windows_(windows), target_(target), span_(ask(windows, [target](const auto& w) {
          return kIsAdjoint<op> ? w.outputs_of(target) : w.inputs_of(target);
        })) {
    if (!kIsAdjoint<op>) first_tap_ = span_.count > 0 ? tap_between(span_.first, target) : 0;
  }

  __device__ __forceinline__ int64_t count() const { return span_.count; }
  __device__ __forceinline__ int64_t at(int64_t i) const { return span_.first + i * span_.step; }
  __device__ __forceinline__ int64_t first_tap() const { return first_tap_; }
  __device__ __forceinline__ int64_t tap(int64_t i) const {
    return kIsAdjoint<op> ? tap_between(target_, at(i)) : first_tap_ + i;
  }

 private:
  __device__ __forceinline__ int64_t tap_between(int64_t input, int64_t output) const {
    return windows_.tap(input, output);
  }

  const Windows& windows_;
  int64_t target_;
  Span span_;
  int64_t first_tap_ = 0;
};

// The first tap of a window that is in the input; 0 if there is none.
template <Op op, typename Windows>
__device__ __forceinline__ int64_t first_tap(const Sources<op, Windows>& down,
                                             const Sources<op, Windows>& across, int64_t pitch) {
  if (down.count() == 0 || across.count() == 0) return 0;
  return down.first_tap() * pitch + across.first_tap();
}

// One call. What windows see is the same in every channel, so a thread has a target in kChannels of
// them: a packet of 16 bytes that lie side by side (then strides are in packets), or else some that
// are `apart`.
template <Op op, typename T, typename J, bool side_by_side, typename Windows>
struct Pool {
  using A = Accumulator<T>;
  using Index = std::remove_const_t<J>;
  static constexpr int kChannels = side_by_side ? kPacket<T> : sizeof(T) == 8 ? 2 : 4;
  template <typename E>
  using Channels = Packet<E, kChannels>;
  using States = State<op, A>[kChannels];

  Windows rows, columns;
  int64_t pitch;
  Divisor divisor;
  Operand<const T> source;
  Operand<T> target;
  Operand<J> argmax;  // of outputs, whether these are targets or sources
  int64_t channels, apart;
  TargetGrid grid;

  // A source, and what its argmax says if the target is an input.
  struct Seen {
    Channels<T> x;
    Channels<Index> picked;
  };
  // What changes nothing.
  static __device__ __forceinline__ Seen nothing() {
    Seen seen{};
    for (T& x : seen.x.at) x = narrow<T>(op == Op::max ? -kInfinity<A> : A{0});
    return seen;
  }
  __device__ __forceinline__ Seen read(const Target& at, int64_t h, int64_t w) const {
    Seen seen{};
    read(source, at, h, w, seen.x);
    if constexpr (op == Op::max_adjoint) read(argmax, at, h, w, seen.picked);
    return seen;
  }

  // `weight` is for the adjoint of the average.
  static __device__ __forceinline__ void take(States& states, const Seen& seen, int64_t tap,
                                              A weight) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      A x = widen(seen.x.at[c]);
      if (op == Op::average_adjoint) x *= weight;
      if (op == Op::max_adjoint && seen.picked.at[c] != static_cast<int32_t>(tap)) x = 0;
      states[c].take(x, tap);
    }
  }

  __device__ __forceinline__ void write(const Target& at, const States& states) const {
    const A divide_by = op == Op::average ? area(at.h, at.w) : A{1};
    Channels<T> totals;
    Channels<Index> places;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const A total = states[c].total;
      totals.at[c] = narrow<T>(op == Op::average ? total / divide_by : total);
      places.at[c] = static_cast<Index>(states[c].where);
    }
    write(target, at, totals);
    if constexpr (op == Op::max) write(argmax, at, places);
  }

  // Averages only: what an output is divided by.
  __device__ __forceinline__ A area(int64_t h, int64_t w) const {
    if (divisor.override != 0) return static_cast<A>(divisor.override);
    const bool include = divisor.count_include_pad;
    return static_cast<A>(rows.extent(h, include) * columns.extent(w, include));
  }

 private:
  template <typename E>
  __device__ __forceinline__ void read(const Operand<const E>& x, const Target& at, int64_t h,
                                       int64_t w, Channels<E>& channel) const {
    const int64_t place = at.n * x.n + h * x.h + w * x.w;
    if constexpr (side_by_side) {
      channel = reinterpret_cast<const Channels<E>*>(x.data)[place + at.c];
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int64_t number = at.c + c * apart;
        if (number < channels) channel.at[c] = x.data[place + number * x.c];
      }
    }
  }
  template <typename E>
  __device__ __forceinline__ void write(const Operand<E>& x, const Target& at,
                                        const Channels<E>& channel) const {
    const int64_t place = at.n * x.n + at.h * x.h + at.w * x.w;
    if constexpr (side_by_side) {
      reinterpret_cast<Channels<E>*>(x.data)[place + at.c] = channel;
    } else {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int64_t number = at.c + c * apart;
        if (number < channels) x.data[place + number * x.c] = channel.at[c];
      }
    }
  }
};

constexpr int kThreads = 256;

// A thread has a target. With K known, its sources are all asked for before the first one is
// needed. The sums of rows are summed, as errors are smaller then.
template <int K, int S, Op op, typename T, typename J, bool side_by_side, typename Windows>
__global__ void __launch_bounds__(kThreads)
    pool_by_thread(const __grid_constant__ Pool<op, T, J, side_by_side, Windows> pool) {
  using Pool = Pool<op, T, J, side_by_side, Windows>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= pool.grid.count) return;
  const Target at = pool.grid.at(index);
  const Windows rows = known<K, S>(pool.rows), columns = known<K, S>(pool.columns);
  const Sources<op, Windows> down(rows, at.h), across(columns, at.w);
  const auto none = State<op, Accumulator<T>>::begin(first_tap(down, across, pool.pitch));
  typename Pool::States states, row;
  fill(states, none);
  const auto take = [&](const typename Pool::Seen& seen, int64_t i, int64_t j) {
    using A = Accumulator<T>;
    const A weight = op == Op::average_adjoint ? 1 / pool.area(down.at(i), across.at(j)) : A{1};
    const int64_t tap = down.tap(i) * pool.pitch + across.tap(j);
    pool.take(op == Op::average ? row : states, seen, tap, weight);
  };
  if constexpr (K > 0) {
    constexpr int most = kIsAdjoint<op> ? (K + S - 1) / S : K;
    typename Pool::Seen seen[most][most];
#pragma unroll
    for (int i = 0; i < most; ++i) {
#pragma unroll
      for (int j = 0; j < most; ++j) {
        const bool exists = i < down.count() && j < across.count();
        seen[i][j] = exists ? pool.read(at, down.at(i), across.at(j)) : pool.nothing();
      }
    }
#pragma unroll
    for (int i = 0; i < most; ++i) {
      fill(row, none);
#pragma unroll
      for (int j = 0; j < most; ++j) take(seen[i][j], i, j);
      if (op == Op::average) merge(states, row);
    }
  } else {
    for (int64_t i = 0; i < down.count(); ++i) {
      fill(row, none);
#pragma unroll(kIsAdjoint<op> ? 1 : 2)
      for (int64_t j = 0; j < across.count(); ++j) {
        take(pool.read(at, down.at(i), across.at(j)), i, j);
      }
      if (op == Op::average) merge(states, row);
    }
  }
  pool.write(at, states);
}

// Some threads of a block have a target: for large windows. Member m takes sources m, m + members,
// ... in the order of their taps; then the members' states are merged, half and half.
template <Op op, typename T, typename J, bool side_by_side, typename Windows>
__global__ void __launch_bounds__(kThreads)
    pool_by_team(const __grid_constant__ Pool<op, T, J, side_by_side, Windows> pool, int members) {
  using Pool = Pool<op, T, J, side_by_side, Windows>;
  const int teams = kThreads / members, thread = threadIdx.x;
  // Lanes should be neighbours in memory: channels, or columns of a window.
  const int team = pool.grid.channels_inside ? thread % teams : thread / members;
  const int member = pool.grid.channels_inside ? thread / teams : thread % members;
  const int64_t index = int64_t{blockIdx.x} * teams + team;
  const bool exists = index < pool.grid.count;
  const Target at = pool.grid.at(exists ? index : 0);
  const Sources<op, Windows> down(pool.rows, at.h), across(pool.columns, at.w);
  typename Pool::States states;
  fill(states, State<op, Accumulator<T>>::begin(first_tap(down, across, pool.pitch)));

  const int64_t width = across.count(), all = exists ? down.count() * width : 0;
  if (member < all) {
    int64_t i = member / width, j = member % width;
    const int64_t rows_on = members / width, columns_on = members % width;
#pragma unroll 4
    for (int64_t taken = member; taken < all; taken += members) {
      const auto seen = pool.read(at, down.at(i), across.at(j));
      pool.take(states, seen, down.tap(i) * pool.pitch + across.tap(j), 1);
      i += rows_on;
      j += columns_on;
      if (j >= width) {
        ++i;
        j -= width;
      }
    }
  }

  auto& shared = shared_memory<State<op, Accumulator<T>>[Pool::kChannels][kThreads]>();
  const int slot = member * teams + team;
  for (int half = members / 2; half > 0; half /= 2) {
#pragma unroll
    for (int c = 0; c < Pool::kChannels; ++c) shared[c][slot] = states[c];
    __syncthreads();
    if (member < half) {
#pragma unroll
      for (int c = 0; c < Pool::kChannels; ++c) states[c].merge(shared[c][slot + half * teams]);
    }
    __syncthreads();
  }
  if (member == 0 && exists) pool.write(at, states);
}

}  // namespace d2lops
