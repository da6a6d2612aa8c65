// What the programs share. They run on a GPU as on the CPU: nvcc compiles them too.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace d2lops {

// Kernels name their dynamic shared memory so.
template <typename T>
__device__ T* shared() {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}

// 0, 1, 2, ... where host and device see them, until the program ends.
template <typename T>
T* managed(int count) {
  T* elements = nullptr;
  cudaMallocManaged(&elements, count * sizeof(T));
  for (int i = 0; i < count; ++i) elements[i] = static_cast<T>(i);
  return elements;
}

template <typename... P, typename... A>
cudaError_t try_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
  const cudaError_t error = try_launch(kernel, grid, block, shared, arguments...);
  if (error == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(cudaGetLastError()));
  std::exit(1);
}

template <typename T>
void print(const T* elements, int count) {
  for (int i = 0; i < count; ++i) std::printf("%.17g ", static_cast<double>(elements[i]));
  std::printf("\n");
}

}  // namespace d2lops
