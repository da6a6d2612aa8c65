// How every kernel is started, and what a kernel's launcher may know of the GPU. This file and the
// kernels include nothing of torch; csrc/cuda/runtime.cpp has what depends on it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace d2lops {

// Of the current device, which the bindings have set.
struct Device {
  int index;
  int multiprocessors;
  bool wgmma;           // whether it is a Hopper GPU, and there are kernels for it in this library
  int shared_memory;    // bytes that a block may have
  cudaStream_t stream;  // torch's current one
};
Device current_device();

// Device memory for the time of a launch, from torch's allocator: it is handed out again only to
// later work of the same stream.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

// Raises with the kernel's name if the status is an error.
void check_launch(cudaError_t status, const char* kernel);

// Runs `kernel` with so many blocks of so many threads and `shared` bytes of shared memory on the
// current stream. Nothing to do is no error. More than 48 KB have to be asked for first.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, int threads,
            size_t shared, Arguments&&... arguments) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
  if (shared > 48 * 1024) {
    check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)),
                 name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = current_device().stream;
  check_launch(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace d2lops
