// Winograd's minimal filtering F(2x2, 3x3) for windows of 3 x 3 at stride 1 (Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", 2016). In one dimension two outputs of a window of
// three take four multiplications instead of six, because
//
//   y = A' ((G w) * (B' x))     with  B' x = (x0 - x2, x1 + x2, x2 - x1, x1 - x3)
//                                     G w  = (w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2)
//                                     A' m = (m0 + m1 + m2, m1 - m2 - m3);
//
// in two, a tile of 2 x 2 outputs takes 16 instead of 36. Summed over channels, each of the 16
// positions of a transformed tile is a matrix product of its own, (outputs x channels) times
// (channels x tiles), by the micro-kernel of gemm.h. With x -> V, w -> U, y <- M the trilinear form
// reads <corr2d(x, w), g> = sum over positions, tiles, channels of U V (A g), so the weight
// gradient needs the adjoints of the same three maps and nothing else.
//
// Tiling: a task owns some rows of tiles; V and M of as many of them as fit the second-level cache
// stay there. Limit: the FMA units, at 2.25 times the direct method's speed, less the transforms
// (about 30 additions per tile and channel, each way).
//
// Accuracy: the transforms only add and halve. Sums over channels start from zero every kSumDepth,
// which keeps the error at that of the direct method. But a transform spreads an infinity or a NaN
// over a whole tile: where a result is not finite, the caller has to compute directly.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/integer.h"
#include "cpu/im2col.h"
#include "cpu/micro_kernel.h"
#include "cpu/padded.h"
#include "cpu/scratch.h"

namespace d2lops::winograd {

constexpr int kTile = 2, kPatch = 4, kPositions = kPatch * kPatch;
constexpr int kWindow = 3, kPlaces = kWindow * kWindow;
constexpr int kSumDepth = 64;

// The transforms of one dimension, of numbers or vectors, `Step` apart.

template <int Step, typename V>
inline void input_1d(V* x) {
  const V x0 = x[0], x1 = x[Step], x2 = x[2 * Step], x3 = x[3 * Step];
  x[0] = x0 - x2, x[Step] = x1 + x2, x[2 * Step] = x2 - x1, x[3 * Step] = x1 - x3;
}
template <int Step, typename V>
inline void weight_1d(const V* w, V* u) {
  const V even = (w[0] + w[2 * Step]) * 0.5f, odd = w[Step] * 0.5f;
  u[0] = w[0], u[Step] = even + odd, u[2 * Step] = even - odd, u[3 * Step] = w[2 * Step];
}
template <int Step, typename V>
inline void weight_adjoint_1d(const V* u, V* w) {
  const V even = (u[Step] + u[2 * Step]) * 0.5f, odd = (u[Step] - u[2 * Step]) * 0.5f;
  w[0] = u[0] + even, w[Step] = odd, w[2 * Step] = even + u[3 * Step];
}
template <int Step, typename V>
inline void output_1d(const V* m, V* y) {
  const V m0 = m[0], m1 = m[Step], m2 = m[2 * Step], m3 = m[3 * Step];
  y[0] = m0 + m1 + m2, y[Step] = m1 - m2 - m3;
}
template <int Step, typename V>
inline void output_adjoint_1d(const V* g, V* m) {
  const V g0 = g[0], g1 = g[Step];
  m[0] = g0, m[Step] = g0 + g1, m[2 * Step] = g0 - g1, m[3 * Step] = V{} - g1;
}

// And of two dimensions: rows of kPatch, of which the first few are used.

template <typename V>
inline void input_transform(V (&x)[kPositions]) {
#pragma GCC unroll 4
  for (int i = 0; i < kPatch; ++i) input_1d<kPatch>(x + i);
#pragma GCC unroll 4
  for (int i = 0; i < kPatch; ++i) input_1d<1>(x + i * kPatch);
}
template <typename V>
inline void weight_transform(const V (&w)[kPlaces], V (&u)[kPositions]) {
  V half[kPatch * kWindow];
  for (int i = 0; i < kWindow; ++i) weight_1d<kWindow>(w + i, half + i);
  for (int i = 0; i < kPatch; ++i) weight_1d<1>(half + i * kWindow, u + i * kPatch);
}
template <typename V>
inline void weight_adjoint(const V (&u)[kPositions], V (&w)[kPlaces]) {
  V half[kPatch * kWindow];
  for (int i = 0; i < kPatch; ++i) weight_adjoint_1d<1>(u + i * kPatch, half + i * kWindow);
  for (int i = 0; i < kWindow; ++i) weight_adjoint_1d<kWindow>(half + i, w + i);
}
template <typename V>
inline void output_transform(const V (&m)[kPositions], V (&y)[kTile * kTile]) {
  V half[kTile * kPatch];
#pragma GCC unroll 4
  for (int i = 0; i < kPatch; ++i) output_1d<kPatch>(m + i, half + i);
#pragma GCC unroll 2
  for (int i = 0; i < kTile; ++i) output_1d<1>(half + i * kPatch, y + i * kTile);
}
template <typename V>
inline void output_adjoint(const V (&g)[kTile * kTile], V (&m)[kPositions]) {
  V half[kTile * kPatch];
#pragma GCC unroll 2
  for (int i = 0; i < kTile; ++i) output_adjoint_1d<1>(g + i * kTile, half + i * kPatch);
#pragma GCC unroll 4
  for (int i = 0; i < kPatch; ++i) output_adjoint_1d<kPatch>(half + i, m + i);
}

// The tiles of a batch of outputs, in rows that are counted through all images.
struct Tiles {
  int64_t images, height, width;

  Tiles(int64_t images, int64_t out_height, int64_t out_width)
      : images(images), height((out_height + 1) / kTile), width((out_width + 1) / kTile) {}
  int64_t rows() const { return images * height; }
  int64_t count() const { return rows() * width; }
};

// Distance of rows of n numbers, with room for a vector's overhang and never a multiple of 4 KB.
template <typename A>
inline int64_t row_stride(int64_t n) {
  const int64_t stride = (n / kLanes<A> + 2) * kLanes<A>;
  return stride * sizeof(A) % 4096 == 0 ? stride + kLanes<A> : stride;
}

// Rows of tiles per task: those that keep the busiest thread least busy. The micro-kernel takes
// kCols tiles at a time, and a task costs something by itself. Around 150 tiles share the reading
// of the weights, and leave V and M in the cache for up to a hundred channels.
template <typename A>
int64_t rows_per_task(const Tiles& tiles, int64_t groups, int64_t threads) {
  constexpr int64_t most = 150;
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t rows = 1; rows <= std::clamp<int64_t>(most / tiles.width, 1, tiles.rows()); ++rows) {
    const int64_t rounds = ceil_div(ceil_div(tiles.rows(), rows) * groups, threads);
    const int64_t cost = rounds * (round_up(rows * tiles.width, kCols<A>) + 8);
    if (cost < least) best = rows, least = cost;
  }
  return best;
}

// The image of x under the input transform, tile by tile: V[position][channel][tile].
template <typename T>
class TransformedImage {
 public:
  using A = Accumulator<T>;

  // `first_row` and `first_col`: where tile (0, 0) begins. `rows`: of tiles, at most, at a time.
  TransformedImage(const Im2col<T>& x, const Tiles& tiles, int64_t planes, int64_t first_row,
                   int64_t first_col, int64_t rows)
      : columns_(x, first_col, kTile * (tiles.width + 1)),
        tiles_(tiles),
        planes_(planes),
        first_row_(first_row),
        together_(planes_together(x)),
        stride_(row_stride<A>(rows * tiles.width)),
        position_(planes * stride_ + kLanes<A>),  // no power of two: positions must not share sets
        line_(kTile * (tiles.width + 1) + 3 * kLanes<A>),
        half_((rows + 1) * tiles.width + kLanes<A>) {
    for (int i = 0; i < kSumDepth; ++i) offsets_[i] = i * stride_;
  }

  int64_t size() const { return kPositions * position_ + kLanes<A>; }
  // Of what `fill` needs beside its result.
  int64_t scratch_size() const { return together_ * (line_ + kTile * kPatch * half_); }

  ShiftedColumns<A> columns(const A* v, int position, int64_t plane, int64_t tile) const {
    return {v + position * position_ + plane * stride_ + tile, offsets_};
  }

  // Rows `row` ... `row` + rows - 1 of tiles; `plane` is the first of the planes.
  void fill(int64_t plane, int64_t row, int64_t rows, A* v, A* scratch) const {
    for (const int64_t end = row + rows; row < end;) {
      const int64_t n = row / tiles_.height, a = row % tiles_.height;
      rows = std::min(end - row, tiles_.height - a);  // the next ones are another image's
      for (int64_t p = 0; p < planes_; p += together_) {
        const int count = static_cast<int>(std::min(together_, planes_ - p));
        across_columns(n, plane + p, count, a, rows, scratch);
        for (int i = 0; i < count; ++i)
          across_rows(scratch + i * kTile * kPatch * half_, rows, v + (p + i) * stride_);
      }
      v += rows * tiles_.width;
      row += rows;
    }
  }

 private:
  // The one-dimensional transform of the input rows under `rows` rows of tiles, for each plane:
  // half[row % 2][position][row / 2][tile]. Each is needed by two rows of tiles.
  void across_columns(int64_t n, int64_t plane, int count, int64_t a, int64_t rows, A* half) const {
    A* const lines = half + together_ * kTile * kPatch * half_;
    for (int64_t i = 0; i < kTile * (rows + 1); ++i) {
      columns_.read_planes(n, plane, count, kTile * a + i + first_row_, lines, line_);
      for (int p = 0; p < count; ++p) {
        const A* line = lines + p * line_;
        A* const to = half + (p * kTile + i % kTile) * kPatch * half_ + i / kTile * tiles_.width;
        for (int64_t b = 0; b < tiles_.width; b += kLanes<A>) {
          Vec<A> x[kPatch];
          for (int s = 0; s < kPatch; ++s) x[s] = load_strided<A, kTile>(line + kTile * b + s);
          input_1d<1>(x);
          for (int s = 0; s < kPatch; ++s) store(to + s * half_ + b, x[s]);
        }
      }
    }
  }

  // The other dimension's, of one plane. Tiles follow one another across the ends of their rows.
  void across_rows(const A* half, int64_t rows, A* v) const {
    for (int64_t t = 0; t < rows * tiles_.width; t += kLanes<A>) {
      for (int s = 0; s < kPatch; ++s) {
        Vec<A> x[kPatch];
        for (int r = 0; r < kPatch; ++r) {
          x[r] = load<A>(half + (r % kTile * kPatch + s) * half_ + r / kTile * tiles_.width + t);
        }
        input_1d<1>(x);
        for (int r = 0; r < kPatch; ++r) store(v + (r * kPatch + s) * position_ + t, x[r]);
      }
    }
  }

  PaddedRows<T> columns_;
  Tiles tiles_;
  int64_t planes_, first_row_, together_, stride_, position_, line_, half_;
  int64_t offsets_[kSumDepth];
};

// The weights of all groups under the weight transform, as the micro-kernel's panels, in the order
// in which it reads them: U[group][position][block of channels][panel][channel][kRows].
template <typename T>
class TransformedWeights {
 public:
  using A = Accumulator<T>;

  TransformedWeights(int64_t groups, int64_t outputs, int64_t planes)
      : panels(ceil_div(outputs, kRows)),
        blocks(ceil_div(planes, kSumDepth)),
        depth(ceil_div(planes, blocks)),
        outputs_(outputs),
        planes_(planes),
        position_(blocks * panels * depth * kRows + kLanes<A>),
        data_(scratch<A, 1>(groups * kPositions * position_)) {}

  int rows(int64_t i) const {
    return static_cast<int>(std::min<int64_t>(kRows, outputs_ - i * kRows));
  }
  A* panel(int64_t group, int position, int64_t block, int64_t i) const {
    return data_ + (group * kPositions + position) * position_ +
           (block * panels + i) * depth * kRows;
  }

  // How many pieces `fill` makes of a group's weights.
  int64_t pieces() const { return panels * ceil_div(planes_, kTogether); }

  // Piece `i`, in an order that goes through the weights as they lie in memory. w is the group's,
  // `output` and `plane` are their strides; place (r, s) of the window is at
  // places[r * kWindow + s].
  void fill(const T* w, int64_t output, int64_t plane, const int64_t (&places)[kPlaces],
            int64_t group, int64_t i) {
    const int64_t across = pieces() / panels;
    const int64_t row = output > plane ? i / across : i % panels,
                  c0 = (output > plane ? i % across : i / panels) * kTogether;
    const int64_t count = std::min<int64_t>(kTogether, planes_ - c0);
    const bool dense = *std::max_element(places, places + kPlaces) < kPlaces;
    A windows[kTogether * kPlaces * kRows + kLanes<A>];
    w += row * kRows * output + c0 * plane;
    if (dense) {
      read_dense(w, output, plane, count, rows(row), windows);
    } else {
      read_spread(w, output, plane, places, count, rows(row), windows);
    }
    for (int64_t c = 0; c < count; ++c) {
      A* const to = panel(group, 0, (c0 + c) / depth, row) + (c0 + c) % depth * kRows;
      for (int r = 0; r < kRows; r += kWidth) {
        Part window[kPlaces], u[kPositions];
        for (int t = 0; t < kPlaces; ++t) {
          const int64_t place = c * kPlaces + (dense ? places[t] : t);
          window[t] = load_bytes<Part>(windows + place * kRows + r);
        }
        weight_transform(window, u);
        for (int p = 0; p < kPositions; ++p) store(to + p * position_ + r, u[p]);
      }
    }
  }

  const int64_t panels, blocks, depth;

 private:
  static constexpr int kTogether = 16;  // planes
  static constexpr int kWidth = std::min(kRows, kLanes<A>);
  using Part = Vec<A, kWidth>;

  // The windows of some planes, to[plane][place][kRows]. A window that is dense in memory is
  // transposed in registers, several of them at once if they follow one another.
  static void read_dense(const T* w, int64_t output, int64_t plane, int64_t count, int rows,
                         A* to) {
    const int64_t together = plane == kPlaces ? count : 1;
    for (int64_t c = 0; c < count; c += together) {
      read_matrix<T, A>(w + c * plane, 1, output, nullptr, 0, 0, together * kPlaces, rows,
                        to + c * kPlaces * kRows, kRows);
    }
  }
  static void read_spread(const T* w, int64_t output, int64_t plane,
                          const int64_t (&places)[kPlaces], int64_t count, int rows, A* to) {
    for (int64_t c = 0; c < count; ++c) {
      for (int t = 0; t < kPlaces; ++t, to += kRows) {
        for (int r = 0; r < kRows; ++r)
          to[r] = r < rows ? load1<A>(w + r * output + c * plane + places[t]) : A{0};
      }
    }
  }

  int64_t outputs_, planes_, position_;
  A* data_;
};

// Outputs from M, whose positions are `position` and whose panels are `across` pieces apart; tile 0
// of it is the batch's tile `first`. Returns whether all of them are finite.
template <typename T>
bool write_outputs(const Accumulator<T>* m, int64_t position, int64_t across, int64_t count,
                   int64_t first, const TransformedWeights<T>& weights,
                   const ImageWriter<T> (&out)[kTile]) {
  using A = Accumulator<T>;
  constexpr int64_t piece = kRows * kCols<A>;
  A ones[kLanes<A>];
  std::fill_n(ones, kLanes<A>, A{1});
  Vec<A> not_finite{};  // y - y is NaN where y is infinite or NaN
  for (int64_t i = 0; i < weights.panels; ++i) {
    for (int64_t t = 0; t < count; t += kLanes<A>) {
      const A* from = m + (i * across + t / kCols<A>)*piece + t % kCols<A>;
      const int used = static_cast<int>(std::min<int64_t>(kLanes<A>, count - t));
      const auto inside = used == kLanes<A> ? load<A>(ones) : load_first<A>(ones, used);
      alignas(kVectorBytes) A c[kTile][kRows * kCols<A>];
      for (int r = 0; r < weights.rows(i); ++r) {
        Vec<A> positions[kPositions], y[kTile * kTile];
#pragma GCC unroll 16
        for (int p = 0; p < kPositions; ++p)
          positions[p] = load<A>(from + p * position + r * kCols<A>);
        output_transform(positions, y);
        constexpr auto lanes = std::make_integer_sequence<int, kLanes<A>>{};
#pragma GCC unroll 2
        for (int h = 0; h < kTile; ++h) {
          const Vec<A> left = y[h * kTile], right = y[h * kTile + 1];
          not_finite += inside != A{0} ? (left - left) + (right - right) : Vec<A>{};
          store(c[h] + r * kCols<A>, interleave_low(left, right, lanes));
          store(c[h] + r * kCols<A> + kLanes<A>, interleave_high(left, right, lanes));
        }
      }
      for (int h = 0; h < kTile; ++h)
        out[h](i * kRows, kTile * (first + t), weights.rows(i), kTile * used, c[h]);
    }
  }
  return horizontal_sum<A>(not_finite) == 0;
}

// One task: rows `row` ... `row` + rows - 1 of tiles of one group, all outputs. Returns whether all
// of them are finite.
template <typename T>
bool correlate(const TransformedImage<T>& image, const TransformedWeights<T>& weights,
               const Tiles& tiles, int64_t group, int64_t planes, int64_t row, int64_t rows,
               const ImageWriter<T> (&out)[kTile]) {
  using A = Accumulator<T>;
  constexpr int64_t piece = kRows * kCols<A>;
  const int64_t count = rows * tiles.width, across = ceil_div(count, kCols<A>);
  const int64_t position = weights.panels * across * piece + kLanes<A>;
  A* const v = scratch<A>(image.size() + kPositions * position + image.scratch_size());
  A* const m = v + image.size();
  image.fill(group * planes, row, rows, v, m + kPositions * position);
  for (int p = 0; p < kPositions; ++p) {
    for (int64_t block = 0; block < weights.blocks; ++block) {
      const int64_t c = block * weights.depth;
      const int depth = static_cast<int>(std::min(weights.depth, planes - c));
      for (int64_t j = 0; j < across; ++j) {
        const int cols = static_cast<int>(std::min<int64_t>(kCols<A>, count - j * kCols<A>));
        for (int64_t i = 0; i < weights.panels; ++i) {
          micro_kernel_for<A, ShiftedColumns<A>>(weights.rows(i), cols)(
              depth, weights.panel(group, p, block, i), image.columns(v, p, c, j * kCols<A>),
              m + p * position + (i * across + j) * piece, block != 0);
        }
      }
    }
  }
  return write_outputs(m, position, across, count, row * tiles.width, weights, out);
}

}  // namespace d2lops::winograd
