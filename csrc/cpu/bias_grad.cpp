// The gradient of a bias: the sum of g, masked by the sign of y where a ReLU was fused, over every
// dimension but the second. For (N, C, H, W) images and for (M, N) matrices, in any strides.
//
// A task sums one plane (channels apart in memory) or one block of pixels (channels side by side)
// into partial results, which are then added in a fixed order: neither depends on the number of
// threads. One read of g (and y); main memory is the limit.
#include <vector>

#include "common/integer.h"
#include "cpu/matrix.h"
#include "cpu/parallel.h"
#include "operators.h"

namespace d2lops {
namespace {

constexpr int kChunk = 256;  // numbers that are read at a time
constexpr int kBlock = 32;   // pixels whose sum is a part: short, for the rounding errors' sake

template <typename T, typename A>
void read(const Operand<const T>& g, const Operand<const T>& y, int64_t g_at, int64_t y_at,
          int64_t g_stride, int64_t y_stride, int count, A* out) {
  read_row(g.data + g_at, g_stride, count, out);
  if (y.data) mask_row(y.data + y_at, y_stride, count, out);
}

template <typename T, typename A>
A sum_plane(const Extent& extent, const Operand<const T>& g, const Operand<const T>& y,
            int64_t g_at, int64_t y_at) {
  alignas(kVectorBytes) A buffer[kChunk + kLanes<A>];
  Vec<A> lanes{};
  for (int64_t h = 0; h < extent.height; ++h) {
    for (int64_t w = 0; w < extent.width; w += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, extent.width - w));
      read(g, y, g_at + h * g.h + w * g.w, y_at + h * y.h + w * y.w, g.w, y.w, count, buffer);
      for (int i = count; i % kLanes<A> != 0; ++i) buffer[i] = 0;
      for (int i = 0; i < count; i += kLanes<A>) lanes += load<A>(buffer + i);
    }
  }
  return horizontal_sum<A>(lanes);
}

// The first n <= kLanes<A> of numbers `stride` apart; the other lanes are zero.
template <typename A, typename T>
Vec<A> load_spread(const T* p, int64_t stride, int n) {
  if (stride == 1) return n < kLanes<A> ? load_first<A>(p, n) : load<A>(p);
  A numbers[kLanes<A>] = {};
  for (int i = 0; i < n; ++i) numbers[i] = load1<A>(p + i * stride);
  return load<A>(numbers);
}

template <typename V>
V passing(V y, V gradient) {
  return y <= V{} ? V{} : gradient;
}

// The sums of pixels first ... first + count - 1 <= kBlock, for all channels, which lie side by
// side in g: some vectors of channels at a time, in registers.
template <typename T, typename A>
void sum_pixels(const Extent& extent, const Operand<const T>& g, const Operand<const T>& y,
                int64_t first, int count, A* sums) {
  constexpr int lanes = kLanes<A>;
  const T *g_at[kBlock], *y_at[kBlock] = {};
  int64_t w = first % extent.width, h = first / extent.width % extent.height;
  int64_t n = first / extent.width / extent.height;
  for (int i = 0; i < count; ++i) {
    g_at[i] = g.data + n * g.n + h * g.h + w * g.w;
    if (y.data) y_at[i] = y.data + n * y.n + h * y.h + w * y.w;
    if (++w < extent.width) continue;
    w = 0;
    if (++h < extent.height) continue;
    h = 0, ++n;
  }
  const auto sum = [&](int64_t c, auto vectors, auto&& load_g, auto&& load_y) {
    constexpr int kSums = decltype(vectors)::value;
    Vec<A> total[kSums] = {};
    for (int i = 0; i < count; ++i) {
      for (int v = 0; v < kSums; ++v) {
        const Vec<A> value = load_g(g_at[i] + c + v * lanes);
        total[v] += y.data ? passing(load_y(y_at[i] + (c + v * lanes) * y.c), value) : value;
      }
    }
    for (int v = 0; v < kSums; ++v) store(sums + c + v * lanes, total[v]);
  };
  int64_t c = 0;
  if (!y.data || y.c == 1) {
    const auto whole = [](const T* p) { return load<A>(p); };
    for (; c + 4 * lanes <= extent.channels; c += 4 * lanes)
      sum(c, std::integral_constant<int, 4>{}, whole, whole);
  }
  for (; c < extent.channels; c += lanes) {
    const int n = static_cast<int>(std::min<int64_t>(lanes, extent.channels - c));
    sum(
        c, std::integral_constant<int, 1>{}, [n](const T* p) { return load_spread<A>(p, 1, n); },
        [n, &y](const T* p) { return load_spread<A>(p, y.c, n); });
  }
}

template <typename T>
void bias_grad(const Extent& extent, const Operand<const T>& g, const Operand<const T>& y, T* out) {
  using A = Accumulator<T>;
  const bool channels_last = g.c == 1 && extent.channels > 1;
  const int64_t pixels = extent.images * extent.height * extent.width;
  const int64_t parts = channels_last ? ceil_div(pixels, kBlock) : extent.images;
  const int64_t width = round_up(extent.channels, kLanes<A>);
  std::vector<A> partial(parts * width);
  if (channels_last) {
    parallel_for(0, parts, grain(8 * kBlock * extent.channels), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock, pixels - part * kBlock));
        sum_pixels(extent, g, y, part * kBlock, count, partial.data() + part * width);
      }
    });
  } else {
    const int64_t plane = extent.height * extent.width;
    parallel_for(0, parts * extent.channels, grain(8 * plane), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / extent.channels, c = i % extent.channels;
        partial[n * width + c] =
            sum_plane<T, A>(extent, g, y, n * g.n + c * g.c, n * y.n + c * y.c);
      }
    });
  }
  std::vector<double> sums(width);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t c = 0; c < width; ++c) sums[c] += partial[part * width + c];
  }
  for (int64_t c = 0; c < extent.channels; ++c) store1(out + c, static_cast<A>(sums[c]));
}

}  // namespace

void bias_grad(const Extent& extent, const Input& g, const Input& y, const Output& db) {
  // Rows that follow one another in memory are one long row.
  const bool merge = g.h == extent.width * g.w && (!y.data || y.h == extent.width * y.w);
  const Extent merged{extent.images, extent.channels, 1, extent.height * extent.width};
  dispatch_float(g.dtype, [&](auto zero) {
    using T = decltype(zero);
    bias_grad<T>(merge ? merged : extent, g.as<T>(), y.as<T>(), db.as<T>().data);
  });
}

}  // namespace d2lops
