// Every bfloat16 and half to float and back, and the floats half-way between two and next to that.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "program.h"

struct BFloat16 {
  static constexpr int exponent_bits = 8, mantissa_bits = 7;
  static float widen(unsigned short bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
  static unsigned short round(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
  static float first(float x, float y) { return __bfloat1622float2(__floats2bfloat162_rn(x, y)).x; }
};

struct Half {
  static constexpr int exponent_bits = 5, mantissa_bits = 10;
  static float widen(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }
  static unsigned short round(float x) { return __half_as_ushort(__float2half_rn(x)); }
  static float first(float x, float y) { return __half22float2(__floats2half2_rn(x, y)).x; }
};

// What the bits say. The one past the largest number is that number's successor.
template <typename Format>
double value(int bits) {
  const int exponent = bits >> Format::mantissa_bits, one = 1 << Format::mantissa_bits;
  const int bias = (1 << (Format::exponent_bits - 1)) - 1, fraction = bits % one;
  if (exponent == 0) return std::ldexp(fraction, 1 - bias - Format::mantissa_bits);
  return std::ldexp(one + fraction, exponent - bias - Format::mantissa_bits);
}

template <typename Format>
int mistakes() {
  const int infinity = ((1 << Format::exponent_bits) - 1) << Format::mantissa_bits;
  int mistakes = 0;
  for (int sign : {0, 0x8000}) {
    const auto rounds = [&](double x, int bits) {
      const double signed_x = sign ? -x : x;
      mistakes += Format::round(static_cast<float>(signed_x)) != (sign | bits);
    };
    for (int bits = 0; bits < infinity; ++bits) {
      const double x = value<Format>(bits), next = value<Format>(bits + 1), middle = (x + next) / 2;
      mistakes += Format::widen(sign | bits) != (sign ? -x : x);
      rounds(x, bits);
      rounds(middle, bits + bits % 2);
      rounds(std::nextafter(static_cast<float>(middle), 0.0f), bits);
      rounds(std::nextafter(static_cast<float>(middle), INFINITY), bits + 1);
    }
    mistakes += Format::widen(sign | infinity) != (sign ? -INFINITY : INFINITY);
    rounds(INFINITY, infinity);
    for (int bits = infinity + 1; bits < 0x8000; ++bits) {
      mistakes += !std::isnan(Format::widen(sign | bits));
      mistakes += Format::round(Format::widen(sign | bits)) != 0x7FFF;
    }
  }
  return mistakes + (Format::first(1, 2) != 1);
}

int main() { std::printf("%d %d\n", mistakes<BFloat16>(), mistakes<Half>()); }
