// Tiles of 16-bit numbers, or of float32 ones for TF32, in shared memory: how packets get there and lie there, how fragments are
// taken out, and how a finished tile gets to memory. Shared by the kernels on tensor cores.
#pragma once

#include "cuda/gemm.cuh"
#include "cuda/ptx.h"

namespace d2lops {

constexpr int kPacketBytes = 16;

// `Rows` rows of A or B, `Depth` numbers along k each. A line of a tile is a row, or, where memory
// lies across k, rows at one k, in panels of 128 bytes. Packets of a line are swizzled, so that the
// same packet of eight lines in a row lies in eight different groups of banks.
template <typename T, int Rows, int Depth, bool along_depth>
struct TileLayout {
  static constexpr int kNumbers = kPacket<T>, kLineBytes = Depth * static_cast<int>(sizeof(T));
  static_assert(kLineBytes == 64 || kLineBytes == 128);
  static constexpr int kBytes = Rows * kLineBytes, kPackets = kBytes / kPacketBytes;
  static constexpr int kPerLine = (along_depth ? Depth : Rows) / kNumbers;  // packets
  static constexpr int kRowPlaces = along_depth ? Rows : Rows / kNumbers;
  static constexpr int kColumnPlaces = along_depth ? Depth / kNumbers : Depth;

  static __device__ __forceinline__ int at(int line, int packet) {
    if constexpr (!along_depth) {
      return packet / 8 * Depth * 128 + line * 128 + (packet % 8 ^ line % 8) * kPacketBytes;
    } else if constexpr (kLineBytes == 128) {
      return line * 128 + (packet ^ line % 8) * kPacketBytes;
    } else {
      return line * 64 + (packet ^ line / 2 % 4) * kPacketBytes;
    }
  }

  // Where the tile's rows are, for `thread` of `threads`. Rows beyond the last one repeat it, and
  // are not written in the end.
  static __device__ void place_rows(const Walk& rows, int64_t first, int64_t count, Place* places,
                                    int thread, int threads) {
    for (int i = thread; i < kRowPlaces; i += threads) {
      const int64_t row = first + (along_depth ? i : i * kNumbers);
      places[i] = rows.at(min(row, along_depth ? count - 1 : (count - 1) / kNumbers * kNumbers));
    }
  }

  // And a step's columns, from k on.
  static __device__ void place_columns(const Walk& columns, int64_t k, Place* places, int thread) {
    if (thread < kColumnPlaces) {
      places[thread] = columns.at(k + (along_depth ? thread * kNumbers : thread));
    }
  }

  // Starts to copy a step, of which `depth` columns count, and of the mask, if there is one.
  template <int Threads>
  static __device__ __forceinline__ void start_copies(const Gathered<T>& x, const T* data,
                                                      const T* mask, const Place* rows,
                                                      const Place* columns, int64_t depth,
                                                      unsigned char* tile, unsigned char* mask_tile,
                                                      int thread) {
    static_assert(Threads % kPerLine == 0);
    constexpr int kLines = Threads / kPerLine;  // at a time
    const int packet = thread % kPerLine;
    // The same for all packets of a thread.
    const Place fixed = along_depth ? columns[packet] : rows[packet];
    if (along_depth && packet * kNumbers >= depth) depth = 0;
#pragma unroll 8
    for (int line = thread / kPerLine; line < kPackets / kPerLine; line += kLines) {
      const Place& place = along_depth ? rows[line] : columns[line];
      const bool valid = (along_depth ? 0 : line) < depth && x.inside(fixed, place);
      const int64_t offset = valid ? fixed.offset + place.offset : 0;
      copy_async(tile + at(line, packet), data + offset, valid);
      if (mask) {
        const int64_t mask_offset = valid ? fixed.mask + place.mask : 0;
        copy_async(mask_tile + at(line, packet), mask + mask_offset, valid);
      }
    }
  }

  // A fragment of A, 16 rows from `row` on, or of B, 16 of its rows, which are columns of C; step
  // `k` of 32 bytes.
  static __device__ __forceinline__ void load_a(uint32_t (&a)[4], const unsigned char* tile,
                                                int row, int k) {
    load_fragment(a, tile, row, k, false);
  }
  static __device__ __forceinline__ void load_b(uint32_t (&b)[4], const unsigned char* tile,
                                                int row, int k) {
    load_fragment(b, tile, row, k, true);
  }

  // A's numbers where those of the mask are positive.
  static __device__ __forceinline__ void load_masked_a(uint32_t (&a)[4], const unsigned char* tile,
                                                       const unsigned char* mask_tile, int row,
                                                       int k) {
    uint32_t y[4];
    load_a(a, tile, row, k);
    load_a(y, mask_tile, row, k);
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = passing<T>(y[r], a[r]);
  }

 private:
  // Four matrices of 8 rows and 16 bytes along k. In A, the second one is eight rows further and the
  // third one 16 bytes; in B, the other way round.
  static __device__ __forceinline__ void load_fragment(uint32_t (&to)[4], const unsigned char* tile,
                                                       int row, int k, bool is_b) {
    const int lane = threadIdx.x % 32, second = lane / 8 % 2, third = lane / 16;
    const int eight_rows = is_b ? third : second, packet = is_b ? second : third;
    if constexpr (along_depth) {
      load_matrices<false>(to, tile + at(row + 8 * eight_rows + lane % 8, 2 * k + packet));
    } else if constexpr (sizeof(T) == 2) {
      load_matrices<true>(to, tile + at(16 * k + 8 * packet + lane % 8, row / 8 + eight_rows));
    } else {
      // ldmatrix does not turn numbers of 32 bits: they are read one by one.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = row + 8 * (is_b ? i / 2 : i % 2) + lane / 4;
        const int line = 8 * k + 4 * (is_b ? i % 2 : i / 2) + lane % 4;
        const unsigned char* number = tile + at(line, r / kNumbers) + r % kNumbers * 4;
        to[i] = *reinterpret_cast<const uint32_t*>(number);
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = round_to_tf32(to[i]);
    }
  }
};

// A finished tile on its way to memory, in the order in which its neighbours lie there: rows of C,
// or columns where those are dense. Lines are padded by a packet.
template <typename T, int Rows, int Columns>
struct FinishedTile {
  static constexpr int kNumbers = kPacket<T>;
  T number[(Rows + kNumbers) * (Columns + kNumbers)];

  __device__ T& at(int row, int column, bool by_columns) {
    return by_columns ? number[column * (Rows + kNumbers) + row]
                      : number[row * (Columns + kNumbers) + column];
  }

  // In packets, where neighbours in the tile are neighbours in memory.
  template <int Threads>
  __device__ void write(const Task<T>& task, const Tile& tile, bool by_columns) const {
    const Scattered<T>& c = task.product.c;
    T* const data = c.data + tile.group * c.group_stride;
    const Walk& line_walk = by_columns ? c.columns : c.rows;
    const Walk& packet_walk = by_columns ? c.rows : c.columns;
    const int64_t row = tile.row * Rows, column = tile.column * Columns;
    const int64_t line_end = (by_columns ? task.columns - column : task.rows - row);
    const int64_t end = (by_columns ? task.rows - row : task.columns - column);
    const int lines = by_columns ? Columns : Rows, length = by_columns ? Rows : Columns;
    const bool dense = packet_walk.inner.stride == 1 && packet_walk.inner.size % kNumbers == 0;
    for (int i = threadIdx.x; i < lines * length / kNumbers; i += Threads) {
      const int line = i / (length / kNumbers), first = i % (length / kNumbers) * kNumbers;
      if (line >= line_end || first >= end) continue;
      const Place across = line_walk.at((by_columns ? column : row) + line);
      const auto along = [&](int x) {
        return packet_walk.at((by_columns ? row : column) + first + x);
      };
      const T* const from = number + line * (length + kNumbers) + first;
      const Place begin = along(0);
      T* const to = data + across.offset;
      if (dense && c.inside(across, begin) && c.inside(across, along(kNumbers - 1)) &&
          reinterpret_cast<uintptr_t>(to + begin.offset) % kPacketBytes == 0) {
        store(to + begin.offset, load<kNumbers>(from));
        continue;
      }
      for (int x = 0; x < kNumbers && first + x < end; ++x) {
        const Place place = along(x);
        if (c.inside(across, place)) to[place.offset] = from[x];
      }
    }
  }
};

// The bias of each column of a tile, as a number to add.
template <int Columns, typename T>
__device__ void place_bias(const Product<T>& product, int64_t group, int64_t first, int64_t count,
                           float* bias, int thread, int threads) {
  for (int i = thread; i < Columns; i += threads) {
    const int64_t column = group * product.bias_group_stride + (first + i) * product.bias_stride;
    bias[i] = product.bias && first + i < count ? widen(product.bias[column]) : 0;
  }
}

// A sum on its way out. NaN stays NaN.
template <typename T>
__device__ __forceinline__ T finish(float sum, float bias, bool relu) {
  const float value = sum + bias;
  return narrow<T>(relu && value < 0 ? 0 : value);
}

// Calls f(A lies along k, B does, A is masked), for one of the three directions: both along k
// (forward), A alone (input gradient), neither (weight gradient).
template <typename T, typename F>
void dispatch_direction(const Product<T>& product, F&& f) {
  constexpr std::true_type yes{};
  constexpr std::false_type no{};
  const bool masked = product.a.mask != nullptr;
  if (product.a.along_depth && product.b.along_depth) return f(yes, yes, no);
  if (product.a.along_depth) return masked ? f(yes, no, yes) : f(yes, no, no);
  masked ? f(no, no, yes) : f(no, no, no);
}

// Whether a tile of C is better written by columns.
template <typename T>
__device__ bool is_dense_by_columns(const Scattered<T>& c) {
  return c.columns.step() != 1 && c.rows.step() == 1;
}

}  // namespace d2lops
