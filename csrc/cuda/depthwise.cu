// Depthwise cross-correlation: each channel has a window of its own.
//
//   y[n, c, a, b] = bias[c] + sum over r, s of w[c, r, s] x[n, c, a sh + r dh - top, b sw + ...]
//
// and its two adjoints. What is summed up is called a source here, and a sum a target: x and y, or
// in the input gradient g and dx.
//
// Tiling: a thread has a strip of targets, of 16 bytes of channels each where channels lie side by
// side, else of one. A block is a tile of strips, so that the first-level cache serves what windows
// share. For windows of 3, 5 and 7 a side, a thread reads a source once for a whole line of taps,
// with weights from shared memory; for others, once per tap. In the weight gradient, a thread has a
// line of taps and walks over strips; sums of the parts of a batch are added by a second kernel.
//
// In kernels, strips go along h. That is w for channels that lie side by side: then h and w have
// changed places, so that lanes are neighbours in memory in either case.
//
// Flops: 2 R S per element read and written. Memory is the limit for 3 x 3; arithmetic and the
// first-level cache for 7 x 7.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/integer.h"
#include "cuda/depthwise.cuh"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kBlocks = 1056;  // enough to keep a large GPU busy

// Rows or columns.
struct Axis {
  int64_t sources, targets, taps, stride, dilation, before;

  D2LOPS_HOST_DEVICE bool has_source(int64_t at) const {
    return static_cast<uint64_t>(at) < static_cast<uint64_t>(sources);
  }
};

// Absent: a bias, and a mask, the output of a ReLU; where that is not positive, a source counts as
// zero.
template <typename T>
struct Layer {
  Axis rows, columns;
  int64_t images, channels;
  Operand<const T> source, mask, weight;
  Operand<T> target;
  Bias bias{};
  bool relu = false;
};

// Here targets are read, g, and the mask is theirs.
template <typename T>
struct Gradient {
  Axis rows, columns;
  int64_t images, channels;
  Operand<const T> source, mask, target;
  Operand<T> weight;
  int64_t parts = 1;
  Accumulator<T>* partial = nullptr;  // [part][channel][line][tap of the line]

  D2LOPS_HOST_DEVICE int64_t window() const { return rows.taps * columns.taps; }
};

// What is known of a layer's windows, along both axes: taps, one apart, and strides. One tap is
// nothing known. In the adjoint, targets see the sources that see them.
template <int Taps, int Stride, bool Adjoint = false>
struct Window {
  static constexpr int kTaps = Taps, kStride = Stride;
  static constexpr bool kAdjoint = Adjoint;

  // How many sources so many neighbouring targets see, and by which tap, if by any.
  static constexpr int kEarlier = Adjoint ? (Taps - 1) / Stride : 0;
  static constexpr int sources(int targets) {
    return Adjoint ? (targets - 1) / Stride + kEarlier + 1 : (targets - 1) * Stride + Taps;
  }
  static D2LOPS_HOST_DEVICE constexpr int tap(int target, int source) {
    return Adjoint ? target - (source - kEarlier) * Stride : source - target * Stride;
  }

  static __device__ __forceinline__ int64_t stride(const Axis& axis) {
    return Taps > 1 ? Stride : axis.stride;
  }
  // What a target sees through a tap; it may lie outside.
  static __device__ __forceinline__ int64_t source(const Axis& axis, int64_t target, int64_t tap) {
    const int64_t step = stride(axis), shift = tap * axis.dilation - axis.before;
    if (!Adjoint) return target * step + shift;
    return (target - shift) % step == 0 ? (target - shift) / step : axis.sources;
  }
};

// kTargets targets in a column, and the sources that they see through the window's taps.
template <typename W, bool kMasked, typename T, int N>
struct Strip {
  // As registers allow.
  static constexpr int kTargets = N == 1 ? 8 : W::sources(4) + 3 * kMasked <= 10 ? 4 : 2;
  static constexpr int kSources = W::sources(kTargets);

  int64_t target, source = 0;  // the first ones
  int64_t target_step = 1, source_step = 1;
  uint32_t inside = 0;  // a bit for each source

  // In the adjoint, all targets of a strip have the same phase of the stride, or a known one.
  static D2LOPS_HOST_DEVICE int64_t phases(const Axis& rows) {
    return at_most(rows.stride, rows.targets);
  }
  static D2LOPS_HOST_DEVICE int64_t count(const Axis& rows) {
    if (!W::kAdjoint) return ceil_div(rows.targets, kTargets);
    if (W::kTaps > 1) return ceil_div(rows.targets + rows.before % W::kStride, kTargets);
    return phases(rows) * ceil_div(ceil_div(rows.targets, rows.stride), kTargets);
  }
  __device__ __forceinline__ Strip(const Axis& rows, int64_t index) : target(index * kTargets) {
    if (W::kTaps == 1) (W::kAdjoint ? target_step : source_step) = rows.stride;
    if (W::kAdjoint && W::kTaps > 1) target -= rows.before % W::kStride;
    if (W::kAdjoint && W::kTaps == 1) {
      target = index % phases(rows) + index / phases(rows) * kTargets * rows.stride;
    }
  }

  // Through the taps from this one on.
  __device__ __forceinline__ void look(const Axis& rows, int64_t tap) {
    source = W::source(rows, target, tap) - W::kEarlier;
    inside = 0;
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      inside |= uint32_t{rows.has_source(source + i * source_step)} << i;
    }
  }
};

template <typename T>
D2LOPS_HOST_DEVICE T* at(const Operand<T>& x, int64_t n, int64_t c, int64_t h, int64_t w) {
  return x.data + (n * x.n + c * x.c + h * x.h + w * x.w);
}

// A packet, or zeros. It is moved as words, or else the compiler would give each 16-bit number a
// register of its own.
template <int N, typename T>
__device__ __forceinline__ Packet<T, N> load_if(bool inside, const T* from) {
  using Word = std::conditional_t<N == 1, T, uint32_t>;
  constexpr int kWords = N * sizeof(T) / sizeof(Word);
  Packet<Word, kWords> words{};
  if (inside) words = load<kWords>(reinterpret_cast<const Word*>(from));
  Packet<T, N> packet;
  memcpy(&packet, &words, sizeof packet);
  return packet;
}

// Packets of a column, so many rows apart, of which `inside` has a bit each. No branches: all loads
// may be on their way at once.
template <bool kMasked, int kCount, typename T, int N>
__device__ __forceinline__ void read(Packet<T, N> (&to)[kCount], uint32_t inside,
                                     const Operand<const T>& x, const Operand<const T>& mask,
                                     int64_t n, int64_t c, int64_t h, int64_t w, int64_t step) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    to[i] = load_if<N>(inside >> i & 1, at(x, n, c, h, w) + i * step * x.h);
    if constexpr (kMasked) {
      const auto pass = load_if<N>(inside >> i & 1, at(mask, n, c, h, w) + i * step * mask.h);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (widen(pass.at[k]) <= 0) to[i].at[k] = {};
      }
    }
  }
}

// Of some things, those that a block has: at most so many, but the same in all blocks.
struct Share {
  int64_t total;
  unsigned blocks;
  int in_block;

  Share(int64_t total, int64_t most)
      : total(total),
        blocks(static_cast<unsigned>(ceil_div(total, most))),
        in_block(static_cast<int>(ceil_div(total, blocks))) {}
};

// How a layer is cut into blocks and threads. `middle` is strips, or lines of taps.
struct Cut {
  Share packets, middle, columns;
  bool channels_inside;  // the fastest ones, else columns are

  int threads() const { return packets.in_block * middle.in_block * columns.in_block; }
  unsigned count(int64_t times) const {
    return static_cast<unsigned>(times * packets.blocks * middle.blocks * columns.blocks);
  }
};

__device__ __forceinline__ unsigned take(unsigned& number, unsigned size) {
  const unsigned digit = number % size;
  number /= size;
  return digit;
}

// What a thread has: its number in the block, and in all.
struct Place {
  unsigned packet_here, middle_here, column_here;
  int64_t packet, middle, column, rest;  // the rest of the block's number

  __device__ __forceinline__ explicit Place(const Cut& cut) {
    unsigned thread = threadIdx.x, block = blockIdx.x;
    if (cut.channels_inside) packet_here = take(thread, cut.packets.in_block);
    if (!cut.channels_inside) column_here = take(thread, cut.columns.in_block);
    middle_here = take(thread, cut.middle.in_block);
    (cut.channels_inside ? column_here : packet_here) = thread;
    const auto first = [&](const Share& share) {
      return int64_t{take(block, share.blocks)} * share.in_block;
    };
    packet = first(cut.packets) + packet_here;
    middle = first(cut.middle) + middle_here;
    column = first(cut.columns) + column_here;
    rest = block;
  }
  __device__ __forceinline__ bool exists(const Cut& cut) const {
    return packet < cut.packets.total && middle < cut.middle.total && column < cut.columns.total;
  }
};

// Weights of a block's channels, [tap][channel].
template <int kTaps, typename T>
__device__ void stage_weights(const Layer<T>& layer, int64_t first, int width,
                              Accumulator<T>* weights) {
  for (int i = threadIdx.x; i < kTaps * kTaps * width; i += blockDim.x) {
    const int c = i / (kTaps * kTaps), tap = i % (kTaps * kTaps);
    if (first + c >= layer.channels) break;
    weights[tap * width + c] = widen(*at(layer.weight, first + c, 0, tap / kTaps, tap % kTaps));
  }
  __syncthreads();
}

template <typename W, bool kMasked, typename T, int N>
__global__ __launch_bounds__(kThreads,
                             2) void depthwise_kernel(const __grid_constant__ Layer<T> layer,
                                                      const __grid_constant__ Cut cut) {
  using A = Accumulator<T>;
  using S = Strip<W, kMasked, T, N>;
  const Place place(cut);
  const int64_t channel = place.packet * N;
  const int width = cut.packets.in_block * N, here = place.packet_here * N;
  A* const weights = &shared_memory<A>();
  if constexpr (W::kTaps > 1) stage_weights<W::kTaps>(layer, channel - here, width, weights);
  if (!place.exists(cut)) return;
  const auto weight_of = [&](int64_t r, int64_t s) {
    if constexpr (W::kTaps > 1) {
      return load<N>(weights + (r * W::kTaps + s) * width + here);
    } else {
      Packet<A, N> weight;
      for (int c = 0; c < N; ++c) weight.at[c] = widen(*at(layer.weight, channel + c, 0, r, s));
      return weight;
    }
  };

  S strip(layer.rows, place.middle);
  A sum[S::kTargets][N] = {};
  if (const auto* bias = static_cast<const T*>(layer.bias.data)) {
#pragma unroll
    for (int i = 0; i < S::kTargets * N; ++i) {
      sum[i / N][i % N] = widen(bias[(channel + i % N) * layer.bias.stride]);
    }
  }
  for (int64_t r = 0; r < layer.rows.taps; r += W::kTaps) {
    strip.look(layer.rows, r);
#pragma unroll 1
    for (int64_t s = 0; s < layer.columns.taps; ++s) {
      const int64_t w = W::source(layer.columns, place.column, s);
      if (!layer.columns.has_source(w)) continue;
      Packet<T, N> seen[S::kSources];
      read<kMasked>(seen, strip.inside, layer.source, layer.mask, place.rest, channel, strip.source,
                    w, strip.source_step);
#pragma unroll
      for (int tap = 0; tap < W::kTaps; ++tap) {
        const Packet<A, N> weight = weight_of(r + tap, s);
#pragma unroll
        for (int i = 0; i < S::kTargets * S::kSources * N; ++i) {
          const int target = i / N / S::kSources, source = i / N % S::kSources, c = i % N;
          if (W::tap(target, source) == tap) {
            sum[target][c] += weight.at[c] * widen(seen[source].at[c]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::kTargets; ++i) {
    Packet<T, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c) {
      result.at[c] = narrow<T>(layer.relu && sum[i][c] < 0 ? 0 : sum[i][c]);  // NaN stays NaN
    }
    const int64_t h = strip.target + i * strip.target_step;
    if (h < 0 || h >= layer.rows.targets) continue;
    store(at(layer.target, place.rest, channel, h, place.column), result);
  }
}

// Adds up the sums of a block's columns, each of which a thread has.
template <int N, int kTaps, typename T>
__device__ void add_columns(const Gradient<T>& gradient, const Cut& cut, const Place& place,
                            const Accumulator<T> (&sum)[kTaps][N]) {
  // [tap of the line][channel of the packet][packet][line][column]
  auto* const sums = &shared_memory<Accumulator<T>>();
  const int lines = cut.middle.in_block, columns = cut.columns.in_block;
  const int rows = cut.packets.in_block * lines;
  const int mine = (place.packet_here * lines + place.middle_here) * columns + place.column_here;
#pragma unroll
  for (int i = 0; i < kTaps * N; ++i) sums[i * rows * columns + mine] = sum[i / N][i % N];
  __syncthreads();
  for (int i = threadIdx.x; i < kTaps * N * rows; i += blockDim.x) {
    const int which = i / rows, row = i % rows;
    const int64_t packet = place.packet - place.packet_here + row / lines;
    const int64_t line = place.middle - place.middle_here + row % lines;
    if (packet >= cut.packets.total || line >= cut.middle.total) continue;
    Accumulator<T> total = 0;
    for (int j = 0; j < columns; ++j) total += sums[i * columns + j];
    const int64_t channel = place.rest * gradient.channels + packet * N + which % N;
    gradient.partial[channel * gradient.window() + line * kTaps + which / N] = total;
  }
}

// Lines are rows or columns of the window; of an unknown window, single taps.
template <typename W, bool kMasked, typename T, int N>
__global__ __launch_bounds__(kThreads, 2) void weight_grad_kernel(
    const __grid_constant__ Gradient<T> gradient, const __grid_constant__ Cut cut) {
  using S = Strip<W, kMasked, T, N>;
  const Axis &rows = gradient.rows, &columns = gradient.columns;
  const Place place(cut);
  const int64_t channel = place.packet * N, strips = S::count(rows);
  const int64_t begin = place.rest * gradient.images * strips / gradient.parts;
  const int64_t end = (place.rest + 1) * gradient.images * strips / gradient.parts;
  Accumulator<T> sum[W::kTaps][N] = {};
  for (int64_t b = place.column; b < columns.targets; b += cut.columns.in_block) {
    const int64_t w = W::source(columns, b, place.middle % columns.taps);
    if (!place.exists(cut) || !columns.has_source(w)) continue;
    int64_t image = begin / strips, index = begin % strips;
    for (int64_t i = begin; i < end; ++i) {
      S strip(rows, index);
      strip.look(rows, place.middle / columns.taps);
      const int64_t count = min(int64_t{S::kTargets}, rows.targets - strip.target);
      Packet<T, N> x[S::kSources], g[S::kTargets];
      read<false>(x, strip.inside, gradient.source, {}, image, channel, strip.source, w,
                  strip.source_step);
      read<kMasked>(g, (1u << count) - 1, gradient.target, gradient.mask, image, channel,
                    strip.target, b, 1);
#pragma unroll
      for (int j = 0; j < S::kTargets; ++j) {
        if (j >= count) break;  // what is not there must not meet an infinity, even as a zero
#pragma unroll
        for (int k = 0; k < W::kTaps * N; ++k) {
          sum[k / N][k % N] += widen(g[j].at[k % N]) * widen(x[j * W::kStride + k / N].at[k % N]);
        }
      }
      if (++index == strips) index = 0, ++image;
    }
  }
  add_columns(gradient, cut, place, sum);
}

// Adds up the parts; a warp has a weight.
template <typename T>
__global__ __launch_bounds__(kThreads) void add_parts_kernel(
    const __grid_constant__ Gradient<T> gradient, int taps) {
  const int64_t weights = gradient.channels * gradient.window();
  const int64_t weight = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (weight >= weights) return;
  double sum = 0;
  const int lane = threadIdx.x % kWarp;
  for (int64_t part = lane; part < gradient.parts; part += kWarp) {
    sum += gradient.partial[part * weights + weight];
  }
  for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(~0u, sum, half);
  if (lane != 0) return;
  const int64_t c = weight / gradient.window(), line = weight % gradient.window() / taps;
  const int64_t r = line / gradient.columns.taps + weight % taps, s = line % gradient.columns.taps;
  *at(gradient.weight, c, 0, r, s) = narrow<T>(static_cast<Accumulator<T>>(sum));
}

// Neighbouring threads are neighbours in memory. A column's strips are neighbours, too.
template <int N>
Cut cut(bool channels_inside, int64_t channels, int64_t middle, int64_t columns) {
  if (channels_inside) {
    const Share p(channels / N, N > 1 ? 8 : kWarp), m(middle, 4);
    return {p, m, {columns, kThreads / (p.in_block * m.in_block)}, true};
  }
  const Share c(columns, 2 * kWarp), m(middle, kThreads / c.in_block);
  return {{channels / N, kThreads / (c.in_block * m.in_block)}, m, c, false};
}

// Calls f with what is known of the windows. Gradients are checked in double; nobody trains in it.
template <typename T, bool kAdjoint, typename F>
void dispatch_window(const Axis& rows, const Axis& columns, F&& f) {
  const auto run_known = [&](auto window) {
    using W = decltype(window);
    for (const Axis* axis : {&rows, &columns}) {
      if (axis->taps != W::kTaps || axis->stride != W::kStride || axis->dilation != 1) return false;
    }
    f(window);
    return true;
  };
  if constexpr (sizeof(T) < 8) {
    if (run_known(Window<3, 2, kAdjoint>{}) || run_known(Window<5, 2, kAdjoint>{})) return;
    if constexpr (!kAdjoint) {  // with strides of 1, the adjoint is a layer
      if (run_known(Window<3, 1>{}) || run_known(Window<5, 1>{}) || run_known(Window<7, 1>{}))
        return;
    }
  }
  f(Window<1, 1, kAdjoint>{});
}

template <typename W, bool kMasked, int N, typename T>
void launch_sums(const char* name, const Layer<T>& layer, bool channels_inside) {
  const int64_t strips = Strip<W, kMasked, T, N>::count(layer.rows);
  const Cut blocks = cut<N>(channels_inside, layer.channels, strips, layer.columns.targets);
  const int weights = W::kTaps > 1 ? W::kTaps * W::kTaps * blocks.packets.in_block * N : 0;
  launch(name, depthwise_kernel<W, kMasked, T, N>, blocks.count(layer.images), blocks.threads(),
         weights * sizeof(Accumulator<T>), layer, blocks);
}

template <typename W, bool kMasked, int N, typename T>
void launch_weight_grad(Gradient<T> gradient, bool channels_inside) {
  using A = Accumulator<T>;
  const char* name = "depthwise_weight_grad";
  Cut blocks = cut<N>(channels_inside, gradient.channels, gradient.window() / W::kTaps,
                      gradient.columns.targets);
  blocks.columns = {blocks.columns.in_block, blocks.columns.in_block};  // and threads walk
  gradient.parts =
      std::clamp<int64_t>(gradient.images * Strip<W, kMasked, T, N>::count(gradient.rows), 1,
                          ceil_div(kBlocks, blocks.count(1)));
  const int64_t weights = gradient.channels * gradient.window();
  const Workspace partial(gradient.parts * weights * sizeof(A));
  gradient.partial = partial.as<A>();
  launch(name, weight_grad_kernel<W, kMasked, T, N>, blocks.count(gradient.parts), blocks.threads(),
         W::kTaps * N * blocks.threads() * sizeof(A), gradient, blocks);
  launch(name, add_parts_kernel<T>, static_cast<unsigned>(ceil_div(weights, kThreads / kWarp)),
         kThreads, 0, gradient, W::kTaps);
}

// Calls f(window, packet, channels inside) with what is known of the layer, which it turns so that
// strips go along h. Packets are N numbers, or 1.
template <typename T, int N, bool kAdjoint, typename L, typename F>
void arrange(L& layer, F&& f) {
  const bool channels_inside = layer.source.c == 1 && layer.target.c == 1 && layer.channels > 1;
  const auto fits = [&](const auto& x) { return fits_packets<N>(x, layer.channels); };
  const bool packed =
      fits(layer.source) && fits(layer.target) && (!layer.mask.data || fits(layer.mask));
  if (channels_inside) {
    std::swap(layer.rows, layer.columns);
    for (Strides* s : std::initializer_list<Strides*>{&layer.source, &layer.mask, &layer.target,
                                                      &layer.weight}) {
      std::swap(s->h, s->w);
    }
  }
  dispatch_window<T, kAdjoint>(layer.rows, layer.columns, [&](auto window) {
    if (packed) return f(window, std::integral_constant<int, N>{}, channels_inside);
    f(window, std::integral_constant<int, 1>{}, channels_inside);
  });
}

template <bool kAdjoint, typename T>
void run_sums(const char* name, Layer<T> layer) {
  if (layer.images == 0) return;
  arrange<T, kPacket<T>, kAdjoint>(layer, [&](auto window, auto packet, bool channels_inside) {
    using W = decltype(window);
    if constexpr (kAdjoint || W::kStride == 1) {  // there are no others with a mask
      if (layer.mask.data) return launch_sums<W, true, packet()>(name, layer, channels_inside);
    }
    launch_sums<W, false, packet()>(name, layer, channels_inside);
  });
}

Axis axis(const Geometry& geo, int64_t Pair::* of) {
  return {geo.input.*of,  geo.output.*of,   geo.kernel.*of,
          geo.stride.*of, geo.dilation.*of, geo.before.*of};
}

}  // namespace

void depthwise(const Geometry& geo, const Input& x, const Input& weight, const Bias& bias,
               bool relu, const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    run_sums<false>("depthwise", Layer<T>{axis(geo, &Pair::h),
                                          axis(geo, &Pair::w),
                                          geo.images,
                                          geo.groups,
                                          x.as<T>(),
                                          {},
                                          weight.as<T>(),
                                          y.as<T>(),
                                          bias,
                                          relu});
  });
}

void depthwise_input_grad(const Geometry& geo, const Input& g, const Input& y, const Input& weight,
                          const Output& dx) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    const char* name = "depthwise_input_grad";
    Layer<T> layer{axis(geo, &Pair::h), axis(geo, &Pair::w), geo.images,     geo.groups,
                   g.as<T>(),           y.as<T>(),           weight.as<T>(), dx.as<T>()};
    for (Axis* axis : {&layer.rows, &layer.columns}) std::swap(axis->sources, axis->targets);
    if (geo.stride.h > 1 || geo.stride.w > 1) return run_sums<true>(name, layer);
    // With strides of 1, the adjoint is a layer whose window is turned round.
    layer.weight.data = at(layer.weight, 0, 0, geo.kernel.h - 1, geo.kernel.w - 1);
    layer.weight.h *= -1;
    layer.weight.w *= -1;
    for (Axis* axis : {&layer.rows, &layer.columns}) {
      axis->before = axis->dilation * (axis->taps - 1) - axis->before;
    }
    run_sums<false>(name, layer);
  });
}

void depthwise_weight_grad(const Geometry& geo, const Input& g, const Input& y, const Input& x,
                           const Output& dw) {
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    Gradient<T> gradient{axis(geo, &Pair::h), axis(geo, &Pair::w), geo.images, geo.groups,
                         x.as<T>(),           y.as<T>(),           g.as<T>(),  dw.as<T>()};
    // A thread has sums for a line of taps; packets of 16 bytes would be more than registers hold.
    arrange<T, std::min(kPacket<T>, 4), false>(
        gradient, [&](auto window, auto packet, bool inside) {
          using W = decltype(window);
          if (y.data) return launch_weight_grad<W, true, packet()>(gradient, inside);
          launch_weight_grad<W, false, packet()>(gradient, inside);
        });
  });
}

}  // namespace d2lops
