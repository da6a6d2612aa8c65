// Dropout (D2L 5.6):  y[e] = keep[e] x[e] / (1 - p),  keep[e] = (word e mod 4 of Philox(seed, e div
// 4)) >= ceil(p 2^32)
//
// e is the logical, row-major index of an element, whatever the strides, so the mask is the CPU's.
// The seed is read where it lies, by the kernel: a captured graph draws a new mask at every replay.
//
// Tiling: contiguous tensors are cut into tiles, of which every thread has two spots of one or two
// groups of four words; blocks stay and walk from tile to tile. In others (channels_last, slices) a
// thread has four logical neighbours, which share a group, of each element of a 16-byte packet of
// what lies side by side; threads follow the order of the memory.
//
// Bytes: one read and one write per element. Arithmetic: a group takes about 23 integer
// multiplications and 38 other instructions. That hides behind memory for elements of 4 and 8
// bytes; those of 2 bytes need about as long for either.
#include <algorithm>
#include <vector>

#include "common/integer.h"
#include "common/philox.h"
#include "cuda/device.h"
#include "cuda/index.h"
#include "cuda/launch.h"
#include "operators.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 5;  // that stay on a multiprocessor; any since 8.0 has room for them
constexpr int kGroup = 4;   // words of one counter

// What a kernel is told once, and what it asks per element.
template <typename T>
struct Dropout {
  using A = Accumulator<T>;
  const int64_t* seed;
  uint32_t threshold;
  A scale;

  __device__ __forceinline__ uint32_t kept_of_group(uint64_t counter, uint64_t key) const {
    const auto words =
        philox(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), key);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) bits |= uint32_t{words.word[i] >= threshold} << i;
    return bits;
  }

  // Bit i tells whether element first + i is kept, for i < count. Off the groups' grid, that takes
  // one group more.
  template <int count>
  __device__ __forceinline__ uint32_t kept(uint64_t first, uint64_t key) const {
    static_assert(count % kGroup == 0 && count + kGroup <= 32);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < count; i += kGroup) bits |= kept_of_group((first + i) / kGroup, key) << i;
    if (first % kGroup != 0) {
      bits |= kept_of_group((first + count) / kGroup, key) << count;
      bits >>= first % kGroup;
    }
    return bits;
  }

  __device__ __forceinline__ T apply(T x, bool keep) const {
    return keep ? narrow<T>(widen(x) * scale) : T{};
  }
};

// Elements that a thread has side by side: whole packets, and whole groups.
template <typename T>
constexpr int kSpot = kPacket<T> > kGroup ? kPacket<T> : kGroup;
constexpr int kSpots = 2;  // per tile
template <typename T>
constexpr int64_t kTile = kSpots * kThreads * kSpot<T>;

// N elements are accessed at once.
template <typename T, int N>
__device__ __forceinline__ void whole_tile(const Dropout<T>& op, const T* x, T* y, uint64_t first,
                                           uint64_t key) {
  constexpr int apart = kThreads * kSpot<T>;
  Packet<T, N> packet[kSpots][kSpot<T> / N];
#pragma unroll
  for (int s = 0; s < kSpots; ++s) {
#pragma unroll
    for (int i = 0; i < kSpot<T> / N; ++i) packet[s][i] = load<N>(x + first + s * apart + i * N);
  }
#pragma unroll
  for (int s = 0; s < kSpots; ++s) {
    const uint32_t keep = op.template kept<kSpot<T>>(first + s * apart, key);
#pragma unroll
    for (int i = 0; i < kSpot<T>; ++i) {
      T& element = packet[s][i / N].at[i % N];
      element = op.apply(element, keep >> i & 1);
    }
#pragma unroll
    for (int i = 0; i < kSpot<T> / N; ++i) store(y + first + s * apart + i * N, packet[s][i]);
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, kBlocks)
    dropout_dense(Dropout<T> op, const T* x, T* y, int64_t count) {
  const uint64_t key = *op.seed;
  for (int64_t tile = blockIdx.x; tile * kTile<T> < count; tile += gridDim.x) {
    int64_t first = tile * kTile<T> + threadIdx.x * kSpot<T>;
    if ((tile + 1) * kTile<T> <= count) {
      whole_tile<T, N>(op, x, y, first, key);
      continue;
    }
    for (int s = 0; s < kSpots && first < count; ++s, first += kThreads * kSpot<T>) {
      const uint32_t keep = op.template kept<kSpot<T>>(first, key);
      for (int i = 0; i < kSpot<T> && first + i < count; ++i) {
        y[first + i] = op.apply(x[first + i], keep >> i & 1);
      }
    }
  }
}

// Where the threads of a strided tensor are. No tensor that fits a GPU's memory has more dimensions
// of two or more elements than kMostAxes.
constexpr int kMostAxes = 40;
struct Places {
  struct Axis {
    Divider size;
    int64_t x_stride, y_stride, logical_stride;
  };
  Axis axes[kMostAxes];
  int count = 0;
  int inner = -1;  // number of the axis that steps over groups of logical neighbours, if any
  int64_t neighbours, x_stride, y_stride;
  int64_t apart;    // logical distance of the elements of a packet
  int64_t threads;  // all of them
};

// A packet is N elements that lie side by side, which are no logical neighbours.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    dropout_strided(Dropout<T> op, const T* x, T* y, const __grid_constant__ Places places) {
  int64_t rest = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (rest >= places.threads) return;
  const uint64_t key = *op.seed;
  int64_t logical = 0, left = places.neighbours;
  for (int a = 0; a < places.count; ++a) {
    const auto& axis = places.axes[a];
    const int64_t i = axis.size.split(rest);
    x += i * axis.x_stride;
    y += i * axis.y_stride;
    logical += i * axis.logical_stride;
    if (a == places.inner) left -= i * kGroup;
  }
  Packet<T, N> packet[kGroup] = {};
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j < left) packet[j] = load<N>(x + j * places.x_stride);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint32_t keep = op.template kept<kGroup>(logical + i * places.apart, key);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      packet[j].at[i] = op.apply(packet[j].at[i], keep >> j & 1);
    }
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j < left) store(y + j * places.y_stride, packet[j]);
  }
}

template <typename T>
bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

template <typename T>
void launch_dense(const Dropout<T>& op, const T* x, T* y, int64_t count) {
  const int64_t resident = kBlocks * current_device().multiprocessors;
  const int64_t blocks = std::min(ceil_div(count, kTile<T>), resident);
  const auto kernel = aligned(x) && aligned(y) ? dropout_dense<T, kPacket<T>> : dropout_dense<T, 1>;
  launch("dropout", kernel, static_cast<unsigned>(blocks), kThreads, 0, op, x, y, count);
}

// The dimension whose elements can be accessed in packets, or the last one, whose neighbours share
// groups.
template <typename T>
std::vector<Dim>::iterator find_packed(const T* x, const T* y, std::vector<Dim>& dims) {
  constexpr int packet = kPacket<T>;
  const auto last = dims.end() - 1;
  const auto packed = std::find_if(dims.begin(), last, [](const Dim& dim) {
    return dim.x_stride == 1 && dim.y_stride == 1 && dim.size % packet == 0;
  });
  const bool fits = std::all_of(dims.begin(), dims.end(), [&](const Dim& dim) {
    return &dim == &*packed || (dim.x_stride % packet == 0 && dim.y_stride % packet == 0);
  });
  return fits && aligned(x) && aligned(y) ? packed : last;
}

// `dims` are in units of packets, `apart` logical indices apart.
template <typename T, int N>
void launch_packets(const Dropout<T>& op, const T* x, T* y, std::vector<Dim> dims, int64_t apart,
                    int64_t threads) {
  Places places;
  Dim& inner = dims.back();
  places.neighbours = inner.size;
  places.x_stride = inner.x_stride;
  places.y_stride = inner.y_stride;
  places.apart = apart;
  places.threads = threads;
  inner = {ceil_div(inner.size, kGroup), inner.x_stride * kGroup, inner.y_stride * kGroup, kGroup};
  // Threads that follow one another should be neighbours in memory.
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return a.y_stride < b.y_stride; });
  for (const Dim& dim : dims) {
    if (dim.size == 1) continue;
    const bool is_inner = dim.logical_stride == kGroup && places.neighbours > kGroup;
    if (is_inner) places.inner = places.count;
    places.axes[places.count++] = {Divider(dim.size), dim.x_stride, dim.y_stride,
                                   dim.logical_stride};
  }
  const auto blocks = static_cast<unsigned>(ceil_div(threads, kThreads));
  launch("dropout", dropout_strided<T, N>, blocks, kThreads, 0, op, x, y, places);
}

template <typename T>
void launch_strided(const Dropout<T>& op, const T* x, T* y, std::vector<Dim> dims) {
  const auto packed = find_packed(x, y, dims);
  const bool in_packets = packed != dims.end() - 1;
  const int64_t apart = packed->logical_stride;
  if (in_packets) {
    *packed = {packed->size / kPacket<T>, kPacket<T>, kPacket<T>, apart * kPacket<T>};
  }
  int64_t threads = ceil_div(dims.back().size, kGroup);
  for (auto dim = dims.begin(); dim != dims.end() - 1; ++dim) threads *= dim->size;
  if (in_packets) {
    launch_packets<T, kPacket<T>>(op, x, y, dims, apart, threads);
  } else {
    launch_packets<T, 1>(op, x, y, dims, apart, threads);
  }
}

}  // namespace

void dropout(const Input& x, const Output& y, const std::vector<Dim>& dims, const int64_t* seed,
             uint32_t threshold, double scale) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Dropout<T> op{seed, threshold, static_cast<Accumulator<T>>(scale)};
    const T* from = x.as<T>().data;
    T* to = y.as<T>().data;
    const Dim& last = dims.back();
    if (dims.size() == 1 && last.x_stride == 1 && last.y_stride == 1) {
      launch_dense(op, from, to, last.size);
    } else {
      launch_strided(op, from, to, dims);
    }
  });
}

}  // namespace d2lops
