// How a thread finds its element: its number is taken apart by sizes that are known at the launch.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace d2lops {

// A GPU has no instruction for division. With a divisor known beforehand it is a multiplication and
// a shift, of numbers below 2^31: floor(n / d) = floor(n * (2^32 + multiplier) / 2^(32 + shift)),
// for the least shift with 2^shift >= d (Granlund and Montgomery, "Division by invariant integers
// using multiplication", 1994). Others, in tensors of more elements than that, take the long way.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int64_t divisor) : divisor_(divisor), multiplier_(0), shift_(0) {
    const auto d = static_cast<uint64_t>(divisor);
    while (shift_ < 31 && uint64_t{1} << shift_ < d) ++shift_;
    const uint64_t power = uint64_t{1} << shift_;
    if (d <= power) multiplier_ = static_cast<uint32_t>(((power - d) << 32) / d + 1);
  }

  // Divides, and returns the rest.
  D2LOPS_HOST_DEVICE int64_t split(int64_t& number) const {
    int64_t quotient;
    if (number >> 31 == 0) {
      const auto n = static_cast<uint32_t>(number);
      quotient = (static_cast<uint32_t>(uint64_t{n} * multiplier_ >> 32) + n) >> shift_;
    } else {
      quotient = number / divisor_;
    }
    const int64_t rest = number - quotient * divisor_;
    number = quotient;
    return rest;
  }

 private:
  int64_t divisor_;
  uint32_t multiplier_, shift_;
};

}  // namespace d2lops
