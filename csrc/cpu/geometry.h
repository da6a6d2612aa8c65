// What the three maps of corr2d have in common: the places of a window, and which way a call goes.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/geometry.h"
#include "common/operand.h"
#include "cpu/im2col.h"
#include "cpu/padded.h"

namespace d2lops {

// Whether an image is read in runs of channels, or in runs of pixels even though its channels lie
// side by side, because there are too few of them.
inline bool runs_over_taps(const Strides& image, int64_t planes) {
  return image.c == 1 && planes >= 8;
}

// Taps for `planes` planes and the places of a window given by (r, dh) and (s, dw), in the order in
// which the image lies in memory: planes innermost if channels are, else outermost.
inline std::vector<Tap> make_taps(int64_t planes, const std::vector<Place>& rows,
                                  const std::vector<Place>& cols, const Strides& image,
                                  const Strides& mask, int64_t weight_plane, const Strides& weight,
                                  bool planes_innermost) {
  std::vector<Tap> taps;
  taps.reserve(planes * rows.size() * cols.size());
  const auto add = [&](int64_t plane, const Place& r, const Place& s) {
    taps.push_back({plane * image.c + r.shift * image.h + s.shift * image.w,
                    plane * mask.c + r.shift * mask.h + s.shift * mask.w,
                    plane * weight_plane + r.index * weight.h + s.index * weight.w, r.shift,
                    s.shift});
  };
  if (planes_innermost) {
    for (const Place& r : rows)
      for (const Place& s : cols)
        for (int64_t p = 0; p < planes; ++p) add(p, r, s);
  } else {
    for (int64_t p = 0; p < planes; ++p)
      for (const Place& r : rows)
        for (const Place& s : cols) add(p, r, s);
  }
  return taps;
}

// Window places of the forward direction along one axis: tap r reads r * dilation - before.
inline std::vector<Place> window(int64_t kernel, int64_t dilation, int64_t before) {
  std::vector<Place> places;
  for (int64_t r = 0; r < kernel; ++r) places.push_back({r, r * dilation - before});
  return places;
}

// Window places that meet the inputs of one phase, i = phase, phase + stride, ...: with i = phase +
// a * stride, tap r meets output a + (phase + before - r * dilation) / stride, where that is a
// whole number.
inline std::vector<Place> window_of_phase(int64_t phase, int64_t kernel, int64_t stride,
                                          int64_t dilation, int64_t before) {
  std::vector<Place> places;
  for (int64_t r = 0; r < kernel; ++r) {
    const int64_t shift = phase + before - r * dilation;
    if (shift % stride == 0) places.push_back({r, shift / stride});
  }
  return places;
}

// Rows of a grid that follow one another in every image that it visits are one long row, and so are
// images: windows of one place need no more.
template <typename T>
void merge_rows(Im2col<T>& x) {
  const auto follow = [&](int64_t Strides::* outer, int64_t inner) {
    return x.strides.*outer == inner * x.strides.w &&
           (!x.mask || x.mask_strides.*outer == inner * x.mask_strides.w);
  };
  if (x.grid.step_h != 1 || x.grid.step_w != 1 || x.grid.height != x.height ||
      x.grid.width != x.width)
    return;
  if (x.grid.count() == 0 || !follow(&Strides::h, x.width)) return;
  x.width *= x.height;
  x.height = 1;
  if (follow(&Strides::n, x.width)) {
    x.width *= x.grid.images;
    x.grid.images = 1;
  }
  x.grid.width = x.width;
  x.grid.height = 1;
}

// How a group's part of the image, the weights and the output lie.
struct GroupStep {
  int64_t planes, weights, outputs;  // input planes, elements of the weight, output planes
};

// Windows of 3 x 3 neighbours, over enough channels and pixels that the transforms cost little
// beside the products, in rows whose tiles fit the cache or nearly. How many images there are must
// not matter: each has its own bits, whatever lies beside it.
template <typename T>
bool fits_winograd(const GroupStep& step, const Im2col<T>& x, const std::vector<Place>& rows,
                   const std::vector<Place>& cols) {
  const auto neighbours = [](const std::vector<Place>& places) {
    return places.size() == 3 && std::abs(places[0].shift - places[2].shift) == 2;
  };
  return neighbours(rows) && neighbours(cols) && x.grid.step_h == 1 && x.grid.step_w == 1 &&
         step.planes >= 16 && step.outputs >= 16 && x.grid.height * x.grid.width >= 36 &&
         x.grid.width * (step.planes + step.outputs) <= 1 << 20 && x.grid.images > 0;
}

// Which way: the direct kernels and the slabs need rows of a size that fits the cache; slabs pay
// for windows of several places.
template <typename T>
bool is_depthwise(int64_t groups, const GroupStep& step, const Im2col<T>& x) {
  return groups > 1 && step.planes == 1 && step.outputs == 1 && x.grid.width <= 65536;
}
template <typename T>
bool fits_slabs(const Im2col<T>& x, int64_t planes, const std::vector<Place>& rows,
                const std::vector<Place>& cols) {
  const auto places = static_cast<int64_t>(rows.size() * cols.size());
  const int64_t row = planes * x.grid.step_h * x.grid.step_w * x.grid.width;
  return places > 1 && row * static_cast<int64_t>(rows.size()) <= 1 << 20;
}

// Whether to pack in any case: tile registers (amx.h) multiply bfloat16 numbers so much faster than
// vectors multiply float32 numbers that it pays where many outputs share it, or channels lie side by
// side.
template <typename T>
bool prefers_tiles([[maybe_unused]] const GroupStep& step, [[maybe_unused]] const Im2col<T>& x) {
#if defined(__AMX_BF16__)
  return std::is_same_v<T, bfloat16> && step.planes >= 32 &&
         step.outputs >= (x.strides.c == 1 ? 16 : 96);
#else
  return false;
#endif
}

}  // namespace d2lops
