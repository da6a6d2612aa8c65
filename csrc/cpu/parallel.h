// All that kernels use of torch: its threads. `parallel_for` splits a range of tasks among them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace d2lops {

using torch::stable::get_num_threads;
using torch::stable::parallel_for;

// How many tasks of so many multiply-adds each are worth a thread: a hundred thousand, some
// microseconds.
inline int64_t grain(int64_t multiply_adds) { return 1 + 131072 / (multiply_adds + 1); }

}  // namespace d2lops
