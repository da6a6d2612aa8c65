// Packing: rows of a reader's matrix (matrix.h) to panels, in the order in which the micro-kernel
// reads them, and fetching what will be packed next.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/integer.h"
#include "cpu/matrix.h"
#include "cpu/micro_kernel.h"

namespace d2lops {

// Fetches what will be packed next into the second-level cache, a line with each call, so that the
// memory works while the arithmetic units do.
class Ahead {
 public:
  Ahead() = default;
  explicit Ahead(const MemoryRows& memory)
      : line_(static_cast<const char*>(memory.data)),
        rows_(memory.size > 0 ? memory.rows : 0),
        lines_(ceil_div(memory.size, kLine)),
        left_(lines_),
        next_row_(memory.stride - lines_ * kLine),
        mask_(memory.mask) {}

  // A call from within the micro-kernel would cost it all its registers.
  [[gnu::always_inline]] void fetch() {
    if (rows_ <= 0) return;
    __builtin_prefetch(line_, 0, 2);
    __builtin_prefetch(line_ + mask_, 0, 2);
    line_ += kLine;
    if (--left_ == 0) {
      left_ = lines_;
      line_ += next_row_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* line_ = nullptr;
  int64_t rows_ = 0, lines_ = 0, left_ = 0, next_row_ = 0, mask_ = 0;
};

// In a packed panel, fetching ahead what will be packed next.
template <typename A>
struct FetchingColumns {
  const A* panel;
  Ahead* ahead;
  [[gnu::always_inline]] const A* at(int k) const {
    if (k % 2 == 0) ahead->fetch();  // more often, and the kernel waits for its own loads
    return panel + k * kCols<A>;
  }
};

// Numbers from one panel to the next, with room for the end of the last row's last vector. The odd
// cache line keeps panels of the same power-of-two size from falling on one another in the cache.
template <int Width, typename A>
constexpr int64_t panel_size(int depth) {
  return int64_t{Width} * depth + kLanes<A>;
}

// Rows of A that are packed at a time, just before they are first used: short ones along k, or
// long ones across k, of which a line of memory holds a part of many.
constexpr int kSpan = 240;  // a multiple of kRows and kCols, and at most kDepth
template <typename Reader>
int64_t rows_at_a_time(const Reader& a) {
  return a.along_depth() ? 6 * kRows : kSpan;
}

// Rows that run along k are transposed in registers: from where they lie, or gathered first.
template <int Width, typename A, typename Reader>
void pack_along_depth(const Reader& reader, int64_t first, int count, int64_t k, int depth,
                      A* panel) {
  constexpr int lanes = kLanes<A>, rows = std::min(Width, lanes);
  alignas(kVectorBytes) A buffer[rows][kDepth + lanes];
  const auto start = reader.start(k, depth);
  for (int i = 0; i < count; i += rows) {
    const int used = std::min(rows, count - i);
    RowsInPlace<A> from = rows_in_place<A>(reader, first + i, k, depth);
    if (!from.data || used < rows) {
      for (int r = 0; r < used; ++r) reader.row(start, first + i + r, buffer[r]);
      for (int r = used; r < rows; ++r) std::fill_n(buffer[r], depth, A{0});
      from = {buffer[0], kDepth + lanes};
    }
    for (int next = 0; next + lanes <= depth;) {
      const int d = next;
      next =
          d + lanes == depth ? depth : std::min(d + lanes, depth - lanes);  // again the last ones
      Vec<A> block[rows];
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) block[r] = load<A>(from.data + r * from.stride + d);
      transpose<rows, A>(block);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        // Vector r holds lanes / rows k's; with rows == Width they follow one another in the panel.
        constexpr int stride = rows == Width ? lanes : Width;
        store(panel + d * Width + r * stride + i, block[r]);
      }
    }
    for (int d = 0; depth < lanes && d < depth; ++d) {
      for (int r = 0; r < rows; ++r) panel[d * Width + i + r] = from.data[r * from.stride + d];
    }
  }
}

// Rows that run across k: each is read once, as long as it is, and cut into pieces for the panels.
template <int Width, typename A, typename Reader>
void pack_across_depth(const Reader& reader, int64_t first, int count, int64_t k, int depth,
                       A* panels) {
  constexpr int lanes = kLanes<A>, step = std::min(Width, lanes);
  static_assert(kSpan % Width == 0 && kSpan <= kDepth);
  alignas(kVectorBytes) A row[kSpan + lanes];
  const auto start = reader.start(first, count);
  if (count <= Width && step == lanes) {  // there is but one panel, to which the row may go itself
    for (int d = 0; d < depth; ++d, panels += Width) {
      reader.row(start, k + d, panels);
      for (int i = count; i % lanes != 0; ++i) panels[i] = 0;
    }
    return;
  }
  const int64_t size = panel_size<Width, A>(depth);
  for (int d = 0; d < depth; ++d) {
    reader.row(start, k + d, row);
    for (int i = count; i % step != 0; ++i) row[i] = 0;
    A* to = panels + d * Width;
    for (int i = 0; i < count; i += Width, to += size) {
      for (int s = 0; s < Width; s += step) store(to + s, load_bytes<Vec<A, step>>(row + i + s));
    }
  }
}

// Packs rows first ... first + count - 1 of a reader's matrix, k's from `k` on, into panels of
// [depth][Width]. The last one is filled with zeros to whole vectors.
template <int Width, typename A, typename Reader>
void pack(const Reader& reader, int64_t first, int64_t count, int64_t k, int depth, A* panels) {
  if (reader.along_depth()) {
    for (int64_t i = 0; i < count; i += Width, panels += panel_size<Width, A>(depth)) {
      const int rows = static_cast<int>(std::min<int64_t>(Width, count - i));
      pack_along_depth<Width>(reader, first + i, rows, k, depth, panels);
    }
  } else {
    for (int64_t i = 0; i < count; i += kSpan) {
      const int span = static_cast<int>(std::min<int64_t>(kSpan, count - i));
      pack_across_depth<Width>(reader, first + i, span, k, depth,
                               panels + i / Width * panel_size<Width, A>(depth));
    }
  }
}

}  // namespace d2lops
