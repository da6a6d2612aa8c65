// Philox4x32-10, the counter-based random number generator of Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3" (SC'11). Ten rounds of multiply and xor turn a 128-bit counter and a
// 64-bit key into four 32-bit words. There is no state, so any word can be had at any time, on any
// device, in any order: that is why every backend, memory layout and number of threads draws the
// same dropout mask.
//
// One definition for host and device. `Word` is uint32_t, or a vector of them on the CPU, for which
// WideMultiply is specialised next to the vector type.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace d2lops {

// The high and the low half of the 64-bit product a * b.
template <typename Word>
struct WideMultiply;

template <>
struct WideMultiply<uint32_t> {
  static D2LOPS_HOST_DEVICE void run(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
  }
};

template <typename Word>
struct PhiloxWords {
  Word word[4];
};

// Words for the 64-bit counter (low, high): the upper half of Philox's 128 bits stays zero.
template <typename Word>
D2LOPS_HOST_DEVICE PhiloxWords<Word> philox(Word low, Word high, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  PhiloxWords<Word> c;
  {  // the first round, of a counter whose words 2 and 3 are zero
    Word high0, low0;
    WideMultiply<Word>::run(low, 0xD2511F53u, high0, low0);
    c = {{high ^ key0, low ^ low, high0 ^ key1, low0}};
  }
#pragma GCC unroll 9
  for (int round = 1; round < 10; ++round) {
    key0 += 0x9E3779B9u;  // the golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
    Word high0, low0, high2, low2;
    WideMultiply<Word>::run(c.word[0], 0xD2511F53u, high0, low0);
    WideMultiply<Word>::run(c.word[2], 0xCD9E8D57u, high2, low2);
    c = {{high2 ^ c.word[1] ^ key0, low2, high0 ^ c.word[3] ^ key1, low0}};
  }
  return c;
}

// An element is kept when its word reaches this: ceil(p 2^32), which is 2^32 (never reached) for a
// p of more than 1 - 2^-32.
D2LOPS_HOST_DEVICE uint64_t dropout_threshold(double p) {
  const double scaled = p * 4294967296.0;
  const uint64_t floor = static_cast<uint64_t>(scaled);
  return floor + (static_cast<double>(floor) < scaled);
}

}  // namespace d2lops
