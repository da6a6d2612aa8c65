// Matrices whose elements are gathered from a tensor as they are needed: the one way in which the
// products of gemm.h read and write, whether a tensor is a matrix or an image under a window.
//
// The index of a row, or of a column, is a number of three digits, like the pixel (n, a, b) of an
// image or the tap (c, r, s) of a window; each digit moves so far in memory, down and right. What a
// row and a column add up to is an element:
//
//   M[i, k] = data[rows(i).offset + columns(k).offset]   if (rows(i) + columns(k)).{h, w} lie
//                                                        inside the image, else 0
//
// In cross-correlation, the row is a pixel and the column a tap; the weight gradient has them the
// other way round; a matrix has one digit each, and an image of one pixel.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace d2lops {

// Where a row or a column is, relative to the others: offsets of data and mask in elements. What is
// always needed is read at once.
struct alignas(16) Place {
  int64_t offset;
  int32_t h, w;
  int64_t mask;
};

struct Digit {
  int64_t size = 1;
  int64_t stride = 0, mask_stride = 0;
  int32_t h = 0, w = 0;  // steps in the image
};

// Digits from the slowest to the fastest.
struct Walk {
  Digit outer{}, middle{}, inner{};
  Place origin{};

  int64_t size() const { return outer.size * middle.size * inner.size; }

  // From one index to the next one, mostly.
  D2LOPS_HOST_DEVICE int64_t step() const {
    return inner.size > 1 ? inner.stride : middle.size > 1 ? middle.stride : outer.stride;
  }

  D2LOPS_HOST_DEVICE Place at(int64_t index) const {
    int64_t rest, i, m;
    split(index, inner.size, rest, i);
    split(rest, middle.size, rest, m);
    return {
        origin.offset + rest * outer.stride + m * middle.stride + i * inner.stride,
        static_cast<int32_t>(origin.h + rest * outer.h + m * middle.h + i * inner.h),
        static_cast<int32_t>(origin.w + rest * outer.w + m * middle.w + i * inner.w),
        origin.mask + rest * outer.mask_stride + m * middle.mask_stride + i * inner.mask_stride};
  }

 private:
  // Division of 64 bits takes a GPU some hundred instructions; most numbers fit in 32.
  static D2LOPS_HOST_DEVICE void split(int64_t number, int64_t size, int64_t& quotient,
                                       int64_t& rest) {
    if (number <= UINT32_MAX && size <= UINT32_MAX) {
      const auto a = static_cast<uint32_t>(number), b = static_cast<uint32_t>(size);
      quotient = a / b;
      rest = a % b;
    } else {
      quotient = number / size;
      rest = number % size;
    }
  }
};

// One digit: `count` indices, `stride` elements apart.
inline Walk line(int64_t count, int64_t stride, int64_t mask_stride = 0) {
  Walk walk;
  walk.inner = {count, stride, mask_stride};
  return walk;
}

// What is negative is a large unsigned number.
D2LOPS_HOST_DEVICE bool lies_inside(const Place& row, const Place& column, uint32_t height,
                                    uint32_t width) {
  return static_cast<uint32_t>(row.h) + static_cast<uint32_t>(column.h) < height &&
         static_cast<uint32_t>(row.w) + static_cast<uint32_t>(column.w) < width;
}

// What is read. Where mask, the output of a ReLU, is not positive, an element counts as zero.
template <typename T>
struct Gathered {
  const T* data = nullptr;
  const T* mask = nullptr;
  Walk rows{}, columns{};
  int64_t group_stride = 0, mask_group_stride = 0;  // from one group's matrix to the next one's
  uint32_t height = 1, width = 1;                   // of the image
  bool along_depth = true;  // whether neighbours in memory are columns, or rows

  D2LOPS_HOST_DEVICE bool inside(const Place& row, const Place& column) const {
    return lies_inside(row, column, height, width);
  }
};

// What is written.
template <typename T>
struct Scattered {
  T* data = nullptr;
  Walk rows{}, columns{};
  int64_t group_stride = 0;
  uint32_t height = 1, width = 1;

  D2LOPS_HOST_DEVICE bool inside(const Place& row, const Place& column) const {
    return lies_inside(row, column, height, width);
  }
};

}  // namespace d2lops
