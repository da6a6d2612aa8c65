// The product of pairs (pairs.h) in tile registers, which multiply 16 x 32 by 32 x 16 bfloat16
// numbers at a time: sixteen times what vectors do with float32.
//
// A piece of C is 16 x 48: three tiles of sums, one of A, three of B. Tiles of B are panels as they
// are; tiles of A want 16 pairs of each row side by side. Limit: reading panels from the caches.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "common/integer.h"
#include "cpu/pairs.h"

namespace d2lops {

class AmxCore {
 public:
  static constexpr int kTile = 16;  // rows of a tile, and 32-bit numbers in a row
  static constexpr int kPieceRows = kTile, kMostDepth = kDepth / 2 / kTile * kTile,
                       kDepthUnit = kTile;

  static int64_t pairs(int64_t terms) { return ceil_div(terms, 2 * kTile) * kTile; }

  AmxCore() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    std::fill_n(config.row_bytes, 8, uint16_t{64});
    std::fill_n(config.rows, 8, uint8_t{kTile});
    _tile_loadconfig(&config);
  }
  ~AmxCore() { _tile_release(); }
  AmxCore(const AmxCore&) = delete;

  // Panels of [depth / 16][16 rows][16 pairs].
  template <typename Reader>
  void pack_rows(const Reader& reader, int64_t first, int64_t count, int64_t k, int depth,
                 float* panels) const {
    if (!reader.along_depth()) pack<kTile>(reader, first, count, k, depth, panels);
    for (int64_t i = 0; i < count; i += kTile, panels += panel_size<kTile, float>(depth)) {
      if (reader.along_depth()) {
        const int rows = static_cast<int>(std::min<int64_t>(kTile, count - i));
        copy_rows(reader, first + i, rows, k, depth, panels);
      } else {
        for (int d = 0; d < depth; d += kTile) {
          Vec<float> block[kTile];
          for (int r = 0; r < kTile; ++r) block[r] = load<float>(panels + (d + r) * kTile);
          transpose<kTile, float>(block);
          for (int r = 0; r < kTile; ++r) store(panels + (d + r) * kTile, block[r]);
        }
      }
    }
  }

  void multiply(int, int cols, int depth, const float* a, const float* b, Ahead* ahead, float* c,
                bool add) const {
    if (cols > 2 * kTile) return multiply<3>(depth, a, b, ahead, c, add);
    cols > kTile ? multiply<2>(depth, a, b, ahead, c, add)
                 : multiply<1>(depth, a, b, ahead, c, add);
  }

 private:
  template <typename Reader>
  static void copy_rows(const Reader& reader, int64_t first, int count, int64_t k, int depth,
                        float* panel) {
    alignas(kVectorBytes) float buffer[kMostDepth];
    const auto start = reader.start(k, depth);
    const RowsInPlace<float> in_place = rows_in_place<float>(reader, first, k, depth);
    for (int r = 0; r < kTile; ++r) {
      const float* from = in_place.data ? in_place.data + r * in_place.stride : buffer;
      if (r >= count) {
        from = std::fill_n(buffer, depth, 0.f) - depth;
      } else if (!in_place.data) {
        reader.row(start, first + r, buffer);
      }
      for (int d = 0; d < depth; d += kTile)
        store(panel + d * kTile + r * kTile, load<float>(from + d));
    }
  }

  template <int Tiles>
  static void multiply(int depth, const float* a, const float* b, Ahead* ahead, float* c,
                       bool add) {
    constexpr int64_t a_row = kTile * sizeof(float), row = kCols<float> * sizeof(float);
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    if (add) {
      _tile_loadd(0, c, row);
      if (Tiles > 1) _tile_loadd(1, c + kTile, row);
      if (Tiles > 2) _tile_loadd(2, c + 2 * kTile, row);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
    }
    for (int d = 0; d < depth; d += kTile, a += kTile * kTile, b += kTile * kCols<float>) {
      _tile_loadd(3, a, a_row);
      _tile_loadd(4, b, row);
      _tile_dpbf16ps(0, 3, 4);
      if (Tiles > 1) {
        _tile_loadd(5, b + kTile, row);
        _tile_dpbf16ps(1, 3, 5);
      }
      if (Tiles > 2) {
        _tile_loadd(6, b + 2 * kTile, row);
        _tile_dpbf16ps(2, 3, 6);
      }
      ahead->fetch();
      ahead->fetch();
    }
    _tile_stored(0, c, row);
    if (Tiles > 1) _tile_stored(1, c + kTile, row);
    if (Tiles > 2) _tile_stored(2, c + 2 * kTile, row);
    asm volatile("" ::: "memory");
  }
};

}  // namespace d2lops
