// Launches from several threads of the host at once.
#include <thread>
#include <vector>

#include "program.h"

using namespace d2lops;

__global__ void reverse(int* out) {
  int* place = shared<int>();
  place[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = place[blockDim.x - 1 - threadIdx.x];
}

int main() {
  constexpr int threads = 4, size = 100;
  int* out[threads];
  for (int*& elements : out) elements = managed<int>(size);
  std::vector<std::thread> host;
  for (int t = 0; t < threads; ++t) {
    host.emplace_back([&, t] {
      for (int i = 0; i < 101; ++i) launch(reverse, 1, size, size * sizeof(int), out[t]);
    });
  }
  for (auto& thread : host) thread.join();
  int right = 0;
  for (int* elements : out) {
    for (int i = 0; i < size; ++i) right += elements[i] == size - 1 - i;
  }
  std::printf("%d\n", right);
}
