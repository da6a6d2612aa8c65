// Launches that no GPU runs are refused.
#include "program.h"

using namespace d2lops;

__global__ void nothing() {}
__global__ void much_shared_memory() {}

int main() {
  const auto report = [](dim3 grid, dim3 block, size_t shared) {
    const cudaError_t error = try_launch(nothing, grid, block, shared);
    const bool kept = cudaPeekAtLastError() == error && cudaGetLastError() == error;
    std::printf("%s%s\n", cudaGetErrorString(error), kept ? "" : ", but it is not the last error");
  };
  report(1, 1024, 49152);
  report(1, 1025, 0);
  report(1, dim3(1, 1, 65), 0);
  report(1, 0, 0);
  report(dim3(1, 65536), 1, 0);
  report(dim3(1, 1, 65536), 1, 0);
  report(1u << 31, 1, 0);
  report(1, 1, 49153);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  std::printf("%d ", cudaFuncSetAttribute(much_shared_memory, attribute, 232449) == cudaSuccess);
  cudaGetLastError();
  std::printf("%d ", cudaFuncSetAttribute(much_shared_memory, attribute, 232448) == cudaSuccess);
  std::printf("%d\n", try_launch(much_shared_memory, 1, 1, 232448) == cudaSuccess);
}
