// Pooling of planes (N, C, H, W) by windows that are evenly spaced, 1 or 2 columns apart: the lanes
// of a vector are neighbouring targets, and each tap of all windows is one run of memory.
//
// A band of source rows is staged in the first cache: widened to the accumulator type, padded, and
// split by phase, i.e. by row and column modulo the stride. Then the sources of a tap follow each
// other as targets do, row after row, and edges and short rows are no special case: the run goes
// over them, and what falls between two rows is not kept. The adjoints exchange the roles: sources
// have one phase, and each phase of the targets has taps of its own. At last, the targets' phases
// are interleaved again, divided, rounded, and stored row by row. Memory would be idle while the
// runs are computed: so they ask for what is stored after them, and for the band that is next.
//
// The maximum is taken first; then the tap that equals it is looked for, from the last to the
// first: one comparison and one selection a tap. Windows with a NaN (a sum is NaN if one of its
// terms is) or with nothing above -inf, which padding is as well, are left to Pooling, one by one.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/window.h"
#include "cpu/pool2d.h"
#include "cpu/simd.h"

namespace d2lops {

// Both axes of windows that begin at -padding, stride - padding, 2 stride - padding, ...
struct EvenWindows {
  struct Steps {
    int64_t taps, stride, padding, dilation;
  };
  Steps down, across;
};

// `Stride` is that of the columns.
template <Op op, typename T, typename J, int Stride>
class RunPooling {
  using A = Accumulator<T>;
  using V = Vec<A>;
  using I = Index<V>;
  using N = Index<A>;
  using Bytes = Vec<std::remove_const_t<J>, kLanes<A>>;
  static constexpr int lanes = kLanes<A>;
  static constexpr int source_stride = is_adjoint(op) ? 1 : Stride;
  static constexpr int target_stride = is_adjoint(op) ? Stride : 1;
  static constexpr A fill = op == Op::max ? -std::numeric_limits<A>::infinity() : A{0};

 public:
  RunPooling(const Axis& rows, const Axis& columns, const EvenWindows& windows)
      : rows_(rows),
        columns_(columns),
        windows_(windows),
        source_rows_(rows.advance.size()),
        source_columns_(columns.advance.size()),
        target_columns_(columns.targets.size()),
        source_phases_(is_adjoint(op) ? 1 : windows.down.stride),
        target_phases_(is_adjoint(op) ? windows.down.stride : 1) {
    const Offsets down = offsets(windows.down), across = offsets(windows.across);
    top_ = down.before;
    span_ = down.before + down.after;
    left_ = across.before;
    pitch_ = left_ + std::max(ceil_div(target_columns_, target_stride) + across.after,
                              ceil_div(source_columns_, source_stride) +
                                  (is_adjoint(op) ? 0 : ceil_div(windows.across.padding, Stride)));
    constexpr int64_t room = 24 * 1024 / sizeof(A);
    const int64_t phases = std::max(source_phases_, target_phases_) * Stride;
    band_ = std::max({room / (phases * pitch_) - span_, span_, int64_t{1}});
    band_ = std::min(band_, ceil_div(static_cast<int64_t>(rows.targets.size()), target_phases_));
    slack_ = 2 * lanes + pitch_;
    source_plane_ = (band_ + span_) * pitch_ + slack_;
    target_plane_ = band_ * pitch_ + slack_;
    const int64_t sources = source_phases_ * source_stride * source_plane_;
    const int64_t results = target_phases_ * target_stride * target_plane_;
    staged_.assign(sources, fill);
    results_.resize(results);
    if constexpr (op == Op::max_adjoint) argmax_.assign(sources, -1);
    if constexpr (op == Op::max) argmax_.resize(results);
    if constexpr (op == Op::average_adjoint) {
      extents_.assign(columns.extent.begin(), columns.extent.end());
    }
    if constexpr (op == Op::average) {
      for (const Axis::Target& column : columns.targets) extents_.push_back(column.extent);
    }
    extents_.resize(extents_.size() + lanes, 1);

    taps_.resize(target_phases_ * target_stride);
    used_.resize(source_phases_);
    for (const Tap& row : down.taps) {
      used_[row.source_phase] = true;
      for (const Tap& column : across.taps) {
        taps_[row.target_phase * target_stride + column.target_phase].push_back(
            {(row.source_phase * source_stride + column.source_phase) * source_plane_ +
                 (row.offset + top_) * pitch_ + column.offset + left_,
             static_cast<N>(row.number * windows.across.taps + column.number)});
      }
    }
  }

  // Whether a band fits in the second cache, a phase of a row fills half a vector, and taps are few
  // enough. The average's adjoint has nothing better for short rows.
  static bool suits(const Axis& columns, const EvenWindows& windows) {
    const auto& [down, across] = windows;
    if (across.stride != 1 && across.stride != 2) return false;
    constexpr int64_t room = 256 * 1024 / sizeof(A), most_taps = 16;
    const int64_t width = is_adjoint(op) ? columns.targets.size() : columns.advance.size();
    const int64_t reach = (down.taps - 1) * down.dilation + down.stride;
    return reach * (width + lanes) <= room && down.taps * across.taps <= most_taps &&
           (op == Op::average_adjoint || 2 * width > lanes * across.stride);
  }

  // How many rows of targets are a band.
  int64_t band_rows() const { return band_ * target_phases_; }

  void run(const Pooling<op, T, J>& plane, int64_t band) {
    const int64_t begin = band * band_, target_rows = rows_.targets.size();
    const int64_t end = std::min(begin + band_, ceil_div(target_rows, target_phases_));
    stage(plane, begin - top_, end - begin + span_);
    Streams streams{plane.target.at(begin * target_phases_, 0),
                    plane.source.at((begin + band_) * source_phases_, 0),
                    source_phases_ * source_stride};
    for (size_t phase = 0; phase < taps_.size(); ++phase) {
      for_count(taps_[phase].size(), [&](auto known) {
        if constexpr (op == Op::max) {
          maxima<known>((end - begin) * pitch_, streams);
        } else {
          sums<known>(phase, (end - begin) * pitch_, streams);
        }
      });
      streams.lines = 0;
    }
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t phase = 0; phase < target_phases_; ++phase) {
        const int64_t row = i * target_phases_ + phase;
        if (row >= target_rows) break;
        finish(plane, row, phase * target_stride * target_plane_ + (i - begin) * pitch_);
      }
    }
  }

 private:
  // Along one axis: target j of its phase sees source j + offset of its phase.
  struct Tap {
    int64_t target_phase, source_phase, offset, number;
  };
  struct Offsets {
    std::vector<Tap> taps;
    int64_t before = 0, after = 0;
  };

  static Offsets offsets(const EvenWindows::Steps& steps) {
    Offsets all;
    for (int64_t tap = 0; tap < steps.taps; ++tap) {
      if constexpr (is_adjoint(op)) {
        for (int64_t phase = 0; phase < steps.stride; ++phase) {
          const int64_t place = phase + steps.padding - tap * steps.dilation;
          if (place % steps.stride == 0) all.taps.push_back({phase, 0, place / steps.stride, tap});
        }
      } else {  // sources are counted from where the padding begins
        const int64_t place = tap * steps.dilation;
        all.taps.push_back({0, place % steps.stride, place / steps.stride, tap});
      }
    }
    for (const Tap& tap : all.taps) {
      all.before = std::max(all.before, -tap.offset);
      all.after = std::max(all.after, tap.offset);
    }
    return all;
  }

  // A tap of the window, for the target at the beginning of a run.
  struct Run {
    int64_t source;
    N tap;
  };

  const Axis &rows_, &columns_;
  const EvenWindows windows_;
  const int64_t source_rows_, source_columns_, target_columns_;
  const int64_t source_phases_, target_phases_;  // of the rows
  int64_t top_, span_, left_, pitch_, band_, slack_, source_plane_, target_plane_;
  std::vector<A> staged_, results_, extents_;
  std::vector<N> argmax_;
  std::vector<std::vector<Run>> taps_;  // of each target phase
  std::vector<char> used_;

  V divided(V x, double row_extent, int64_t column) const {
    return x / (static_cast<A>(row_extent) * load<A>(extents_.data() + column));
  }

  static I lane_numbers() {
    I lane;
    for (int l = 0; l < lanes; ++l) lane[l] = l;
    return lane;
  }

  // Up to a vector of the `left` numbers of a row; `more` ones may be read beyond it. Lanes beyond
  // the row are filled.
  static V load_rest(const T* p, int64_t left, int64_t more) {
    if (left >= lanes) return load<A>(p);
    if (left <= 0) return broadcast(fill);
    const V x = left + more >= lanes ? load<A>(p) : load_first<A>(p, static_cast<int>(left));
    return lane_numbers() < static_cast<N>(left) ? x : broadcast(fill);
  }
  static void store_rest(T* p, V value, int64_t left) {
    if (left >= lanes) {
      store(p, value);
    } else if (left > 0) {
      store_first(p, value, static_cast<int>(left));
    }
  }

  // `count` rows of each phase from `first` on.
  void stage(const Pooling<op, T, J>& plane, int64_t first, int64_t count) {
    const int64_t phases = source_phases_, down = plane.source.row;
    const int64_t padding = is_adjoint(op) ? left_ : windows_.across.padding;
    // Where the first column is, and the second one.
    const int64_t even = padding % source_stride * source_plane_ + padding / source_stride;
    const int64_t odd =
        (padding + 1) % source_stride * source_plane_ + (padding + 1) / source_stride;
    int64_t row = first * phases - (is_adjoint(op) ? 0 : windows_.down.padding);
    const T* from = plane.source.data + row * down;
    for (int64_t i = 0; i < count; ++i) {
      A* to = staged_.data() + i * pitch_;
      for (int64_t phase = 0; phase < phases; ++phase, ++row, from += down) {
        if (used_[phase]) {
          if (row >= 0 && row < source_rows_) {
            const int64_t more = (source_rows_ - 1 - row) * down;
            if constexpr (op == Op::average_adjoint) {
              stage_row(from, source_columns_, more, to + even, to + odd,
                        [this, row](V x, int64_t c) { return divided(x, rows_.extent[row], c); });
            } else {
              stage_row(from, source_columns_, more, to + even, to + odd,
                        [](V x, int64_t) { return x; });
            }
            if constexpr (op == Op::max_adjoint) stage_argmax(plane.argmax.at(row, 0), i);
          } else {
            for (int column = 0; column < source_stride; ++column) {
              std::fill_n(to + column * source_plane_, pitch_, fill);
            }
          }
        }
        to += source_stride * source_plane_;
      }
    }
  }

  // `more` numbers may be read beyond the row.
  template <typename F>
  static void stage_row(const T* from, int64_t columns, int64_t more, A* even, A* odd, F&& f) {
    constexpr auto all = std::make_integer_sequence<int, lanes>{};
    for (int64_t i = 0; i < columns; i += source_stride * lanes) {
      const V x = load_rest(from + i, columns - i, more);
      if constexpr (source_stride == 1) {
        store(even + i, f(x, i));
      } else {
        const V next = load_rest(from + i + lanes, columns - i - lanes, more);
        store(even + i / 2, even_lanes(x, next, all));
        store(odd + i / 2, odd_lanes(x, next, all));
      }
    }
  }

  void stage_argmax(const J* from, int64_t i) {
    const int64_t columns = source_columns_;
    N* to = argmax_.data() + i * pitch_ + left_;
    for (int64_t c = 0; c < columns; c += lanes) {
      const int count = static_cast<int>(std::min<int64_t>(lanes, columns - c));
      const auto taps = load_first_bytes<Bytes>(from + c, count * int(sizeof(J)));
      store(to + c, convert<N>(taps));
    }
  }

  // Calls f with the number of taps as a constant if it is a usual one, or 0.
  template <typename F>
  static void for_count(size_t taps, F&& f) {
    switch (taps) {
      case 1:
        return f(std::integral_constant<int, 1>{});
      case 2:
        return f(std::integral_constant<int, 2>{});
      case 4:
        return f(std::integral_constant<int, 4>{});
      case 9:
        return f(std::integral_constant<int, 9>{});
      default:
        return f(std::integral_constant<int, 0>{});
    }
  }

  // What is written after the runs, and what is read for the next ones, asked for on the way.
  struct Streams {
    const T* target;
    const T* source;
    int64_t lines;  // vectors of sources for each one of targets

    void advance() {
      __builtin_prefetch(target, 1);
      target += lanes;
      for (int64_t line = 0; line < lines; ++line) {
        __builtin_prefetch(source, 0, 2);
        source += lanes;
      }
    }
  };

  // Where in `memory` tap t of each target of a run is.
  template <int Count, typename E>
  struct Runs {
    const E* memory;
    const std::vector<Run>& taps;
    const E* begin[Count + 1];

    Runs(const E* memory, const std::vector<Run>& taps) : memory(memory), taps(taps) {
      for (int t = 0; t < Count; ++t) begin[t] = memory + taps[t].source;
    }
    int count() const { return Count == 0 ? static_cast<int>(taps.size()) : Count; }
    Vec<E> operator()(int t, int64_t i) const {
      return load<E>((Count == 0 ? memory + taps[t].source : begin[t]) + i);
    }
  };

  template <int Count>
  void maxima(int64_t count, Streams& streams) {
    const Runs<Count, A> value(staged_.data(), taps_[0]);
    A* results = results_.data();
    N* argmax = argmax_.data();
    for (int64_t i = 0; i < count; i += lanes) {
      streams.advance();
      V largest = value(0, i), sum = largest;
      for (int t = 1; t < value.count(); ++t) {
        const V x = value(t, i);
        largest = x > largest ? x : largest;
        sum += x;
      }
      I where{};
      for (int t = value.count(); t-- > 0;) where = value(t, i) == largest ? I{} + t : where;
      store(results + i, sum == sum ? largest : sum);
      store(argmax + i, where);
    }
  }

  template <int Count>
  void sums(size_t phase, int64_t count, Streams& streams) {
    const std::vector<Run>& taps = taps_[phase];
    const Runs<Count, A> value(staged_.data(), taps);
    const Runs<op == Op::max_adjoint ? Count : 0, N> argmax(argmax_.data(), taps);
    A* results = results_.data() + phase * target_plane_;
    for (int64_t i = 0; i < count; i += lanes) {
      streams.advance();
      V total{};
      for (int t = 0; t < value.count(); ++t) {
        V x = value(t, i);
        if constexpr (op == Op::max_adjoint) x = argmax(t, i) == taps[t].tap ? x : V{};
        total += x;
      }
      store(results + i, total);
    }
  }

  // A row of targets, whose results begin at `at`.
  void finish(const Pooling<op, T, J>& plane, int64_t row, int64_t at) const {
    constexpr auto all = std::make_integer_sequence<int, lanes>{};
    const int64_t columns = target_columns_, next = target_plane_;
    const A* results = results_.data() + at;
    const N* argmax = argmax_.data() + at;
    T* to = plane.target.at(row, 0);
    J* to_argmax = op == Op::max ? plane.argmax.at(row, 0) : nullptr;
    bool special = false;
    for (int64_t c = 0; c < columns; c += target_stride * lanes) {
      const int64_t left = columns - c;
      V result = load<A>(results + c / target_stride);
      if constexpr (target_stride == 2) {
        const V odd = load<A>(results + next + c / 2);
        store_rest(to + c + lanes, interleave_high(result, odd, all), left - lanes);
        result = interleave_low(result, odd, all);
      }
      if constexpr (op == Op::average) result = divided(result, rows_.targets[row].extent, c);
      store_rest(to + c, result, left);
      if constexpr (op == Op::max) {
        const int count = static_cast<int>(std::min<int64_t>(lanes, left));
        store_first_bytes(to_argmax + c, convert<J>(load<N>(argmax + c)), count * int(sizeof(J)));
        special |= any(~(result > fill) & (lane_numbers() < static_cast<N>(count)));
      }
    }
    if constexpr (op == Op::max) {
      if (special) {
        for (int64_t c = 0; c < columns; ++c) {
          if (!(results[c] > fill)) plane.template pixel<A>(row, c, 1);
        }
      }
    }
  }
};

}  // namespace d2lops
