// What an argmax picks: max-pooling's derivative as a linear map (gather), and its adjoint
// (scatter).
//
//   gather    y[o] = x[place of argmax[o] in window o]
//   scatter   x[place of argmax[o] in window o] += g[o]
//
// One number is moved per output, whatever the window: main memory limits both. Outputs are visited
// row by row; gather owns outputs, and scatter owns a band of input rows, visits every window that
// reaches into it, in order, and drops what falls outside. So each input's sum has one order,
// however the rows are split. 16-bit sums of overlapping windows are kept in float until no window
// reaches them any more.
//
// An argmax that points out of its window or out of the input counts as zero.
#pragma once

#include <algorithm>
#include <vector>

#include "common/window.h"
#include "cpu/parallel.h"
#include "cpu/pool2d.h"
#include "cpu/simd.h"

namespace d2lops {

// Windows of the same size along one axis.
struct Boxes {
  std::vector<int64_t> origin;  // of each window, ascending; in the padding if negative
  int64_t inputs, taps, dilation;
  bool overlap;

  template <typename Windows>
  Boxes(const Windows& windows, int64_t taps)
      : origin(windows.outputs), inputs(windows.inputs), taps(taps), dilation(windows.dilation) {
    for (int64_t o = 0; o < windows.outputs; ++o) origin[o] = windows.origin(o);
    overlap = false;
    for (int64_t i = 0; i < inputs && !overlap; ++i) overlap = windows.outputs_of(i).count > 1;
  }

  int64_t outputs() const { return static_cast<int64_t>(origin.size()); }
  int64_t reach() const { return at_least(1, (taps - 1) * dilation + 1); }
  bool inside(int64_t o) const { return origin[o] >= 0 && origin[o] + reach() <= inputs; }
};

// Where the taps of a row of windows are, seen from the column that a window begins at.
template <typename J>
class Places {
 public:
  Places(const Boxes& rows, const Boxes& columns, int64_t column_stride)
      : rows_(rows), columns_(columns), step_(columns.dilation * column_stride) {
    row_.resize(rows.taps);
    if constexpr (sizeof(J) == 1) {
      std::fill_n(table_, 256, -1);
      for (int argmax = 0; argmax < 256; ++argmax) column_[argmax] = s(argmax) * columns.dilation;
    }
  }

  // row_offset(h) is where row h is, or negative if it counts as zero.
  template <typename F>
  void enter(int64_t origin, F&& row_offset) {
    for (int64_t r = 0; r < rows_.taps; ++r) {
      const int64_t h = origin + r * rows_.dilation;
      row_[r] = h >= 0 && h < rows_.inputs ? row_offset(h) : -1;
    }
    if constexpr (sizeof(J) == 1) {
      for (int64_t r = 0, tap = 0; r < rows_.taps; ++r) {
        for (int64_t s = 0; s < columns_.taps; ++s) {
          table_[tap++] = row_[r] < 0 ? -1 : row_[r] + s * step_;
        }
      }
    }
  }

  // Negative for taps that count as zero.
  int64_t offset(J argmax) const {
    if constexpr (sizeof(J) == 1) return table_[argmax];
    const int64_t r = static_cast<uint32_t>(argmax) / static_cast<uint32_t>(columns_.taps);
    return r < rows_.taps && row_[r] >= 0 ? row_[r] + s(argmax) * step_ : -1;
  }

  // Columns from the beginning of the window.
  int64_t column(J argmax) const {
    if constexpr (sizeof(J) == 1) return column_[argmax];
    return s(argmax) * columns_.dilation;
  }

 private:
  int64_t s(J argmax) const {
    return static_cast<uint32_t>(argmax) % static_cast<uint32_t>(at_least(1, columns_.taps));
  }

  const Boxes& rows_;
  const Boxes& columns_;
  int64_t step_;
  std::vector<int64_t> row_;
  int64_t table_[sizeof(J) == 1 ? 256 : 1];
  int64_t column_[sizeof(J) == 1 ? 256 : 1];
};

// Windows first ... first + count - 1 of a row, which begin at column, column + step, ... and lie
// inside the input; or one that may not.
struct Strip {
  int64_t first, count, column;
  bool inside;
};

inline std::vector<Strip> make_strips(const Boxes& columns, bool evenly_spaced) {
  std::vector<Strip> strips;
  for (int64_t o = 0; o < columns.outputs(); ++o) {
    const bool inside = columns.inside(o);
    if (inside && evenly_spaced && !strips.empty() && strips.back().inside) {
      ++strips.back().count;
    } else {
      strips.push_back({o, 1, columns.origin[o], inside});
    }
  }
  return strips;
}

// `inputs` is x, `outputs` is y or g.
template <typename T, typename J>
class ArgmaxMap {
  using A = Accumulator<T>;

 public:
  Boxes rows, columns;
  int64_t stride;  // from one window to the next in a row, 0 if that varies
  int64_t images, channels;
  Operand<const J> argmax;

  void gather(const Operand<const T>& x, const Operand<T>& y) const {
    const Loop loop(*this, y.c == 1 || many_short_rows(channels), x.w, x.c);
    parallel_for(0, images * rows.outputs(), grain(columns.outputs() * channels),
                 [&](int64_t begin, int64_t end) {
                   Places<J> places(rows, columns, x.w);
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t image = task / rows.outputs(), o = task % rows.outputs();
                     places.enter(rows.origin[o], [&](int64_t h) { return h * x.h; });
                     const T* from = x.data + image * x.n;
                     T* to = y.data + image * y.n + o * y.h;
                     loop.run(places, argmax.data + image * argmax.n + o * argmax.h, y, channels,
                              [&](int64_t output, int64_t place) {
                                to[output] = place >= 0 ? from[place] : T{};
                              });
                   }
                 });
  }

  // x is dense.
  void scatter(const Operand<const T>& g, const Operand<T>& x) const {
    const bool needs_buffer = !std::is_same_v<T, A> && (rows.overlap || columns.overlap);
    needs_buffer ? scatter_into<A>(g, x) : scatter_into<T>(g, x);
  }

 private:
  // Of the two dimensions of the inner loops, the longer one should be innermost.
  bool many_short_rows(int64_t channels) const {
    return columns.outputs() < std::min<int64_t>(16, channels);
  }

  static int64_t grain(int64_t elements) { return std::max<int64_t>(1, 16384 / elements); }

  // Visits the outputs of one row of windows, of some channels.
  struct Loop {
    const ArgmaxMap& map;
    bool by_window;  // all channels of a window, then the next one; else all windows of a channel
    int64_t column, channel;  // strides of the places
    std::vector<Strip> strips;

    Loop(const ArgmaxMap& map, bool by_window, int64_t column, int64_t channel)
        : map(map),
          by_window(by_window),
          column(column),
          channel(channel),
          strips(make_strips(map.columns, map.stride > 0 && !by_window)) {}

    // f(where an output is, where its place is, negative if it counts as zero), beginning at the
    // first of the channels. `y` has the strides of the outputs.
    template <typename O, typename F>
    void run(const Places<J>& places, const J* argmax, const O& y, int64_t channels, F&& f) const {
      const Operand<const J>& from = map.argmax;
      if (by_window) {
        for (const Strip& s : strips) {
          strip(places, s, argmax + s.first * from.w, s.first * y.w, 0,
                {channels, from.c, y.c, channel}, f);
        }
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          for (const Strip& s : strips) {
            strip(places, s, argmax + c * from.c + s.first * from.w, c * y.c + s.first * y.w,
                  c * channel, {s.count, from.w, y.w, map.stride * column}, f);
          }
        }
      }
    }

   private:
    struct Steps {
      int64_t count, argmax, output, place;
    };

    template <typename F>
    void strip(const Places<J>& places, const Strip& s, const J* argmax, int64_t output,
               int64_t place, const Steps& step, F&& f) const {
      place += s.column * column;
      for (int64_t i = 0; i < step.count; ++i) {
        const J tap = argmax[i * step.argmax];
        const int64_t offset = places.offset(tap);
        bool seen = offset >= 0;
        if (!s.inside) {
          const int64_t w = s.column + places.column(tap);
          seen = seen && w >= 0 && w < map.columns.inputs;
        }
        f(output + i * step.output, seen ? place + offset + i * step.place : -1);
      }
    }
  };

  // Sums are of B. A task is a band of rows of a block of channels of one image.
  template <typename B>
  void scatter_into(const Operand<const T>& g, const Operand<T>& x) const {
    constexpr int64_t much = 16384;
    const bool together = x.c == 1;
    const int64_t plane = rows.inputs * columns.inputs;
    const int64_t block = together ? channels : std::clamp<int64_t>(much / plane, 1, channels);
    const int64_t blocks = ceil_div(channels, block);
    const int64_t most_bands = std::max<int64_t>(1, rows.inputs / (4 * rows.reach()));
    const int64_t bands = std::min(most_bands, ceil_div(32, images * blocks));
    const int64_t down = ceil_div(rows.inputs, bands);
    parallel_for(0, images * blocks * bands, grain(down * columns.inputs * block),
                 [&](int64_t begin, int64_t end) {
                   Scatter<B> scatter(*this, g, x, block, down);
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t image = task / bands / blocks,
                                   first = task / bands % blocks * block;
                     const int64_t top = task % bands * down;
                     scatter.run(image, {first, std::min(first + block, channels)},
                                 {top, std::min(top + down, rows.inputs)});
                   }
                 });
  }

  // Rows of x are opened (set to zero) before the first window that reaches them, and closed after
  // the last. Without a buffer, an open row is where it belongs.
  template <typename B>
  struct Scatter {
    static constexpr bool buffered = !std::is_same_v<B, T>;

    const ArgmaxMap& map;
    const Operand<const T>& g;
    const Operand<T>& x;
    const bool together;
    const int64_t width, ahead;         // elements of a row that lie together; rows opened at once
    const int64_t slots, row, channel;  // of the sums
    std::vector<A> buffer;
    Loop loop;
    Places<J> places;

    Scatter(const ArgmaxMap& map, const Operand<const T>& g, const Operand<T>& x, int64_t block,
            int64_t down)
        : map(map),
          g(g),
          x(x),
          together(x.c == 1),
          width(map.columns.inputs * (together ? map.channels : 1)),
          ahead(ceil_div(2048, width)),
          slots(buffered ? std::min(map.rows.reach() + ahead, down) : down),
          row(buffered ? width : x.h),
          channel(buffered && !together ? slots * row : x.c),
          buffer(buffered ? slots * width * (together ? 1 : block) : 0),
          loop(map, together || map.many_short_rows(block), x.w, channel),
          places(map.rows, map.columns, x.w) {}

    void run(int64_t image, Range c, Range band) {
      T* to = x.data + image * x.n + c.begin * x.c;
      B* sums;
      if constexpr (buffered) {
        sums = buffer.data();
      } else {
        sums = to + band.begin * x.h;
      }
      const int64_t parts = together ? 1 : c.size();
      const auto slot = [&](int64_t h) { return (h - band.begin) % slots * row; };

      int64_t opened = band.begin, closed = band.begin;
      const auto open_until = [&](int64_t h) {
        if (opened >= h) return;
        const int64_t end = std::min(std::max(h, opened + ahead), band.end);
        for (int64_t part = 0; part < parts; ++part) {
          if constexpr (buffered) {
            for (int64_t r = opened; r < end; ++r) {
              std::fill_n(sums + part * channel + slot(r), width, B{});
            }
          } else {
            std::fill_n(sums + part * channel + slot(opened), (end - opened) * width, B{});
          }
        }
        opened = std::max(opened, end);
      };
      // Rows that no window has opened are zero.
      const auto close_until = [&](int64_t h) {
        for (const int64_t end = std::min(h, band.end); closed < end;) {
          const bool open = closed < opened;
          int64_t next = open ? std::min(end, opened) : end;
          if (buffered && open)
            next = std::min(next, closed + slots - (closed - band.begin) % slots);
          for (int64_t part = 0; part < parts; ++part) {
            T* done = to + part * x.c + closed * x.h;
            if (!open) std::fill_n(done, (next - closed) * width, T{});
            if constexpr (buffered) {
              if (open) round(sums + part * channel + slot(closed), done, (next - closed) * width);
            }
          }
          closed = next;
        }
        opened = std::max(opened, closed);
      };

      const std::vector<int64_t>& origins = map.rows.origin;
      const auto first = std::partition_point(origins.begin(), origins.end(), [&](int64_t origin) {
        return origin + map.rows.reach() <= band.begin;
      });
      for (int64_t o = first - origins.begin(); o < map.rows.outputs(); ++o) {
        if (origins[o] >= band.end) break;
        if (slots < band.size()) close_until(origins[o]);
        open_until(origins[o] + map.rows.reach());
        places.enter(origins[o],
                     [&](int64_t h) { return h >= band.begin && h < band.end ? slot(h) : -1; });
        const T* from = g.data + image * g.n + o * g.h + c.begin * g.c;
        const J* argmax =
            map.argmax.data + image * map.argmax.n + o * map.argmax.h + c.begin * map.argmax.c;
        loop.run(places, argmax, g, c.size(), [&](int64_t output, int64_t place) {
          if (place < 0) return;
          if constexpr (std::is_arithmetic_v<B>) {
            sums[place] += load1<A>(from + output);
          } else {
            sums[place] = from[output];  // the only one
          }
        });
      }
      close_until(band.end);
    }

    // The last vector overlaps the one before it.
    static void round(const A* sums, T* done, int64_t count) {
      constexpr int64_t lanes = kLanes<A>;
      int64_t i = 0;
      for (; i + lanes <= count; i += lanes) store(done + i, load<A>(sums + i));
      if (count >= lanes) {
        store(done + count - lanes, load<A>(sums + count - lanes));
      } else {
        for (; i < count; ++i) store1(done + i, sums[i]);
      }
    }
  };
};

}  // namespace d2lops
