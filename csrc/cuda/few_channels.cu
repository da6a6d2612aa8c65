// Cross-correlation of an image of few channels:
//
//   y[n, k, a, b] = bias[k] + sum over c, r, s of w[k, c, r, s] x[n, c, a sh + r dh - top, ...]
//
// Tiling: a thread has 8 pixels of a column times 8 outputs in registers, a warp 32 columns of
// them, and a block up to 8 warps: first for other outputs, then for more rows. One channel at a
// time, the block copies the image under its tile, and its weights, into shared memory, where each
// number is read by as many threads as use it. Columns lie there by their phase of the stride, so
// that lanes read neighbours, and weights by tap, so that a warp reads 8 of them at once.
//
// Flops: 2 C R S per output; a warp reads shared memory 10 times for 64 multiply-adds. Arithmetic
// is the limit, or for a few taps, writing y.
#include <algorithm>

#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/few_channels.cuh"
#include "cuda/launch.h"

namespace d2lops {
namespace {

constexpr int kWarp = 32, kWarps = 8;
constexpr int kPixels = 8;
template <typename T>
constexpr int kOutputs = sizeof(T) < 8 ? 8 : 4;
template <typename T>
constexpr int kRun = std::min(kPacket<T>, kOutputs<T>);  // outputs that are written at once

// How a layer is cut, by its sizes.
struct Cut {
  int groups, levels;     // warps of a block that have different outputs, and rows
  int64_t rows, columns;  // of the image, under a tile
  int64_t pitch;          // columns of a phase
  uint32_t blocks_of_outputs, tiles_down, tiles_across;

  Cut(const Geometry& geo, int outputs) {
    const auto evenly = [](int64_t count, int64_t most) {
      return static_cast<int>(ceil_div(count, ceil_div(count, most)));
    };
    groups = evenly(ceil_div(geo.out, outputs), kWarps);
    levels = evenly(ceil_div(geo.output.h, kPixels), kWarps / groups);
    blocks_of_outputs = static_cast<uint32_t>(ceil_div(geo.out, groups * outputs));
    tiles_down = static_cast<uint32_t>(ceil_div(geo.output.h, levels * kPixels));
    tiles_across = static_cast<uint32_t>(ceil_div(geo.output.w, kWarp));
    rows = (levels * kPixels - 1) * geo.stride.h + (geo.kernel.h - 1) * geo.dilation.h + 1;
    columns = (kWarp - 1) * geo.stride.w + (geo.kernel.w - 1) * geo.dilation.w + 1;
    pitch = ceil_div(columns, geo.stride.w);
  }
  // Of shared memory, for weights and image.
  int64_t numbers(const Geometry& geo, int outputs) const {
    return geo.kernel.h * geo.kernel.w * groups * outputs + rows * pitch * geo.stride.w;
  }
};

template <typename T>
struct Layer {
  Geometry geo;
  Cut cut;
  Operand<const T> x, weight;
  Operand<T> y;
  const T* bias;
  int64_t bias_stride;
  bool relu, packets;  // whether outputs lie in packets
};

// What is outside the image is zero.
template <typename T>
__device__ void stage_image(const Layer<T>& layer, int64_t n, int64_t c, int64_t top, int64_t left,
                            Accumulator<T>* image) {
  const Pair& size = layer.geo.input;
  const int columns = static_cast<int>(layer.cut.columns);
  const int stride = static_cast<int>(layer.geo.stride.w);
  const T* const from = layer.x.data + (n * layer.x.n + c * layer.x.c);
  for (int i = threadIdx.x; i < layer.cut.rows * columns; i += blockDim.x) {
    const int row = i / columns, column = i % columns;
    const int64_t h = top + row, w = left + column;
    const bool inside = h >= 0 && h < size.h && w >= 0 && w < size.w;
    image[(row * stride + column % stride) * layer.cut.pitch + column / stride] =
        inside ? widen(from[h * layer.x.h + w * layer.x.w]) : 0;
  }
}

// [tap][output]; there may be fewer outputs than threads have.
template <typename T>
__device__ void stage_weights(const Layer<T>& layer, int64_t first, int64_t c,
                              Accumulator<T>* weights) {
  const int width = layer.cut.groups * kOutputs<T>, across = static_cast<int>(layer.geo.kernel.w);
  const int taps = static_cast<int>(layer.geo.kernel.h) * across;
  for (int i = threadIdx.x; i < taps * width; i += blockDim.x) {
    const int k = i / taps, tap = i % taps;
    const T* const from = layer.weight.data + ((first + k) * layer.weight.n + c * layer.weight.c);
    weights[tap * width + k] =
        first + k >= layer.geo.out
            ? 0
            : widen(from[tap / across * layer.weight.h + tap % across * layer.weight.w]);
  }
}

// A thread's outputs of one pixel.
template <typename T>
__device__ void write(const Layer<T>& layer, int64_t first, T* y,
                      const Accumulator<T> (&sum)[kOutputs<T>]) {
  constexpr int N = kRun<T>;
#pragma unroll
  for (int k = 0; k < kOutputs<T>; k += N) {
    Packet<T, N> results;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool none = layer.relu && sum[k + i] < 0;  // NaN stays NaN
      results.at[i] = narrow<T>(none ? 0 : sum[k + i]);
    }
    if (layer.packets && first + k + N <= layer.geo.out) {
      store(y + (first + k), results);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (first + k + i < layer.geo.out) y[(first + k + i) * layer.y.c] = results.at[i];
      }
    }
  }
}

template <typename T>
__global__ __launch_bounds__(kWarps* kWarp,
                             2) void few_channels_kernel(const __grid_constant__ Layer<T> layer) {
  using A = Accumulator<T>;
  constexpr int K = kOutputs<T>;
  const Geometry& geo = layer.geo;
  const Cut& cut = layer.cut;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int group = warp % cut.groups, level = warp / cut.groups, width = cut.groups * K;
  uint32_t block = blockIdx.x;
  const auto take = [&block](uint32_t size) {
    const uint32_t digit = block % size;
    block /= size;
    return int64_t{digit};
  };
  const int64_t first = take(cut.blocks_of_outputs) * width, b = take(cut.tiles_across) * kWarp;
  const int64_t a = take(cut.tiles_down) * cut.levels * kPixels, n = block;

  A* const weights = &shared_memory<A>();
  A* const image = weights + geo.kernel.h * geo.kernel.w * width;
  const int row = static_cast<int>(cut.pitch * geo.stride.w);  // of the image in shared memory
  const int step = static_cast<int>(geo.stride.h) * row;
  // From a tap to the next: so many phases, and so far.
  const int stride = static_cast<int>(geo.stride.w), dilation = static_cast<int>(geo.dilation.w);
  const int phases = dilation % stride;
  const int jump = static_cast<int>(phases * cut.pitch) + dilation / stride;
  A sum[kPixels][K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t output = first + group * K + k;
    const bool biased = layer.bias && output < geo.out;
    sum[0][k] = biased ? widen(layer.bias[output * layer.bias_stride]) : 0;
#pragma unroll
    for (int i = 1; i < kPixels; ++i) sum[i][k] = sum[0][k];
  }
  for (int64_t c = 0; c < geo.in; ++c) {
    if (c > 0) __syncthreads();
    stage_image(layer, n, c, a * geo.stride.h - geo.before.h, b * geo.stride.w - geo.before.w,
                image);
    stage_weights(layer, first, c, weights);
    __syncthreads();
    const A* weight = weights + group * K;
    for (int r = 0; r < geo.kernel.h; ++r) {
      const A* from = image + (level * kPixels * step + r * geo.dilation.h * row + lane);
      int phase = 0;
#pragma unroll 1
      for (int s = 0; s < geo.kernel.w; ++s, weight += width) {
        const auto w = load<K>(weight);
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          const A x = from[i * step];
#pragma unroll
          for (int k = 0; k < K; ++k) sum[i][k] += w.at[k] * x;
        }
        phase += phases;
        from += jump;
        if (phase >= stride) phase -= stride, from += 1 - row;
      }
    }
  }
  if (b + lane >= geo.output.w) return;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int64_t h = a + level * kPixels + i;
    if (h >= geo.output.h) break;
    write(layer, first + group * K,
          layer.y.data + (n * layer.y.n + h * layer.y.h + (b + lane) * layer.y.w), sum[i]);
  }
}

}  // namespace

// And a tile that fits into the shared memory of any GPU, whatever the element type.
bool has_few_channels(const Geometry& geo) {
  constexpr int64_t most_steps = 64, most_taps = 128, most_shared = 96 * 1024;
  const auto is_small = [&](const Pair& pair, int64_t most) {
    return std::max(pair.h, pair.w) <= most;
  };
  if (geo.groups > 1 || geo.in == 0 || geo.in > 4 || !is_small(geo.kernel, most_taps) ||
      !is_small(geo.stride, most_steps) || !is_small(geo.dilation, most_steps)) {
    return false;
  }
  const auto fits = [&](int outputs, int64_t size) {
    return Cut(geo, outputs).numbers(geo, outputs) * size <= most_shared;
  };
  return fits(kOutputs<float>, sizeof(float)) && fits(kOutputs<double>, sizeof(double));
}

void corr2d_of_few_channels(const Geometry& geo, const Input& x, const Input& weight,
                            const Bias& bias, bool relu, const Output& y) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int K = kOutputs<T>;
    constexpr int N = kRun<T>;
    const Cut cut(geo, K);
    const bool packets = y.c == 1 && y.n % N == 0 && y.h % N == 0 && y.w % N == 0 &&
                         reinterpret_cast<uintptr_t>(y.data) % (N * sizeof(T)) == 0;
    const Layer<T> layer{
        geo,         cut,  x.as<T>(), weight.as<T>(), y.as<T>(), static_cast<const T*>(bias.data),
        bias.stride, relu, packets};
    const int64_t blocks = geo.images * cut.tiles_down * cut.tiles_across * cut.blocks_of_outputs;
    launch("few_channels", few_channels_kernel<T>, static_cast<unsigned>(blocks),
           cut.groups * cut.levels * kWarp, cut.numbers(geo, K) * sizeof(Accumulator<T>), layer);
  });
}

}  // namespace d2lops
