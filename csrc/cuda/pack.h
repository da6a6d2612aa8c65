// Tensors with their channels side by side, in packets: what the kernels on tensor cores read.
#pragma once

#include <cstdint>
#include <optional>

#include "common/geometry.h"
#include "common/operand.h"
#include "cuda/launch.h"

namespace d2lops {

// An (N, C, H, W) tensor, C being groups of `planes` channels, as the kernels want it: itself, if
// its channels lie side by side in whole packets, aligned; else a copy, in which each group's
// channels are filled up with zeros to whole packets. A copy is masked on the way.
class Packed {
 public:
  Packed(const Extent& extent, int64_t planes, const Input& x, const Input& mask = {});

  const Input& tensor() const { return tensor_; }
  const Input& mask() const { return mask_; }  // absent in a copy
  int64_t planes() const { return planes_; }   // of a group, with the zeros

 private:
  Input tensor_, mask_;
  int64_t planes_;
  std::optional<Workspace> copy_;
};

}  // namespace d2lops
