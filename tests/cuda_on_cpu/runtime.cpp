// csrc/cuda/runtime.cpp for the emulator: a small GPU, whose memory is the CPU's.
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace d2lops {
namespace {

// CUDA_ON_CPU_CAPABILITY, 80 or 90, chooses among the kernels that are there for different GPUs.
bool is_hopper() {
  const char* chosen = std::getenv("CUDA_ON_CPU_CAPABILITY");
  return chosen && std::strcmp(chosen, "90") == 0;
}

}  // namespace

Device current_device() { return {0, 4, is_hopper(), 232448, nullptr}; }

// What a kernel reads before it has written it is NaN.
Workspace::Workspace(size_t bytes) : data_(::operator new(bytes, std::align_val_t{256})) {
  std::memset(data_, 0xFF, bytes);
}
Workspace::~Workspace() { ::operator delete(data_, std::align_val_t{256}); }

void check_launch(cudaError_t status, const char* kernel) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("d2lops: ") + kernel + ": " + cudaGetErrorString(status));
}

}  // namespace d2lops
