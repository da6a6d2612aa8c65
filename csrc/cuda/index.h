// How a thread finds its element: numbers are taken apart by sizes that are known at the launch.
// A GPU has no instruction for division. Of 32 bits, it becomes a multiplication and a shift;
// of 64 bits it takes some hundred instructions, so that is for what does not fit.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/integer.h"

namespace d2lops {

template <typename Index>
class Divider;

// Of numbers below 2^31: floor(n / d) = floor(n * (2^32 + multiplier) / 2^(32 + shift)), for the
// least shift with 2^shift >= d (Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994).
template <>
class Divider<uint32_t> {
 public:
  Divider() = default;
  explicit Divider(uint32_t divisor) : divisor_(divisor), multiplier_(0), shift_(0) {
    while ((uint64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ =
        static_cast<uint32_t>(((((uint64_t{1} << shift_) - divisor) << 32) / divisor) + 1);
  }

  // Divides, and returns the rest.
  D2LOPS_HOST_DEVICE uint32_t split(uint32_t& number) const {
    const auto high = static_cast<uint32_t>(uint64_t{number} * multiplier_ >> 32);
    const uint32_t quotient = (high + number) >> shift_, rest = number - quotient * divisor_;
    number = quotient;
    return rest;
  }

 private:
  uint32_t divisor_, multiplier_, shift_;
};

template <>
class Divider<uint64_t> {
 public:
  Divider() = default;
  explicit Divider(uint64_t divisor) : divisor_(divisor) {}

  D2LOPS_HOST_DEVICE uint64_t split(uint64_t& number) const {
    const uint64_t quotient = number / divisor_, rest = number - quotient * divisor_;
    number = quotient;
    return rest;
  }

 private:
  uint64_t divisor_;
};

// Calls f with a value of the type that counts to `count`, which only names the type.
template <typename F>
inline void dispatch_index(int64_t count, F&& f) {
  count < (int64_t{1} << 31) ? f(uint32_t{}) : f(uint64_t{});
}

}  // namespace d2lops
