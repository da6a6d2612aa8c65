// First layers, which see an image of a few channels: rows of a matrix product would be gathered
// number by number. corr2d for them (few_channels.cu); gradients go the way of other layers.
#pragma once

#include "operators.h"

namespace d2lops {

bool has_few_channels(const Geometry& geo);

void corr2d_of_few_channels(const Geometry& geo, const Input& x, const Input& weight,
                            const Bias& bias, bool relu, const Output& y);

}  // namespace d2lops
