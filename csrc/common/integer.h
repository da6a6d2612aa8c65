// Division of integers with other roundings than the built-in one, towards zero. Divisors are
// positive.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace d2lops {

D2LOPS_HOST_DEVICE int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
D2LOPS_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }

// The least multiple of b that is not less than a.
D2LOPS_HOST_DEVICE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace d2lops
