// Barriers of all threads, of some of them, and such as never open.
#include "program.h"

#if !defined(__CUDACC__)
#  include "emulator.h"
#endif

using namespace d2lops;

__device__ void barrier(int id, int threads) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  cuda_on_cpu::barrier(id, threads);
#endif
}

__global__ void votes(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int three = __syncthreads_count(thread < 3), any = __syncthreads_or(thread == 99);
  const int all = __syncthreads_and(thread < 100), not_all = __syncthreads_and(thread < 99);
  out[thread] = three == 3 && any && all && !not_all;
}

// Those that have exited are not waited for.
__global__ void early_exit(int* out) {
  int* place = shared<int>();
  if (threadIdx.x % 3 == 0) return;
  place[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const unsigned other = 99 - threadIdx.x;
  if (other % 3 != 0) out[threadIdx.x] = place[other] == static_cast<int>(other);
}

// The first two warps hand a value to each other, round by round; the rest never take part.
__global__ void named(int* out) {
  int* place = shared<int>();
  if (threadIdx.x < 64) {
    for (int round = 0; round < 10; ++round) {
      place[threadIdx.x] = round * 100 + static_cast<int>(threadIdx.x);
      barrier(1, 64);
      out[threadIdx.x] =
          place[63 - threadIdx.x] == round * 100 + 63 - static_cast<int>(threadIdx.x);
      barrier(2, 64);
    }
  }
  __syncthreads();
}

__global__ void too_few(int*) {
  if (threadIdx.x < 64) barrier(3, 96);
}

__global__ void divergent(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane >= 4) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(0xffffffff, lane, 1);
}

__global__ void disagreement(int*) { barrier(1, threadIdx.x < 32 ? 64 : 96); }

__global__ void part_of_a_warp(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffff, 1, 0);
}

int main(int, char** arguments) {
  const std::string what = arguments[1];
  int* out = managed<int>(100);
  for (int i = 0; i < 100; ++i) out[i] = 1;
  const size_t shared = 100 * sizeof(int);
  if (what == "votes") launch(votes, 1, 100, shared, out);
  if (what == "early_exit") launch(early_exit, 1, 100, shared, out);
  if (what == "named") launch(named, 1, 100, shared, out);
  if (what == "too_few") launch(too_few, 1, 100, shared, out);
  if (what == "divergent") launch(divergent, dim3(1), dim3(32, 2), shared, out);
  if (what == "disagreement") launch(disagreement, 1, 96, shared, out);
  if (what == "part_of_a_warp") launch(part_of_a_warp, 1, 32, shared, out);
  int right = 0;
  for (int i = 0; i < 100; ++i) right += out[i];
  std::printf("%d\n", right);
}
