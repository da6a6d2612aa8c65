// bfloat16 in pairs, for processors that multiply and add two at once: the same product over half
// as many terms, of which each is  a[i, 2p] b[j, 2p] + a[i, 2p + 1] b[j, 2p + 1].
//
// A pair takes the place of a float32 number in readers, buffers and panels, bit for bit, so
// packing is that of gemm.h. Only the multiplication knows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/panels.h"

namespace d2lops {

template <typename Reader>
struct ElementOfReader {
  using type = void;
};
template <template <typename> typename Reader, typename T>
struct ElementOfReader<Reader<T>> {
  using type = T;
};
template <typename Reader>
using ElementOf = typename ElementOfReader<Reader>::type;

// The upper halves of neighbours, which is what bfloat16 numbers are when they are widened.
template <int... I>
inline Vec<float> pair_up(Vec<float> low, Vec<float> high, std::integer_sequence<int, I...>) {
  using Halves = Vec<uint16_t, 2 * kLanes<float>>;
  return bits_as<Vec<float>>(
      __builtin_shufflevector(bits_as<Halves>(low), bits_as<Halves>(high), (2 * I + 1)...));
}

// A reader's matrix from k = begin to end - 1, in pairs: zero where there are no k's any more.
template <typename Reader>
struct Pairs {
  const Reader& reader;
  int64_t begin, end;

  static constexpr int kNumbers = kDepth + 2 * kLanes<float>;
  struct Start {
    typename Reader::Start numbers;
    int count, pairs;
  };
  bool along_depth() const { return reader.along_depth(); }
  Start start(int64_t first, int n) const {
    if (!along_depth()) return {reader.start(first, n), n, n};
    const int64_t k = begin + 2 * first;
    const int count = static_cast<int>(std::clamp<int64_t>(end - k, 0, 2 * n));
    return {reader.start(k, count), count, n};
  }
  void row(const Start& s, int64_t at, float* out) const {
    constexpr int lanes = kLanes<float>;
    if (along_depth()) {
      alignas(kVectorBytes) float numbers[kNumbers];
      reader.row(s.numbers, at, numbers);
      std::fill(numbers + s.count, numbers + 2 * s.pairs, 0.f);
      for (int i = 0; i < s.pairs; i += lanes) {
        store(out + i, pair_up(load<float>(numbers + 2 * i), load<float>(numbers + 2 * i + lanes),
                               std::make_integer_sequence<int, 2 * lanes>{}));
      }
    } else {
      alignas(kVectorBytes) float even[kNumbers], odd[kNumbers];
      const int64_t k = begin + 2 * at;
      const auto read = [&](int64_t k, float* to) {
        k < end ? reader.row(s.numbers, k, to) : void(std::fill_n(to, s.count, 0.f));
      };
      read(k, even);
      read(k + 1, odd);
      for (int i = 0; i < s.count; i += lanes) {
        const auto low = load_bytes<Vec<uint32_t>>(even + i),
                   high = load_bytes<Vec<uint32_t>>(odd + i);
        store(out + i, bits_as<Vec<float>>(low >> 16 | (high & 0xffff0000u)));
      }
    }
  }
};

// Where rows lie along k in memory, their pairs do as well.
template <typename A>
RowsInPlace<A> rows_in_place(const Pairs<Matrix<bfloat16>>& pairs, int64_t i, int64_t pair,
                             int depth) {
  const Matrix<bfloat16>& m = pairs.reader;
  const int64_t k = pairs.begin + 2 * pair;
  const bool whole = k + 2 * depth <= pairs.end;
  if (m.k_stride != 1 || m.y || m.i_stride % 2 != 0 || !whole) return {nullptr, 0};
  return {reinterpret_cast<const float*>(m.data + i * m.i_stride + k), m.i_stride / 2};
}

template <typename Reader>
MemoryRows memory_rows(const Pairs<Reader>& pairs, int64_t first, int64_t count, int64_t pair,
                       int64_t depth) {
  const int64_t k = pairs.begin + 2 * pair;
  return memory_rows(pairs.reader, first, count, k, std::min(2 * depth, pairs.end - k));
}

// Columns of pairs in a packed panel.
struct PairColumns : FetchingColumns<float> {};

[[gnu::always_inline]] inline Vec<float> multiply_add(const PairColumns&, Vec<float> row,
                                                      Vec<float> column, Vec<float> sum) {
  return _mm512_dpbf16_ps(sum, bits_as<__m512bh>(row), bits_as<__m512bh>(column));
}

struct PairVectorCore {
  static constexpr int kPieceRows = kRows, kMostDepth = kDepth / 2, kDepthUnit = 1;

  static int64_t pairs(int64_t terms) { return (terms + 1) / 2; }
  template <typename Reader>
  static void pack_rows(const Reader& reader, int64_t first, int64_t count, int64_t k, int depth,
                        float* panels) {
    pack<kRows>(reader, first, count, k, depth, panels);
  }
  void multiply(int rows, int cols, int depth, const float* a, const float* b, Ahead* ahead,
                float* c, bool add) const {
    micro_kernel_for<float, PairColumns>(rows, cols)(depth, a, {{b, ahead}}, c, add);
  }
};

}  // namespace d2lops
