// Copies a tensor so that its channels lie side by side, each group's filled up with zeros to a
// packet of 16 bytes:  (N, G planes, H, W) in any strides -> (N, H, W, G padded), contiguous.
//
// Tiling: a block moves 32 channels of 32 pixels through shared memory, so that it reads along
// whichever of the two lies together in memory, and writes along channels. One read, one write;
// memory is the limit.
#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/pack.h"

namespace d2lops {
namespace {

constexpr int kTile = 32, kLines = 8;  // a block has kTile x kLines threads

template <typename T>
struct Copy {
  Extent extent;
  int64_t planes, padded;  // of a group
  Operand<const T> from, mask;
  T* to;
};

template <typename T>
struct Transposer {
  T number[kTile][kTile + 1];  // padded, so that a column's numbers lie in different banks
};

template <typename T>
__global__ __launch_bounds__(kTile* kLines) void pack_kernel(const __grid_constant__ Copy<T> copy) {
  auto& tile = shared_memory<Transposer<T>>();
  const Extent& size = copy.extent;
  const int64_t channels = size.channels / copy.planes * copy.padded;
  const int64_t pixels = size.images * size.height * size.width;
  const int64_t across = ceil_div(channels, kTile);
  const int64_t first_pixel = blockIdx.x / across * kTile, first = blockIdx.x % across * kTile;
  const bool along_pixels = copy.from.c != 1;
  const int lane = threadIdx.x % kTile, line = threadIdx.x / kTile;
  for (int i = line; i < kTile; i += kLines) {
    const int p = along_pixels ? lane : i, c = along_pixels ? i : lane;
    const int64_t pixel = first_pixel + p, channel = first + c;
    const int64_t plane = channel % copy.padded;
    T value{};
    if (pixel < pixels && channel < channels && plane < copy.planes) {
      const int64_t from_channel = channel / copy.padded * copy.planes + plane;
      const int64_t w = pixel % size.width, h = pixel / size.width % size.height;
      const int64_t n = pixel / size.width / size.height;
      const auto at = [&](const Strides& s) {
        return n * s.n + from_channel * s.c + h * s.h + w * s.w;
      };
      const bool blocked = copy.mask.data && widen(copy.mask.data[at(copy.mask)]) <= 0;
      if (!blocked) value = copy.from.data[at(copy.from)];
    }
    tile.number[c][p] = value;
  }
  __syncthreads();
  for (int p = line; p < kTile; p += kLines) {
    const int64_t pixel = first_pixel + p, channel = first + lane;
    if (pixel < pixels && channel < channels) {
      copy.to[pixel * channels + channel] = tile.number[lane][p];
    }
  }
}

// Numbers in a packet.
int64_t packet_of(const Input& x) { return x.dtype == Dtype::float32 ? 4 : 8; }

bool is_packed(const Extent& extent, int64_t planes, const Input& x) {
  const auto in_packets = [&x](int64_t size, int64_t stride) {
    return size <= 1 || stride % packet_of(x) == 0;
  };
  return x.c == 1 && planes % packet_of(x) == 0 && in_packets(extent.images, x.n) &&
         in_packets(extent.height, x.h) && in_packets(extent.width, x.w) &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

Packed::Packed(const Extent& extent, int64_t planes, const Input& x, const Input& mask)
    : tensor_(x), mask_(mask), planes_(planes) {
  if (is_packed(extent, planes, x) && (!mask.data || is_packed(extent, planes, mask))) return;
  planes_ = round_up(planes, packet_of(x));
  const int64_t channels = extent.channels / planes * planes_;
  const int64_t pixels = extent.images * extent.height * extent.width;
  copy_.emplace(pixels * channels * 16 / packet_of(x));
  static_cast<Strides&>(tensor_) = {extent.height * extent.width * channels, 1,
                                    extent.width * channels, channels};
  tensor_.data = copy_->as<void>();
  mask_ = {};
  const int64_t blocks = ceil_div(pixels, kTile) * ceil_div(channels, kTile);
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Copy<T> copy{extent, planes, planes_, x.as<T>(), mask.as<T>(), copy_->as<T>()};
    launch("pack", pack_kernel<T>, dim3(static_cast<unsigned>(blocks)), kTile * kLines,
           sizeof(Transposer<T>), copy);
  });
}

}  // namespace d2lops
