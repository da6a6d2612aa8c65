// Vectors as wide as the instruction set that this library is compiled for, by GCC's and Clang's
// vector extensions: +, *, comparisons and ?: work on them as on numbers, so a kernel is written
// once.
//
// 16-bit numbers live in memory only. load<A>() widens to A, the type that a kernel computes in,
// and store() rounds back to nearest, ties to even, as torch does.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#  include <immintrin.h>
#endif

#include "common/dtype.h"

namespace d2lops {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <typename T, int Lanes = kLanes<T>>
using Vec = typename VectorOf<T, Lanes>::type;

// Unaligned accesses; memcpy compiles to one instruction.
template <typename V>
inline V load_bytes(const void* p) {
  V value;
  std::memcpy(&value, p, sizeof(V));
  return value;
}

// Asks for what a stream will read soon, which hardware alone does too late where much is computed
// in between. Any address will do.
constexpr int64_t kAhead = 4096;
template <int64_t Bytes>
inline void prefetch_ahead(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p) + kAhead;
  for (int64_t i = 0; i < Bytes; i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + i));
  }
}

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Integers of another size. Compilers take conversions to pieces unless the size changes by a
// factor of 2.
template <int Bytes>
using Integer = std::conditional_t<
    Bytes == 8, int64_t,
    std::conditional_t<Bytes == 4, int32_t, std::conditional_t<Bytes == 2, int16_t, int8_t>>>;

template <typename To, typename V>
inline auto convert(V from) {
  using From = std::remove_reference_t<decltype(from[0])>;
  constexpr int lanes = sizeof(V) / sizeof(From);
  if constexpr (sizeof(To) > 2 * sizeof(From)) {
    using Twice = Integer<2 * sizeof(From)>;
    using Next = std::conditional_t<std::is_signed_v<From>, Twice, std::make_unsigned_t<Twice>>;
    return convert<To>(__builtin_convertvector(from, Vec<Next, lanes>));
  } else if constexpr (2 * sizeof(To) < sizeof(From)) {
    return convert<To>(__builtin_convertvector(from, Vec<Integer<sizeof(From) / 2>, lanes>));
  } else {
    return __builtin_convertvector(from, Vec<To, lanes>);
  }
}

// Conversions between the bits of a 16-bit number, zero-extended to 32, and a float. U is uint32_t
// and F is float, or both are vectors.

template <typename F, typename U>
inline F widen(U bits, bfloat16) {
  return bits_as<F>(bits << 16);
}

template <typename U, typename F>
inline U narrow(F value, bfloat16) {
  const U bits = bits_as<U>(value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U nan = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
}

// Shift the fields into place and mend the exponent's bias by a multiplication, which also
// normalises subnormal numbers.
template <typename F, typename U>
inline F widen(U bits, float16) {
  const U magnitude = (bits & 0x7fffu) << 13;
  const U finite = bits_as<U>(bits_as<F>(magnitude) * 0x1p112f);
  const U special = magnitude | 0x7f800000u;
  const U value = (bits & 0x7c00u) == 0x7c00u ? special : finite;
  return bits_as<F>(value | (bits & 0x8000u) << 16);
}

template <typename U, typename F>
inline U narrow(F value, float16) {
  const U bits = bits_as<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 1/2 leaves a subnormal half's bits, rounded, at the bottom of the sum.
  const U subnormal = bits_as<U>(bits_as<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U infinite = (magnitude & 0u) + 0x7c00u;
  const U nan = (magnitude & 0u) + 0x7e00u;
  U result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? infinite : result;  // 65520 rounds to infinity
  result = magnitude > 0x7f800000u ? nan : result;
  return result | ((bits >> 16) & 0x8000u);
}

// One number.

template <typename A, typename T>
inline A load1(const T* p) {
  if constexpr (std::is_arithmetic_v<T>) {
    return *p;
  } else {
    return widen<float>(static_cast<uint32_t>(p->bits), T{});
  }
}

template <typename T, typename A>
inline void store1(T* p, A value) {
  if constexpr (std::is_arithmetic_v<T>) {
    *p = value;
  } else {
    p->bits = static_cast<uint16_t>(narrow<uint32_t>(value, T{}));
  }
}

// kLanes<A> numbers.

template <typename A, typename T>
inline Vec<A> load(const T* p) {
  if constexpr (std::is_arithmetic_v<T>) {
    static_assert(std::is_same_v<A, T>);
    return load_bytes<Vec<A>>(p);
  } else {
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, float16>) {
#  if defined(__AVX512F__)
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#  else
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#  endif
    }
#endif
    const auto bits = load_bytes<Vec<uint16_t, kLanes<float>>>(p);
    return widen<Vec<float>>(__builtin_convertvector(bits, Vec<uint32_t>), T{});
  }
}

template <typename T, typename V>
inline void store(T* p, V value) {
  if constexpr (std::is_arithmetic_v<T>) {
    std::memcpy(p, &value, sizeof(V));
  } else {
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, float16>) {
#  if defined(__AVX512F__)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value, 0));
#  else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value, 0));
#  endif
      return;
    }
#endif
    const auto bits =
        __builtin_convertvector(narrow<Vec<uint32_t>>(value, T{}), Vec<uint16_t, kLanes<float>>);
    std::memcpy(p, &bits, sizeof(bits));
  }
}

// The first n <= 64 bytes of a vector; the other ones are zero, and nothing beyond is touched.

template <typename V>
inline V load_first_bytes(const void* p, int n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint64_t mask = _bzhi_u64(~uint64_t{0}, n);
  if constexpr (sizeof(V) == 64) {
    return (V)_mm512_maskz_loadu_epi8(mask, p);
  } else if constexpr (sizeof(V) == 32) {
    return (V)_mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask), p);
  } else {
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), p);
    return load_bytes<V>(&bytes);
  }
#else
  V value{};
  std::memcpy(&value, p, n);
  return value;
#endif
}

template <typename V>
inline void store_first_bytes(void* p, V value, int n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const uint64_t mask = _bzhi_u64(~uint64_t{0}, n);
  if constexpr (sizeof(V) == 64) {
    _mm512_mask_storeu_epi8(p, mask, (__m512i)value);
  } else if constexpr (sizeof(V) == 32) {
    _mm256_mask_storeu_epi8(p, static_cast<__mmask32>(mask), (__m256i)value);
  } else {
    __m128i bytes{};
    std::memcpy(&bytes, &value, sizeof(V));
    _mm_mask_storeu_epi8(p, static_cast<__mmask16>(mask), bytes);
  }
#else
  std::memcpy(p, &value, n);
#endif
}

// The first n < kLanes<A> numbers, likewise.

template <typename A, typename T>
inline Vec<A> load_first(const T* p, int n) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // A mask is a window on -1 ... -1 0 ... 0 that lets n lanes through.
  alignas(32) static constexpr int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const auto mask = [](int count) { return load_bytes<__m256i>(ones + 8 - count); };
  if constexpr (std::is_same_v<T, float>) return _mm256_maskload_ps(p, mask(n));
  if constexpr (std::is_same_v<T, double>) return _mm256_maskload_pd(p, mask(2 * n));
#endif
  using Memory = std::conditional_t<std::is_arithmetic_v<T>, T, uint16_t>;
  T buffer[kLanes<A>];
  const auto memory = load_first_bytes<Vec<Memory, kLanes<A>>>(p, n * int(sizeof(T)));
  std::memcpy(buffer, &memory, sizeof(buffer));
  return load<A>(buffer);
}

template <typename T, typename V>
inline void store_first(T* p, V value, int n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, (1u << n) - 1, value);
  if constexpr (std::is_same_v<T, double>) return _mm512_mask_storeu_pd(p, (1u << n) - 1, value);
#endif
  using Memory = std::conditional_t<std::is_arithmetic_v<T>, T, uint16_t>;
  T buffer[kLanes<Accumulator<T>>];
  store(buffer, value);
  store_first_bytes(p, load_bytes<Vec<Memory, kLanes<Accumulator<T>>>>(buffer), n * int(sizeof(T)));
}

// Whether any lane of a comparison holds.
template <typename M>
inline bool any(M mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(M) == 64) {
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
  }
#endif
  uint64_t halves[sizeof(M) / 8];
  std::memcpy(halves, &mask, sizeof(M));
  uint64_t all = 0;
  for (uint64_t half : halves) all |= half;
  return all != 0;
}

template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // not +, which would turn -0 into 0 and cost an addition
}

// The sum of a vector's lanes, by halves.

template <typename A, int Lanes, int... I>
inline A horizontal_sum(typename VectorOf<A, Lanes>::type v, std::integer_sequence<int, I...>) {
  if constexpr (Lanes == 2) {
    return v[0] + v[1];
  } else {
    const auto low = __builtin_shufflevector(v, v, I...);
    const auto high = __builtin_shufflevector(v, v, (Lanes / 2 + I)...);
    return horizontal_sum<A, Lanes / 2>(low + high, std::make_integer_sequence<int, Lanes / 4>{});
  }
}
template <typename A>
inline A horizontal_sum(Vec<A> v) {
  return horizontal_sum<A, kLanes<A>>(v, std::make_integer_sequence<int, kLanes<A> / 2>{});
}

// Every Stride-th number from p on, kLanes<A> of them; reads Stride whole vectors.

template <typename V, int... I>
inline V even_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}

template <typename V, int... I>
inline V odd_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

template <typename A, int Stride, typename T>
inline Vec<A> load_strided(const T* p) {
  static_assert((Stride & (Stride - 1)) == 0);
  if constexpr (Stride == 1) {
    return load<A>(p);
  } else {
    return even_lanes(load_strided<A, Stride / 2>(p),
                      load_strided<A, Stride / 2>(p + kLanes<A> * Stride / 2),
                      std::make_integer_sequence<int, kLanes<A>>{});
  }
}

// Rows (vectors) of a Rows x Lanes matrix become the Lanes x Rows matrix, in the same registers and
// in row-major order: each round is a perfect shuffle of the whole, which moves the top bit of an
// element's address to the bottom.

template <typename V, int... I>
inline V interleave_low(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * int(sizeof...(I)))...);
}
template <typename V, int... I>
inline V interleave_high(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b,
                                 (I / 2 + int(sizeof...(I)) / 2 + (I % 2) * int(sizeof...(I)))...);
}

template <int Rows, typename T>
inline void transpose(Vec<T> (&rows)[Rows]) {
  static_assert((Rows & (Rows - 1)) == 0 && Rows <= kLanes<T>);
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
#pragma GCC unroll 8
  for (int round = 1; round < Rows; round *= 2) {
    Vec<T> shuffled[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows / 2; ++i) {
      shuffled[2 * i] = interleave_low(rows[i], rows[i + Rows / 2], lanes);
      shuffled[2 * i + 1] = interleave_high(rows[i], rows[i + Rows / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) rows[i] = shuffled[i];
  }
}

}  // namespace d2lops
