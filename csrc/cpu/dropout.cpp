// Dropout (D2L 5.6):  y[e] = keep[e] x[e] / (1 - p),  keep[e] = (word e mod 4 of Philox(seed, e div
// 4)) >= ceil(p 2^32)
//
// e is the logical, row-major index of an element, whatever the strides, so the mask depends on
// nothing but (seed, e). It is never stored: the operator is linear and its own adjoint, so
// backward runs it on the gradient with the same seed.
//
// Tiling: a block is four vectors of counters, 16 * lanes elements in logical order. Contiguous
// tensors are walked block by block. Where others than logical neighbours lie side by side
// (channels_last), the words of a tile are transposed; other strided tensors go row by row, in the
// order of their memory. Bytes: one read and one write per element. Arithmetic: per 4 elements, 10
// rounds of 2 multiplications, 2 shifts and 2 three-way xors in a lane of 64 bits: 0.34 ns an
// element with AVX-512 at 3.5 GHz. That hides behind main memory for elements of 4 and 8 bytes; it
// is the limit for 2 bytes, and in cache.
#include <algorithm>
#include <cmath>

#include "common/integer.h"
#include "common/philox.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "operators.h"

namespace d2lops {

// Words of several vectors of counters. Ten rounds wait for each other; independent chains keep the
// multipliers busy meanwhile. A word is the lower half of a 64-bit lane, where x86 multiplies; what
// the upper half holds does not matter.
struct Words {
  static constexpr int chains = 4;
  Vec<uint64_t> chain[chains];

  friend inline Words operator^(Words a, const Words& b) {
    for (int i = 0; i < chains; ++i) a.chain[i] ^= b.chain[i];
    return a;
  }
  friend inline Words operator^(Words a, uint32_t b) {
    for (int i = 0; i < chains; ++i) a.chain[i] ^= b;
    return a;
  }
};

template <>
struct WideMultiply<Words> {
  static inline Vec<uint64_t> lower_halves(Vec<uint64_t> a, uint32_t b) {
#if defined(__AVX512F__)
    return (Vec<uint64_t>)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (Vec<uint64_t>)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffffu) * b;
#endif
  }
  static inline void run(const Words& a, uint32_t b, Words& high, Words& low) {
    for (int i = 0; i < Words::chains; ++i) {
      low.chain[i] = lower_halves(a.chain[i], b);
      high.chain[i] = low.chain[i] >> 32;
    }
  }
};

namespace {

constexpr int64_t kBlock = Words::chains * 4 * kLanes<uint64_t>;

// The lower halves of both, side by side.
template <int... I>
inline Vec<uint64_t> pair(Vec<uint64_t> a, Vec<uint64_t> b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return (Vec<uint64_t>)__builtin_shufflevector((Vec<uint32_t>)a, (Vec<uint32_t>)b,
                                                (I % 2 == 0 ? I : I - 1 + lanes)...);
}

// The words of elements 4 * counter ... 4 * counter + kBlock - 1.
inline void philox_block(uint64_t counter, uint64_t seed, uint32_t (&words)[kBlock]) {
  constexpr int lanes = kLanes<uint64_t>;
  Vec<uint64_t> lane;
  for (int i = 0; i < lanes; ++i) lane[i] = i;
  Words low, high;
  for (int i = 0; i < Words::chains; ++i) {
    low.chain[i] = lane + (counter + i * lanes);
    high.chain[i] = low.chain[i] >> 32;
  }
  const auto [word] = philox(low, high, seed);
  constexpr auto halves = std::make_integer_sequence<int, 2 * lanes>{};
  constexpr auto all = std::make_integer_sequence<int, lanes>{};
  for (int i = 0; i < Words::chains; ++i) {
    const auto first = pair(word[0].chain[i], word[1].chain[i], halves);
    const auto second = pair(word[2].chain[i], word[3].chain[i], halves);
    store(words + (4 * i) * lanes, (Vec<uint32_t>)interleave_low(first, second, all));
    store(words + (4 * i + 2) * lanes, (Vec<uint32_t>)interleave_high(first, second, all));
  }
}

template <typename T>
struct Dropout {
  using A = Accumulator<T>;
  uint64_t seed;
  uint32_t threshold;
  A scale;

  // `count` elements that lie side by side, a multiple of kLanes<A>.
  template <int64_t count>
  void run(const T* x, T* y, const uint32_t* words) const {
    using Bits = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const auto word = load_bytes<Vec<uint32_t, kLanes<A>>>(words + i);
      const auto keep = __builtin_convertvector(word, Vec<Bits>) >= Bits{threshold};
      const Vec<A> scaled = load<A>(x + i) * scale;
      store(y + i, keep ? scaled : Vec<A>{});
    }
  }

  // Elements first ... first + count - 1 in logical order, `x_stride` and `y_stride` apart.
  void row(const T* x, T* y, int64_t first, int64_t count, int64_t x_stride,
           int64_t y_stride) const {
    const bool dense = x_stride == 1 && y_stride == 1;
    const int64_t last = first + count;
    alignas(kVectorBytes) uint32_t words[kBlock];
    for (int64_t e = first & ~int64_t{3}; e < last; e += kBlock) {
      philox_block(static_cast<uint64_t>(e) / 4, seed, words);
      if (dense && e >= first && e + kBlock <= last) {
        prefetch_ahead<kBlock * sizeof(T)>(x + (e - first));
        run<kBlock>(x + (e - first), y + (e - first), words);
        continue;
      }
      const int64_t begin = std::max(e, first), end = std::min(e + kBlock, last);
      T buffer[kBlock] = {};
      copy(x + (begin - first) * x_stride, x_stride, buffer + (begin - e), 1, end - begin);
      run<kBlock>(buffer, buffer, words);
      copy(buffer + (begin - e), 1, y + (begin - first) * y_stride, y_stride, end - begin);
    }
  }

  static constexpr int kTile = kLanes<uint32_t>;
  static constexpr int64_t kRun = 4 * kBlock;

  // `rows` <= kTile rows that lie side by side: element i of row r has the logical index
  // first + r * row_stride + i, and is x[r + i * x_stride]. The words are transposed, not the
  // elements.
  void tile(const T* x, T* y, int64_t first, int64_t row_stride, int rows, int64_t count,
            int64_t x_stride, int64_t y_stride) const {
    alignas(kVectorBytes) uint32_t words[kTile][kRun + kBlock];
    const uint32_t* row[kTile];
    for (int r = 0; r < kTile; ++r) {
      const int64_t begin = first + std::min(r, rows - 1) * row_stride, early = begin & 3;
      for (int64_t i = 0; i < early + count; i += kBlock) {
        philox_block(static_cast<uint64_t>(begin - early + i) / 4, seed,
                     reinterpret_cast<uint32_t (&)[kBlock]>(words[r][i]));
      }
      row[r] = words[r] + early;
    }
    for (int64_t i = 0; i < count; i += kTile) {
      Vec<uint32_t> block[kTile];
      for (int r = 0; r < kTile; ++r) block[r] = load_bytes<Vec<uint32_t>>(row[r] + i);
      transpose<kTile, uint32_t>(block);
      for (int64_t j = i; j < std::min(i + kTile, count); ++j) {
        const auto* word = reinterpret_cast<const uint32_t*>(&block[j - i]);
        if (rows == kTile) {
          run<kTile>(x + j * x_stride, y + j * y_stride, word);
        } else {
          T buffer[kTile] = {};
          copy(x + j * x_stride, 1, buffer, 1, rows);
          run<kTile>(buffer, buffer, word);
          copy(buffer, 1, y + j * y_stride, 1, rows);
        }
      }
    }
  }

 private:
  static void copy(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t count) {
    if (from_stride == 1 && to_stride == 1) {
      std::copy_n(from, count, to);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i * to_stride] = from[i * from_stride];
    }
  }
};

// Where element `index` of some dimensions is.
struct Place {
  int64_t x = 0, y = 0, logical = 0;

  Place(const std::vector<Dim>& dims, int64_t index) {
    for (size_t d = dims.size(); d-- > 0; index /= dims[d].size) {
      const int64_t i = index % dims[d].size;
      x += i * dims[d].x_stride;
      y += i * dims[d].y_stride;
      logical += i * dims[d].logical_stride;
    }
  }
};

int64_t product(const std::vector<Dim>& dims) {
  int64_t total = 1;
  for (const Dim& dim : dims) total *= dim.size;
  return total;
}

constexpr int64_t kGrain = 16384;

template <typename T>
void dropout_rows(const T* x, T* y, const std::vector<Dim>& outer, const Dim& inner,
                  const Dropout<T>& op) {
  parallel_for(0, product(outer) * inner.size, kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t column = begin % inner.size;
      const int64_t count = std::min(inner.size - column, end - begin);
      const Place place(outer, begin / inner.size);
      op.row(x + place.x + column * inner.x_stride, y + place.y + column * inner.y_stride,
             place.logical + column, count, inner.x_stride, inner.y_stride);
      begin += count;
    }
  });
}

// `dense` is the dimension whose elements lie side by side.
template <typename T>
void dropout_tiles(const T* x, T* y, const std::vector<Dim>& outer, const Dim& dense,
                   const Dim& inner, const Dropout<T>& op) {
  constexpr int64_t tile = Dropout<T>::kTile, run = Dropout<T>::kRun;
  const int64_t across = ceil_div(dense.size, tile), along = ceil_div(inner.size, run);
  const int64_t grain = std::max<int64_t>(1, kGrain / (tile * std::min(run, inner.size)));
  parallel_for(0, product(outer) * along * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Place place(outer, task / across / along);
      const int64_t r = task % across * tile, i = task / across % along * run;
      op.tile(x + place.x + r + i * inner.x_stride, y + place.y + r + i * inner.y_stride,
              place.logical + r * dense.logical_stride + i, dense.logical_stride,
              static_cast<int>(std::min(tile, dense.size - r)), std::min(run, inner.size - i),
              inner.x_stride, inner.y_stride);
    }
  });
}

template <typename T>
void dropout(const T* x, T* y, std::vector<Dim> dims, const Dropout<T>& op) {
  const Dim inner = dims.back();
  dims.pop_back();
  const auto dense = std::find_if(dims.begin(), dims.end(), [](const Dim& dim) {
    return dim.x_stride == 1 && dim.y_stride == 1;
  });
  if (dense != dims.end() && 2 * dense->size > Dropout<T>::kTile) {
    const Dim side_by_side = *dense;
    dims.erase(dense);
    dropout_tiles(x, y, dims, side_by_side, inner, op);
    return;
  }
  // Rows may be visited in any order: that of the memory they are in is the fastest.
  std::stable_sort(dims.begin(), dims.end(),
                   [](const Dim& a, const Dim& b) { return a.x_stride > b.x_stride; });
  dropout_rows(x, y, dims, inner, op);
}

}  // namespace

void dropout(const Input& x, const Output& y, const std::vector<Dim>& dims, const int64_t* seed,
             uint32_t threshold, double scale) {
  dispatch_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Dropout<T> op{static_cast<uint64_t>(*seed), threshold,
                        static_cast<Accumulator<T>>(scale)};
    dropout(x.as<T>().data, y.as<T>().data, dims, op);
  });
}

}  // namespace d2lops
