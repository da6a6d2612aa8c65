// Pooling, pixel by pixel: a target pixel asks for its sources and is written once, from registers,
// in a fixed order, by one thread. The adjoint's targets are inputs, and their sources the outputs
// whose windows cover them.
//
//   max              y[o] = max x[i],  argmax[o] = the tap of i in o  (first of equals, last NaN)
//   average          y[o] = (sum of x[i]) / extent[o]
//   average_adjoint  x[i] = sum of g[o] / extent[o]
//   max_adjoint      x[i] = sum of g[o] where argmax[o] is the tap of i in o
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/operand.h"
#include "common/window.h"
#include "cpu/simd.h"

namespace d2lops {

enum class Op { max, average, average_adjoint, max_adjoint };

constexpr bool is_adjoint(Op op) { return op == Op::average_adjoint || op == Op::max_adjoint; }
constexpr bool has_argmax(Op op) { return op == Op::max || op == Op::max_adjoint; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The sources of each target along one axis: first, first + step, ... of them. The tap between a
// target and one of its sources is target.tap + advance[source].
struct Axis {
  struct Target {
    int64_t first, count, tap;
    double extent;  // averages only: what the target is divided by; 0 if that varies over sources
  };
  std::vector<Target> targets;
  std::vector<int64_t> advance;
  std::vector<double> extent;  // of each window, the adjoint's source
  int64_t step = 1;

  Axis(int64_t target_count, int64_t source_count) : advance(source_count) {
    targets.reserve(target_count);
  }

  template <typename Tap>
  void add(Span sources, Tap&& tap) {
    const int64_t base = sources.count > 0 ? tap(sources.first) - advance[sources.first] : 0;
    targets.push_back({sources.first, sources.count, base, 0});
    step = sources.step;
  }
};

// Targets are the outputs.
template <typename Windows>
inline Axis forward_axis(const Windows& windows) {
  Axis axis(windows.outputs, windows.inputs);
  for (int64_t i = 0; i < windows.inputs; ++i) axis.advance[i] = i / windows.dilation;
  for (int64_t o = 0; o < windows.outputs; ++o) {
    axis.add(windows.inputs_of(o), [&](int64_t i) { return windows.tap(i, o); });
  }
  return axis;
}

// Targets are the inputs.
template <typename Windows>
inline Axis adjoint_axis(const Windows& windows) {
  Axis axis(windows.inputs, windows.outputs);
  for (int64_t o = 0; o < windows.outputs; ++o) {
    axis.advance[o] = -floor_div(windows.origin(o), windows.dilation);
  }
  for (int64_t i = 0; i < windows.inputs; ++i) {
    axis.add(windows.outputs_of(i), [&](int64_t o) { return windows.tap(i, o); });
  }
  return axis;
}

// Pixels (h, w) of one image, or of a part of it that begins at (h0, w0). A pixel's channels lie
// side by side.
template <typename T>
struct Image {
  T* data;
  int64_t row, column;
  int64_t h0 = 0, w0 = 0;

  T* at(int64_t h, int64_t w) const { return data + (h - h0) * row + (w - w0) * column; }
};

template <typename T>
inline Image<T> plane(const Operand<T>& x, int64_t image, int64_t channel) {
  return {x.data + image * x.n + channel * x.c, x.h, x.w};
}

// V is a vector of numbers or one number, Index<V> as many integers.
template <typename V>
struct IndexOf {
  using Element = std::remove_reference_t<decltype(V{}[0])>;
  using type =
      Vec<std::conditional_t<sizeof(Element) == 8, int64_t, int32_t>, sizeof(V) / sizeof(Element)>;
};
template <>
struct IndexOf<float> {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <typename V>
using Index = typename IndexOf<V>::type;

// Lanes of V or of Index<V>, from or to memory of another type.
template <typename V, typename T>
inline V load_lanes(const T* p) {
  if constexpr (std::is_integral_v<T> && std::is_integral_v<V>) {
    return *p;
  } else if constexpr (std::is_integral_v<T>) {
    using Element = std::remove_reference_t<decltype(V{}[0])>;
    return convert<Element>(load_bytes<Vec<T, sizeof(V) / sizeof(Element)>>(p));
  } else if constexpr (std::is_arithmetic_v<V>) {
    return load1<V>(p);
  } else {
    return load<Accumulator<T>>(p);
  }
}
template <typename V, typename T>
inline void store_lanes(T* p, V value) {
  if constexpr (std::is_integral_v<T> && std::is_integral_v<V>) {
    *p = static_cast<T>(value);
  } else if constexpr (std::is_integral_v<T>) {
    const auto narrow = convert<T>(value);
    std::memcpy(p, &narrow, sizeof(narrow));
  } else if constexpr (std::is_arithmetic_v<V>) {
    store1(p, value);
  } else {
    store(p, value);
  }
}

// The tap between two positions of one axis.
inline int64_t tap(const Axis& axis, const Axis::Target& target, int64_t source) {
  return target.tap + axis.advance[source];
}

// S is what values are in memory, K what an argmax is. `pitch` is the number of taps from one row
// of a window to the next.
template <Op op, typename S, typename K>
struct Pooling {
  using A = Accumulator<S>;
  const Axis& rows;
  const Axis& columns;
  int64_t pitch;
  Image<const S> source;
  Image<S> target;
  Image<K> argmax;  // of outputs, whether these are targets or sources

  // A part of the targets, the lanes of V being channels.
  template <typename V>
  void run(Range h, Range w, int64_t channels) const {
    for (int64_t row = h.begin; row < h.end; ++row) {
      if (row > h.begin && repeats(row, channels)) {
        std::copy_n(target.at(row - 1, w.begin), w.size() * channels, target.at(row, w.begin));
        continue;
      }
      for (int64_t column = w.begin; column < w.end; ++column) {
        pixel<V>(row, column, channels);
      }
    }
  }

  // A part of the targets of one plane, the lanes being neighbours in a row of the window.
  void run_along_rows(Range h, Range w) const {
    for (int64_t row = h.begin; row < h.end; ++row) {
      for (int64_t column = w.begin; column < w.end; ++column) pixel_along_rows(row, column);
    }
  }

  // Whether a window's rows follow each other in memory, and in the order of their taps.
  bool one_run(const Axis::Target& column) const {
    return rows.step == 1 && source.column == 1 && column.count == source.row &&
           (op == Op::average || column.count == pitch);
  }

  // The last vector of a pixel overlaps the one before it, where the channels are no multiple.
  template <typename V>
  void pixel(int64_t h, int64_t w, int64_t channels) const {
    constexpr int64_t lanes = sizeof(V) / sizeof(A);
    constexpr int many = std::is_arithmetic_v<V> ? 1 : 4;
    int64_t c = 0;
    for (; c + many * lanes <= channels; c += many * lanes) vectors<V, many>(h, w, c);
    for (; c + lanes <= channels; c += lanes) vectors<V, 1>(h, w, c);
    if (c < channels) vectors<V, 1>(h, w, channels - lanes);
  }

 private:
  // What a target has seen of its sources.
  template <typename V>
  struct State {
    using I = Index<V>;
    V total{};
    I where{};

    static State begin(int64_t first_tap) {
      if constexpr (op != Op::max) return {};
      return {V{} - std::numeric_limits<A>::infinity(), I{} + static_cast<Index<A>>(first_tap)};
    }

    void take(V x, I tap) {
      if constexpr (op == Op::max) {
        where = x > total ? tap : where;
        total = x > total ? x : total;
        where = x != x ? tap : where;
        total = x != x ? x : total;
      } else {
        total += x;
      }
    }

    // What others have seen, in whichever order.
    void merge(const State& other) {
      if constexpr (op == Op::max) {
        const V x = other.total;
        const I tap = other.where;
        const auto wins = (x > total) | ((x == total) & (tap < where)) |
                          ((x != x) & ((total == total) | (tap > where)));
        total = wins ? x : total;
        where = wins ? tap : where;
      } else {
        total += other.total;
      }
    }
  };

  // All lanes in one: the upper half is merged with the lower one until a single lane is left.
  template <int N>
  static State<A> merged(const State<Vec<A, N>>& state) {
    if constexpr (N == 2) {
      State<A> all{state.total[0], state.where[0]};
      all.merge({state.total[1], state.where[1]});
      return all;
    } else {
      return merged_halves<N / 2>(state, std::make_integer_sequence<int, N / 2>{});
    }
  }
  template <int N, int... I>
  static State<A> merged_halves(const State<Vec<A, 2 * N>>& state,
                                std::integer_sequence<int, I...>) {
    State<Vec<A, N>> low{__builtin_shufflevector(state.total, state.total, I...),
                         __builtin_shufflevector(state.where, state.where, I...)};
    low.merge({__builtin_shufflevector(state.total, state.total, (N + I)...),
               __builtin_shufflevector(state.where, state.where, (N + I)...)});
    return merged<N>(low);
  }

  int64_t first_tap(const Axis::Target& row, const Axis::Target& column) const {
    if (row.count == 0 || column.count == 0) return 0;
    return tap(rows, row, row.first) * pitch + tap(columns, column, column.first);
  }

  // Whether a row of the adjoint is the same as the one above.
  bool repeats(int64_t h, int64_t channels) const {
    const Axis::Target &row = rows.targets[h], &above = rows.targets[h - 1];
    return op == Op::average_adjoint && row.first == above.first && row.count == above.count &&
           target.column == channels;
  }

  // Target (h, w), the lanes being neighbours in a row of the window.
  void pixel_along_rows(int64_t h, int64_t w) const {
    using V = Vec<A>;
    using I = Index<V>;
    constexpr int lanes = kLanes<A>;
    const Axis::Target& row = rows.targets[h];
    const Axis::Target& column = columns.targets[w];
    int64_t height = row.count, width = column.count;
    if (one_run(column)) {
      width *= height;
      height = 1;
    }
    constexpr int many = 4;  // chains of dependent operations
    State<V> states[many];
    for (auto& state : states) state = State<V>::begin(first_tap(row, column));
    I lane;
    for (int64_t l = 0; l < lanes; ++l) lane[l] = static_cast<Index<A>>(l);
    for (int64_t i = 0, sh = row.first; i < height; ++i, sh += rows.step) {
      const S* from = source.at(sh, column.first);
      const int64_t first = tap(rows, row, sh) * pitch + tap(columns, column, column.first);
      const auto take = [&](int state, int64_t j) {
        states[state].take(load_lanes<V>(from + j), lane + static_cast<Index<A>>(first + j));
      };
      int64_t j = 0;
      for (; j + many * lanes <= width; j += many * lanes) {
        prefetch_ahead<many * lanes * sizeof(S)>(from + j);
        for (int state = 0; state < many; ++state) take(state, j + state * lanes);
      }
      for (; j + lanes <= width; j += lanes) take(0, j);
      if (j < width) {  // the last vector, of which some has been taken already
        const V x = load_lanes<V>(from + width - lanes);
        const I seen = lane < static_cast<Index<A>>(lanes - (width - j));
        states[1].take(op == Op::average ? (seen ? V{} : x) : x,
                       lane + static_cast<Index<A>>(first + width - lanes));
      }
    }
    states[0].merge(states[1]);
    states[2].merge(states[3]);
    states[0].merge(states[2]);
    finish(row, column, h, w, 0, merged<lanes>(states[0]));
  }

  // Channels c ... c + B * (lanes of V) - 1 of target pixel (h, w).
  template <typename V, int B>
  void vectors(int64_t h, int64_t w, int64_t c) const {
    constexpr int64_t lanes = sizeof(V) / sizeof(A);
    const Axis::Target& row = rows.targets[h];
    const Axis::Target& column = columns.targets[w];
    State<V> states[B];
    for (auto& state : states) state = State<V>::begin(first_tap(row, column));
    [[maybe_unused]] const bool varies = row.extent == 0 || column.extent == 0;
    for (int64_t i = 0, sh = row.first; i < row.count; ++i, sh += rows.step) {
      State<V> part[B] = {};  // averages: sums of sums have smaller rounding errors
      State<V>* const seen = op == Op::average ? part : states;
      for (int64_t j = 0, sw = column.first; j < column.count; ++j, sw += columns.step) {
        const S* from = source.at(sh, sw) + c;
        Index<V> here{};
        if constexpr (has_argmax(op)) {
          const int64_t number = tap(rows, row, sh) * pitch + tap(columns, column, sw);
          here += static_cast<Index<A>>(number);
        }
        for (int b = 0; b < B; ++b) {
          V x = load_lanes<V>(from + b * lanes);
          if constexpr (op == Op::average_adjoint) {
            if (varies) x /= static_cast<A>(rows.extent[sh] * columns.extent[sw]);
          }
          if constexpr (op == Op::max_adjoint) {
            const auto picked = load_lanes<Index<V>>(argmax.at(sh, sw) + c + b * lanes);
            x = picked == here ? x : V{};
          }
          seen[b].take(x, here);
        }
      }
      if constexpr (op == Op::average) {
        for (int b = 0; b < B; ++b) states[b].merge(part[b]);
      }
    }
    for (int b = 0; b < B; ++b) finish(row, column, h, w, c + b * lanes, states[b]);
  }

  template <typename V>
  void finish(const Axis::Target& row, const Axis::Target& column, int64_t h, int64_t w, int64_t c,
              const State<V>& state) const {
    V total = state.total;
    if constexpr (!has_argmax(op)) {
      const double extent = row.extent * column.extent;
      if (extent != 0) total /= static_cast<A>(extent);
    }
    store_lanes(target.at(h, w) + c, total);
    if constexpr (op == Op::max) store_lanes(argmax.at(h, w) + c, state.where);
  }
};

}  // namespace d2lops
