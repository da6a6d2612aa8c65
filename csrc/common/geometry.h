// The sizes of a call, in the words of each operator.
#pragma once

#include <cstdint>

#include "common/window.h"

namespace d2lops {

struct Pair {
  int64_t h, w;
};

// One call of corr2d. Channels are per group: `in` and `out`.
struct Geometry {
  int64_t images, groups, in, out;
  Pair input, output, kernel, stride, dilation, before, after;  // padding before and after
  bool tf32 = false;  // whether tensor cores may round float32 numbers

  // Whether there is one window, which is the whole image and no more.
  bool covers_image() const {
    const auto along = [&](int64_t Pair::* axis) {
      return kernel.*axis == input.*axis && before.*axis == 0 && after.*axis == 0;
    };
    return along(&Pair::h) && along(&Pair::w);
  }
};

// One matrix product: (rows, depth) times (depth, columns).
struct ProductSize {
  int64_t rows, columns, depth;
  bool tf32 = false;  // whether tensor cores may round float32 numbers
};

// An (N, C, H, W) tensor.
struct Extent {
  int64_t images, channels, height, width;
};

// One call of pooling: the windows of a plane's rows and columns, in so many planes.
template <typename Windows>
struct Pooling2d {
  Windows rows, columns;
  int64_t images = 0, channels = 0;

  int64_t pitch() const { return columns.most_taps(); }
  int64_t taps() const { return rows.most_taps() * columns.most_taps(); }
};

// What averages are divided by, if not by the size of the window.
struct Divisor {
  bool count_include_pad = false;
  int64_t override = 0;  // 0: none
};

// One dimension of a tensor and of its output, for elementwise operators. A logical index is a
// row-major one.
struct Dim {
  int64_t size, x_stride, y_stride, logical_stride;
};

}  // namespace d2lops
