// All that kernels use of torch: its threads. Split a range among them by `parallel_for`.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace d2lops {

using torch::stable::get_num_threads;
using torch::stable::parallel_for;

}  // namespace d2lops
