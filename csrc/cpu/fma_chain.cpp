// A chain of multiply-adds:  x <- (x + 1) / 2, computed as x * 1/2 + 1/2, `rounds` times per
// element
//
// What the benchmark suite measures the arithmetic units with; it computes nothing of use. The
// iteration tends to 1 from anywhere, so it meets neither overflow nor subnormal numbers.
//
// Tiling: a group is kChains vectors that stay in registers for all rounds. They do not depend on
// one another, and are more than two units with a latency of four or five cycles have in flight.
// With the two constants they fit the 16 registers that instruction sets before AVX-512 have.
// Bytes: one read and one write per element. Flops: 2 * rounds per element; thousands of rounds
// make them the only limit.
#include <algorithm>

#include "common/integer.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "operators.h"

namespace d2lops {
namespace {

constexpr int kChains = 12;
template <typename T>
constexpr int64_t kGroup = kChains * kLanes<Accumulator<T>>;

template <typename T>
void fma_chain_group(const T* x, T* y, int64_t rounds) {
  using A = Accumulator<T>;
  const Vec<A> half = broadcast(A(0.5));
  Vec<A> chain[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) chain[i] = load<A>(x + i * kLanes<A>);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * half + half;
  }
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) store(y + i * kLanes<A>, chain[i]);
}

template <typename T>
void fma_chain(const T* x, T* y, int64_t count, int64_t rounds) {
  const int64_t groups = ceil_div(count, kGroup<T>);
  parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * kGroup<T>;
      const int64_t size = std::min(kGroup<T>, count - first);
      if (size == kGroup<T>) {
        fma_chain_group(x + first, y + first, rounds);
      } else {
        T buffer[kGroup<T>] = {};
        std::copy_n(x + first, size, buffer);
        fma_chain_group(buffer, buffer, rounds);
        std::copy_n(buffer, size, y + first);
      }
    }
  });
}

}  // namespace

void fma_chain(const Input& x, const Output& y, int64_t count, int64_t rounds) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    fma_chain(x.as<T>().data, y.as<T>().data, count, rounds);
  });
}

}  // namespace d2lops
