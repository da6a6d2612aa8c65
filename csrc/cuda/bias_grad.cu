// The gradient of a bias: the sum of g, masked by the sign of y where a ReLU was fused, over every
// dimension but the second. For (N, C, H, W) images and for (M, N) matrices, in any strides.
//
// Tiling: a block sums a part of the pixels of all images, of one channel, or of up to 32 packets
// of channels that lie side by side. Each of its threads walks over the part with a fixed step, so
// that lanes are neighbours in memory, and with packets of 16 bytes where there are any. A second
// kernel adds the parts of each channel, in double. All sums have one order: how many parts there
// are depends on nothing but the sizes.
//
// Bytes: one read of g (and y). Flops: an addition and a comparison per element. Memory is the
// limit.
#include <algorithm>

#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/index.h"
#include "cuda/launch.h"
#include "operators.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;

// How a sum is cut. Units are packets, of pixels or of channels.
struct Parts {
  bool channels_inside;
  int lanes;            // threads of a block that have different channels; a power of two
  int64_t channels;     // in units
  int64_t units, size;  // to sum up for a channel, and those of a part
  Divider groups;       // of channels
  Divider height, width;
  int64_t rows, columns;
  struct {
    int64_t n, h, w;
  } step;  // of a thread, from one unit to the next
};

// Where a thread is in g or in y, in units.
template <typename T, int N>
class Walk {
 public:
  __device__ __forceinline__ Walk(const Operand<const T>& x, const Parts& parts, int64_t channel,
                                  int64_t n, int64_t h, int64_t w)
      : at_(reinterpret_cast<const Packet<T, N>*>(x.data) + channel * x.c + n * x.n + h * x.h +
            w * x.w),
        step_(parts.step.n * x.n + parts.step.h * x.h + parts.step.w * x.w),
        next_row_(x.h - parts.columns * x.w),
        next_image_(x.n - parts.rows * x.h) {}

  __device__ __forceinline__ Packet<T, N> read() const { return *at_; }
  __device__ __forceinline__ void advance(bool beyond_row, bool beyond_image) {
    at_ += step_ + (beyond_row ? next_row_ : 0) + (beyond_image ? next_image_ : 0);
  }

 private:
  const Packet<T, N>* at_;
  int64_t step_, next_row_, next_image_;
};

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    sum_parts(const __grid_constant__ Parts parts, Operand<const T> g, Operand<const T> y,
              Accumulator<T>* partial) {
  using A = Accumulator<T>;
  const int thread = threadIdx.x, walkers = kThreads / parts.lanes;
  int64_t part = blockIdx.x;
  const int64_t channel = parts.groups.split(part) * parts.lanes + thread % parts.lanes;
  const int64_t first = part * parts.size + thread / parts.lanes;
  const int64_t end = min((part + 1) * parts.size, parts.units);
  A sum[N] = {};
  if (channel < parts.channels) {
    int64_t n = first, w = parts.width.split(n), h = parts.height.split(n);
    Walk<T, N> walk(g, parts, channel, n, h, w), mask(y, parts, channel, n, h, w);
#pragma unroll 4
    for (int64_t unit = first; unit < end; unit += walkers) {
      const Packet<T, N> value = walk.read();
      const Packet<T, N> passes = y.data ? mask.read() : Packet<T, N>{};
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const bool masked = y.data && widen(passes.at[i]) <= 0;
        sum[i] += masked ? A{0} : widen(value.at[i]);
      }
      w += parts.step.w;
      const bool beyond_row = w >= parts.columns;
      w -= beyond_row ? parts.columns : 0;
      h += parts.step.h + beyond_row;
      const bool beyond_image = h >= parts.rows;
      h -= beyond_image ? parts.rows : 0;
      walk.advance(beyond_row, beyond_image);
      mask.advance(beyond_row, beyond_image);
    }
  }
  if (!parts.channels_inside) {
#pragma unroll
    for (int i = 1; i < N; ++i) sum[0] += sum[i];
  }
  // The sums of a channel are added half and half.
  auto& sums = shared_memory<A[N][kThreads]>();
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i][thread] = sum[i];
  for (int half = kThreads / 2; half >= parts.lanes; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i][thread] += sums[i][thread + half];
  }
  if (thread >= parts.lanes || channel >= parts.channels) return;
  const int results = parts.channels_inside ? N : 1;
  for (int i = 0; i < results; ++i) {
    partial[(part * parts.channels + channel) * results + i] = sums[i][thread];
  }
}

// A warp has a channel.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_parts(const Accumulator<T>* partial, int64_t parts, int64_t channels, T* db) {
  const int64_t channel = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  if (channel >= channels) return;
  double sum = 0;
  for (int64_t part = lane; part < parts; part += kLanes) sum += partial[part * channels + channel];
  for (int half = kLanes / 2; half > 0; half /= 2) sum += __shfl_down_sync(~0u, sum, half);
  if (lane == 0) db[channel] = narrow<T>(static_cast<Accumulator<T>>(sum));
}

// About as many parts as keep a GPU busy, but none so small that it does not pay.
Parts cut(const Extent& extent, bool channels_inside) {
  constexpr int64_t enough_blocks = 2048, least_steps = 8;
  Parts parts{};
  parts.channels_inside = channels_inside;
  parts.lanes = 1;
  while (channels_inside && parts.lanes < std::min<int64_t>(kLanes, extent.channels)) {
    parts.lanes *= 2;
  }
  parts.channels = extent.channels;
  parts.units = extent.images * extent.height * extent.width;
  parts.rows = at_least(1, extent.height);  // of nothing, there may be none
  parts.columns = at_least(1, extent.width);
  const int64_t groups = ceil_div(extent.channels, parts.lanes);
  const int64_t step = kThreads / parts.lanes;
  parts.size = std::max(ceil_div(parts.units, ceil_div(enough_blocks, groups)), least_steps * step);
  parts.groups = Divider(groups);
  parts.height = Divider(parts.rows);
  parts.width = Divider(parts.columns);
  parts.step = {step / parts.columns / parts.rows, step / parts.columns % parts.rows,
                step % parts.columns};
  return parts;
}

// `extent` and strides are in packets of N.
template <int N, typename T>
void launch_sums(const Extent& extent, bool channels_inside, const Operand<const T>& g,
                 const Operand<const T>& y, T* db) {
  using A = Accumulator<T>;
  const Parts parts = cut(extent, channels_inside);
  const int64_t channels = extent.channels * (channels_inside ? N : 1);
  const int64_t groups = ceil_div(extent.channels, parts.lanes);
  const int64_t count = ceil_div(parts.units, parts.size);
  const Workspace partial(sizeof(A) * count * channels);
  launch("bias_grad", sum_parts<T, N>, static_cast<unsigned>(groups * count), kThreads,
         sizeof(A) * N * kThreads, parts, g, y, partial.as<A>());
  launch("bias_grad", add_parts<T>, static_cast<unsigned>(ceil_div(channels, kThreads / kLanes)),
         kThreads, 0, partial.as<A>(), count, channels, db);
}

// Whether packets of N are made of channels, or else of pixels in a row.
template <int N, typename T>
bool fits_packets(const Operand<const T>& x, bool channels_inside) {
  const auto [inner, outer] = channels_inside ? Pair{x.c, x.w} : Pair{x.w, x.c};
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  return inner == 1 && outer % N == 0 && x.n % N == 0 && x.h % N == 0 && aligned;
}
template <int N, typename T>
Operand<const T> in_packets(const Operand<const T>& x, bool channels_inside) {
  if (channels_inside) return {{x.n / N, 1, x.h / N, x.w / N}, x.data};
  return {{x.n / N, x.c / N, x.h / N, 1}, x.data};
}

// Describes the same sum with longer rows, if those that follow are in line, in g and in y.
void merge(Extent& extent, Strides& g, Strides& y) {
  const auto in_line = [&](int64_t Strides::* outer) {
    return g.*outer == extent.width * g.w && y.*outer == extent.width * y.w;
  };
  if (extent.height == 1 || in_line(&Strides::h)) {
    extent.width *= extent.height;
    extent.height = 1;
    g.h = y.h = 0;
    if (in_line(&Strides::n)) {
      extent.width *= extent.images;
      extent.images = 1;
    }
  }
  if (extent.images == 1) g.n = y.n = 0;
}

template <typename T>
void bias_grad(Extent extent, Operand<const T> g, Operand<const T> y, T* db) {
  constexpr int N = kPacket<T>;
  merge(extent, g, y);
  const bool channels_inside = g.c == 1 && extent.channels > 1;
  int64_t& inner = channels_inside ? extent.channels : extent.width;
  const auto fits = [&](const auto& x) { return !x.data || fits_packets<N>(x, channels_inside); };
  if (inner % N == 0 && fits(g) && fits(y)) {
    inner /= N;
    launch_sums<N>(extent, channels_inside, in_packets<N>(g, channels_inside),
                   in_packets<N>(y, channels_inside), db);
  } else {
    launch_sums<1>(extent, channels_inside, g, y, db);
  }
}

}  // namespace

void bias_grad(const Extent& extent, const Input& g, const Input& y, const Output& db) {
  if (extent.channels == 0) return;
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    bias_grad(extent, g.as<T>(), y.as<T>(), db.as<T>().data);
  });
}

}  // namespace d2lops
