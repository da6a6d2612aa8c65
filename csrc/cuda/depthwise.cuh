// Depthwise layers, which have one input and one output channel per group: a matrix product would
// be empty but for its diagonal. The three maps of corr2d for them (depthwise.cu).
#pragma once

#include "operators.h"

namespace d2lops {

inline bool is_depthwise(const Geometry& geo) { return geo.in == 1 && geo.out == 1; }

void depthwise(const Geometry& geo, const Input& x, const Input& weight, const Bias& bias,
               bool relu, const Output& y);
void depthwise_input_grad(const Geometry& geo, const Input& g, const Input& y, const Input& weight,
                          const Output& dx);
void depthwise_weight_grad(const Geometry& geo, const Input& g, const Input& y, const Input& x,
                           const Output& dw);

}  // namespace d2lops
