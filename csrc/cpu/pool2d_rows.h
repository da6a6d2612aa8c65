// Pooling along the rows of a plane: the lanes of a vector are neighbouring targets. For windows that
// are evenly spaced, 1 or 2 columns apart, in the usual (N, C, H, W) order.
//
// Source rows are staged in a ring buffer in the first cache, once each: widened to the accumulator
// type, padded, and with even and odd columns apart where windows are 2 columns apart. Then each tap
// of all windows of a row is one run of the buffer, and edges are no special case. The adjoints do the
// same with the roles exchanged: even and odd targets have taps of their own, and are interleaved.
//
// The maximum is taken first; then the tap that equals it is looked for, from the last to the first:
// one comparison and one selection a tap. Windows with a NaN (a sum is NaN if one of its terms is) or
// with nothing above -inf, which padding is as well, are left to Pooling, one by one.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/window.h"
#include "cpu/pool2d.h"
#include "cpu/simd.h"

namespace d2lops {

// Taps along a row, for windows that begin at -padding, stride - padding, 2 stride - padding, ...
struct RowWindows {
  int64_t taps, stride, padding, dilation;
};

// Sources or targets are `stride` columns apart, the others are neighbours.
template <Op op, typename T, typename J, int SourceStride, int TargetStride>
class RowPooling {
  using A = Accumulator<T>;
  using V = Vec<A>;
  using I = Index<V>;
  using N = Index<A>;
  static constexpr int lanes = kLanes<A>;
  static constexpr A fill = op == Op::max ? -std::numeric_limits<A>::infinity() : A{0};

 public:
  RowPooling(const Axis& rows, const Axis& columns, const RowWindows& windows)
      : rows_(rows), targets_(columns.targets.size()), sources_(columns.advance.size()) {
    int64_t most = 0;
    for (int64_t tap = 0; tap < windows.taps; ++tap) {
      const int64_t place = tap * windows.dilation - windows.padding;
      if constexpr (is_adjoint(op)) {
        for (int64_t phase = 0; phase < TargetStride; ++phase) {
          if ((phase - place) % TargetStride != 0) continue;
          taps_[phase].push_back({0, (phase - place) / TargetStride, tap});
        }
      } else {
        const int64_t column = floor_div(place, SourceStride);
        taps_[0].push_back({place - column * SourceStride, column, tap});
      }
    }
    for (const auto& taps : taps_) {
      for (const Tap& tap : taps) {
        left_ = std::max(left_, -tap.column);
        most = std::max(most, tap.column);
      }
    }
    const int64_t read = whole_vectors(ceil_div(targets_, TargetStride)) + most;
    pitch_ = left_ + std::max(read, whole_vectors(ceil_div(sources_, SourceStride)));
    for (const Axis::Target& row : rows.targets) slots_ = std::max(slots_, reach(row, rows.step));
    staged_.resize(slots_);
    values_.assign(slots_ * SourceStride * pitch_, fill);
    if constexpr (op == Op::max_adjoint) argmax_.assign(slots_ * pitch_, -1);
    if constexpr (op == Op::average) {
      for (const Axis::Target& column : columns.targets) extents_.push_back(A(column.extent));
    }
    if constexpr (op == Op::average_adjoint) {
      for (double extent : columns.extent) extents_.push_back(A(extent));
    }
    extents_.resize(extents_.size() + lanes, 1);
  }

  // Whether the ring buffer is small enough.
  static bool suits(const Axis& rows, const Axis& columns) {
    int64_t most = 0;
    for (const Axis::Target& row : rows.targets) most = std::max(most, reach(row, rows.step));
    constexpr int64_t room = 256 * 1024 / sizeof(A);
    return most * (static_cast<int64_t>(columns.advance.size()) + 4 * lanes) <= room;
  }

  // Some target rows of a plane.
  void run(const Pooling<op, T, J>& plane, Range h) {
    std::fill(staged_.begin(), staged_.end(), -1);
    for (int64_t row = h.begin; row < h.end; ++row) {
      look_at(plane, rows_.targets[row]);
      for (int64_t i = 0; i < ceil_div(targets_, TargetStride); i += lanes) {
        const int64_t first = i * TargetStride;
        if constexpr (op == Op::max) {
          maximum(plane, row, first);
        } else {
          sum(plane, row, first);
        }
      }
    }
  }

 private:
  // Target column i * TargetStride + (its phase) sees source column (i + column) * SourceStride +
  // phase.
  struct Tap {
    int64_t phase, column, number;
  };

  // A tap in a row of the window, for target column 0.
  struct Seen {
    const A* values;
    const N* argmax;
    N tap;
  };

  const Axis& rows_;
  const int64_t targets_, sources_;
  std::vector<Tap> taps_[TargetStride];
  int64_t left_ = 0, pitch_ = 0, slots_ = 1;
  std::vector<int64_t> staged_;  // which row is in a slot
  std::vector<A> values_;        // [slot][phase][column]
  std::vector<N> argmax_;
  std::vector<A> extents_;
  std::vector<Seen> seen_[TargetStride];

  static int64_t whole_vectors(int64_t count) { return ceil_div(count, lanes) * lanes; }
  static int64_t reach(const Axis::Target& row, int64_t step) {
    return (row.count - 1) * step + 1;
  }

  // Loads what is left of a row from p on, up to a vector.
  static V load_rest(const T* p, int64_t left) {
    if (left >= lanes) return load<A>(p);
    V value = broadcast(fill);
    if (left > 0) {
      I lane;
      for (int l = 0; l < lanes; ++l) lane[l] = l;
      value = lane < static_cast<N>(left) ? load_first<A>(p, static_cast<int>(left)) : value;
    }
    return value;
  }
  static void store_rest(T* p, V value, int64_t left) {
    if (left >= lanes) {
      store(p, value);
    } else if (left > 0) {
      store_first(p, value, static_cast<int>(left));
    }
  }

  int64_t stage(const Pooling<op, T, J>& plane, int64_t h) {
    const int64_t slot = h % slots_;
    if (staged_[slot] == h) return slot;
    staged_[slot] = h;
    const T* from = plane.source.at(h, 0);
    A* to = values_.data() + slot * SourceStride * pitch_ + left_;
    for (int64_t i = 0; i < sources_; i += SourceStride * lanes) {
      prefetch_ahead<SourceStride * lanes * sizeof(T)>(from + i);
      V x = load_rest(from + i, sources_ - i);
      if constexpr (SourceStride == 2) {
        constexpr auto all = std::make_integer_sequence<int, lanes>{};
        const V next = load_rest(from + i + lanes, sources_ - i - lanes);
        store(to + i / 2 + pitch_, odd_lanes(x, next, all));
        x = even_lanes(x, next, all);
      }
      if constexpr (op == Op::average_adjoint) {
        x /= static_cast<A>(rows_.extent[h]) * load<A>(extents_.data() + i);
      }
      store(to + i / SourceStride, x);
    }
    if constexpr (op == Op::max_adjoint) {
      using Bytes = Vec<std::remove_const_t<J>, lanes>;
      const J* places = plane.argmax.at(h, 0);
      N* widened = argmax_.data() + slot * pitch_ + left_;
      for (int64_t i = 0; i < sources_; i += lanes) {
        const int left = static_cast<int>(std::min<int64_t>(lanes, sources_ - i));
        const auto place = load_first_bytes<Bytes>(places + i, left * int(sizeof(J)));
        store(widened + i, __builtin_convertvector(place, I));
      }
    }
    return slot;
  }

  void look_at(const Pooling<op, T, J>& plane, const Axis::Target& row) {
    for (auto& seen : seen_) seen.clear();
    for (int64_t i = 0, h = row.first; i < row.count; ++i, h += rows_.step) {
      const int64_t slot = stage(plane, h);
      const A* values = values_.data() + slot * SourceStride * pitch_ + left_;
      const N* argmax = argmax_.data() + (op == Op::max_adjoint ? slot * pitch_ + left_ : 0);
      const int64_t number = tap(rows_, row, h) * plane.pitch;
      for (int phase = 0; phase < TargetStride; ++phase) {
        for (const Tap& tap : taps_[phase]) {
          seen_[phase].push_back({values + tap.phase * pitch_ + tap.column,
                                  op == Op::max_adjoint ? argmax + tap.column : nullptr,
                                  static_cast<N>(number + tap.number)});
        }
      }
    }
  }

  // Targets (row, first), (row, first + 1), ...

  void maximum(const Pooling<op, T, J>& plane, int64_t row, int64_t first) const {
    const std::vector<Seen>& seen = seen_[0];
    V largest = broadcast(fill), sum{};
    for (const Seen& tap : seen) {
      const V x = load<A>(tap.values + first);
      largest = x > largest ? x : largest;
      sum += x;
    }
    I where{}, number = I{} + (seen.empty() ? 0 : seen.back().tap);
    for (size_t i = seen.size(); i-- > 0; number -= 1) {
      where = load<A>(seen[i].values + first) == largest ? number : where;
    }
    const int count = static_cast<int>(std::min<int64_t>(lanes, targets_ - first));
    store_rest(plane.target.at(row, first), largest, count);
    const auto narrow = __builtin_convertvector(where, Vec<std::remove_const_t<J>, lanes>);
    J* argmax = plane.argmax.at(row, first);
    if (count == lanes) {
      std::memcpy(argmax, &narrow, sizeof(narrow));
    } else {
      store_first_bytes(argmax, narrow, count * int(sizeof(J)));
    }
    if (any((sum != sum) | (largest == fill))) {
      for (int l = 0; l < count; ++l) plane.template pixel<A>(row, first + l, 1);
    }
  }

  V sum(int phase, int64_t i) const {
    V total{};
    for (const Seen& tap : seen_[phase]) {
      V x = load<A>(tap.values + i);
      if constexpr (op == Op::max_adjoint) {
        x = load_bytes<I>(tap.argmax + i) == tap.tap ? x : V{};
      }
      total += x;
    }
    return total;
  }

  void sum(const Pooling<op, T, J>& plane, int64_t row, int64_t first) const {
    T* to = plane.target.at(row, first);
    const int64_t left = targets_ - first;
    if constexpr (TargetStride == 1) {
      V total = sum(0, first);
      if constexpr (op == Op::average) {
        total /= static_cast<A>(rows_.targets[row].extent) * load<A>(extents_.data() + first);
      }
      store_rest(to, total, left);
    } else {
      constexpr auto all = std::make_integer_sequence<int, lanes>{};
      const V even = sum(0, first / 2), odd = sum(1, first / 2);
      store_rest(to, interleave_low(even, odd, all), left);
      store_rest(to + lanes, interleave_high(even, odd, all), left - lanes);
    }
  }
};

}  // namespace d2lops
