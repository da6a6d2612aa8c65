// Shuffles, votes, and the sum of a block by both, in blocks whose last warp is not whole.
#include "program.h"

using namespace d2lops;

constexpr unsigned kAll = 0xffffffff;

__device__ int live_lanes() {
  return min(32, static_cast<int>(blockDim.x - threadIdx.x / 32 * 32));
}

template <typename T>
__global__ void shuffles(T* out) {
  const int lane = threadIdx.x % 32, n = blockDim.x;
  const T mine = static_cast<T>(threadIdx.x);
  out[0 * n + threadIdx.x] = __shfl_sync(kAll, mine, (lane + 1) % live_lanes());
  out[1 * n + threadIdx.x] = __shfl_up_sync(kAll, mine, 3, 8);
  out[2 * n + threadIdx.x] = __shfl_down_sync(kAll, mine, 2, 4);
  out[3 * n + threadIdx.x] = __shfl_xor_sync(kAll, mine, 5, 8);
  out[4 * n + threadIdx.x] = __shfl_sync(kAll, mine, 9, 8);
}

__global__ void votes(unsigned* out) {
  const unsigned odd = threadIdx.x & 1, n = blockDim.x;
  out[0 * n + threadIdx.x] = __ballot_sync(kAll, odd);
  out[1 * n + threadIdx.x] = __any_sync(kAll, threadIdx.x == 33);
  out[2 * n + threadIdx.x] = __all_sync(kAll, threadIdx.x < 40);
  __syncwarp();
}

__device__ float warp_sum(float value) {
  const int live = live_lanes(), lane = threadIdx.x % 32;
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_down_sync(kAll, value, distance);
    if (lane + distance < live) value += other;
  }
  return value;
}

__global__ void block_sum(const float* x, float* sum) {
  float* partial = shared<float>();
  const float mine = warp_sum(x[threadIdx.x]);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x > 0) return;
  *sum = 0;
  for (unsigned w = 0; w < (blockDim.x + 31) / 32; ++w) *sum += partial[w];
}

template <typename T, typename... P>
void run(void (*kernel)(P...), int rows) {
  constexpr int threads = 40;
  T* out = managed<T>(rows * threads);
  launch(kernel, 1, threads, 0, out);
  for (int row = 0; row < rows; ++row) print(out + row * threads, threads);
}

int main(int, char** arguments) {
  const std::string what = arguments[1];
  if (what == "int") run<int>(shuffles<int>, 5);
  if (what == "float") run<float>(shuffles<float>, 5);
  if (what == "double") run<double>(shuffles<double>, 5);
  if (what == "long long") run<long long>(shuffles<long long>, 5);
  if (what == "votes") run<unsigned>(votes, 3);
  if (what != "sum") return 0;
  auto *x = managed<float>(1024), *sum = managed<float>(1);
  for (int threads : {1, 31, 32, 33, 100, 1000, 1024}) {
    launch(block_sum, 1, threads, 32 * sizeof(float), x, sum);
    print(sum, 1);
  }
}
