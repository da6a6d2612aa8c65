// A chain of multiply-adds:  x <- (x + 1) / 2, computed as x * 1/2 + 1/2, `rounds` times per
// element
//
// What the benchmark suite measures the arithmetic units with; it computes nothing of use. The
// iteration tends to 1 from anywhere, so it meets neither overflow nor subnormal numbers.
//
// Tiling: a thread keeps kChains elements, a block apart, in registers for all rounds. A unit has
// four multiply-adds in flight per lane; the chains of one warp do for that, so it does not matter
// how many warps share a multiprocessor. Eight rounds are unrolled: one jump to 64 multiply-adds.
// Bytes: one read and one write per element. Flops: 2 * rounds per element; thousands of rounds
// make them the only limit.
#include "common/integer.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "operators.h"

namespace d2lops {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 8;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    fma_chain_kernel(const T* x, T* y, int64_t count, int64_t rounds) {
  using A = Accumulator<T>;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kChains + threadIdx.x;
  A chain[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) {
    const int64_t e = first + i * kThreads;
    chain[i] = e < count ? widen(x[e]) : A{0};
  }
#pragma unroll 8
  for (int64_t round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * A(0.5) + A(0.5);
  }
#pragma unroll
  for (int i = 0; i < kChains; ++i) {
    const int64_t e = first + i * kThreads;
    if (e < count) y[e] = narrow<T>(chain[i]);
  }
}

}  // namespace

void fma_chain(const Input& x, const Output& y, int64_t count, int64_t rounds) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto blocks = static_cast<unsigned>(ceil_div(count, kThreads * kChains));
    launch("fma_chain", fma_chain_kernel<T>, blocks, kThreads, 0, x.as<T>().data, y.as<T>().data,
           count, rounds);
  });
}

}  // namespace d2lops
