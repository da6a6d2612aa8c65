// A pipeline of two cp.async stages, right and wrong.
#include "program.h"

#if !defined(__CUDACC__)
#  include "emulator.h"
#endif

using namespace d2lops;

// 16 bytes to shared memory, of which `source_bytes` are read and the rest are zeros.
__device__ void copy_async(void* to, const void* from, int source_bytes) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(source_bytes)
               : "memory");
#else
  cuda_on_cpu::copy_async(to, from, 16, source_bytes);
#endif
}

__device__ void commit_group() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  cuda_on_cpu::commit_group();
#endif
}

template <int pending>
__device__ void wait_group() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  cuda_on_cpu::wait_group(pending);
#endif
}

enum Mistake { none, too_many_pending, no_barrier };

// Each thread's sum over the tiles of its own float and of its neighbour's. Floats from `size` on
// count as zeros.
template <Mistake mistake>
__global__ void sums(const float* x, float* out, int tiles, int size) {
  float* stages = shared<float>();
  const int tile = 4 * blockDim.x, each = 4 * threadIdx.x;
  const auto fetch = [&](int t) {
    const int begin = t * tile + each, count = max(0, min(4, size - begin));
    if (t < tiles) copy_async(stages + t % 2 * tile + each, count ? x + begin : x, 4 * count);
    commit_group();
  };
  float sum = 0;
  fetch(0);
  for (int t = 0; t < tiles; ++t) {
    fetch(t + 1);
    wait_group<mistake == too_many_pending ? 2 : 1>();
    __syncthreads();
    const float* stage = stages + t % 2 * tile;
    sum += stage[each] + stage[(each + 4) % tile];
    if (mistake != no_barrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

template <typename Kernel>
void run(Kernel kernel, int size) {
  constexpr int threads = 64, tiles = 5;
  auto *x = managed<float>(tiles * 4 * threads), *out = managed<float>(threads);
  launch(kernel, 1, threads, 2 * 4 * threads * sizeof(float), x, out, tiles, size);
  print(out, threads);
}

__global__ void misaligned(const float* x) { copy_async(shared<float>(), x + 1, 16); }

__global__ void outside(const float* x) { copy_async(shared<float>() + 4, x, 16); }

int main(int, char** arguments) {
  const std::string what = arguments[1];
  if (what == "right") run(sums<none>, 5 * 4 * 64);
  if (what == "zeros") run(sums<none>, 1003);
  if (what == "too_many_pending") run(sums<too_many_pending>, 5 * 4 * 64);
  if (what == "no_barrier") run(sums<no_barrier>, 5 * 4 * 64);
  if (what == "misaligned") launch(misaligned, 1, 1, 16, managed<float>(8));
  if (what == "outside") launch(outside, 1, 1, 16, managed<float>(8));
}
