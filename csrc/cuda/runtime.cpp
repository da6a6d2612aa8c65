// What launchers know of torch: the current device and stream, and memory for the time of a launch.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>

#include <mutex>
#include <vector>

#include "cuda/launch.h"

namespace d2lops {
namespace {

// Asked of the driver once per GPU: it takes longer than a small kernel.
Device properties(int index) {
  const auto attribute = [index](cudaDeviceAttr which) {
    int value = 0;
    check_launch(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
    return value;
  };
  // A library for other GPUs may run on this one as well, but its Hopper kernels are empty.
#if defined(D2LOPS_SM90A)
  const bool wgmma = attribute(cudaDevAttrComputeCapabilityMajor) == 9;
#else
  const bool wgmma = false;
#endif
  return {index, attribute(cudaDevAttrMultiProcessorCount), wgmma,
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), nullptr};
}

Device cached_properties(int index) {
  static std::mutex mutex;
  static std::vector<Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Device& device : known) {
    if (device.index == index) return device;
  }
  return known.emplace_back(properties(index));
}

}  // namespace

void check_launch(cudaError_t status, const char* kernel) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call of somebody else would report it
  STD_TORCH_CHECK(false, "d2lops: ", kernel, ": ", cudaGetErrorString(status));
}

Device current_device() {
  Device device = cached_properties(torch::stable::accelerator::getCurrentDeviceIndex());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &stream));
  device.stream = static_cast<cudaStream_t>(stream);
  return device;
}

Workspace::Workspace(size_t bytes) : data_(nullptr) {
  if (bytes == 0) return;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_caching_allocator_raw_alloc(bytes, &data_));
}

Workspace::~Workspace() {
  if (data_) aoti_torch_cuda_caching_allocator_raw_delete(data_);
}

}  // namespace d2lops
