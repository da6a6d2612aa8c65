// The windows of pooling along one axis: which inputs an output sees, and which outputs see an
// input. Two kinds with the same questions and answers, so that one kernel serves both; pooling a
// plane asks them of its rows and of its columns. A tap is an input's number inside a window; taps
// in the padding count.
//
//   sliding:   output o sees inputs o * stride - padding + tap * dilation, 0 <= tap < kernel
//   adaptive:  output o sees inputs floor(o * inputs / outputs) ... ceil((o + 1) * inputs /
//              outputs) - 1
#pragma once

#include <cstdint>

#include "common/integer.h"

namespace d2lops {

D2LOPS_HOST_DEVICE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
D2LOPS_HOST_DEVICE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Positions first, first + step, first + 2 step, ..., `count` of them.
struct Span {
  int64_t first, count, step;
};

struct SlidingWindows {
  int64_t inputs, outputs, kernel, stride, padding, padding_after, dilation;

  D2LOPS_HOST_DEVICE int64_t most_taps() const { return kernel; }

  // From the origin of one window to the next; 0 if that varies.
  D2LOPS_HOST_DEVICE int64_t spacing() const { return stride; }

  // The number of windows. With `ceil_mode`, the last one may stick out beyond the padding, as long
  // as it begins before it.
  D2LOPS_HOST_DEVICE int64_t count(bool ceil_mode) const {
    const int64_t padded = inputs + padding + padding_after;
    const int64_t room = padded - (kernel - 1) * dilation - 1;
    const int64_t windows = (ceil_mode ? ceil_div(room, stride) : floor_div(room, stride)) + 1;
    const bool begins_too_late = (windows - 1) * stride >= inputs + padding;
    return windows - (ceil_mode && begins_too_late);
  }

  D2LOPS_HOST_DEVICE int64_t origin(int64_t output) const { return output * stride - padding; }

  D2LOPS_HOST_DEVICE int64_t tap(int64_t input, int64_t output) const {
    return (input - origin(output)) / dilation;
  }

  D2LOPS_HOST_DEVICE Span inputs_of(int64_t output) const {
    const int64_t begin = at_least(0, ceil_div(-origin(output), dilation));
    const int64_t end = at_most(kernel, ceil_div(inputs - origin(output), dilation));
    return {origin(output) + begin * dilation, at_least(0, end - begin), dilation};
  }

  D2LOPS_HOST_DEVICE Span outputs_of(int64_t input) const {
    const int64_t step = dilation / common_divisor(stride, dilation);
    const int64_t padded = input + padding;
    const int64_t last = at_most(outputs - 1, padded / stride);
    int64_t first = at_least(0, ceil_div(padded - (kernel - 1) * dilation, stride));
    while (first <= last && (padded - first * stride) % dilation != 0) ++first;
    return {first, first <= last ? (last - first) / step + 1 : 0, step};
  }

  // What an average divides by: the window without what sticks out beyond the padding, or beyond
  // the input. At least 1, which matters to windows that see nothing.
  D2LOPS_HOST_DEVICE int64_t extent(int64_t output, bool count_include_pad) const {
    const int64_t begin = origin(output), end = begin + kernel;
    const int64_t seen = count_include_pad ? at_most(end, inputs + padding_after) - begin
                                           : at_most(end, inputs) - at_least(begin, 0);
    return at_least(1, seen);
  }

 private:
  static D2LOPS_HOST_DEVICE int64_t common_divisor(int64_t a, int64_t b) {
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

struct AdaptiveWindows {
  int64_t inputs, outputs;
  static constexpr int64_t dilation = 1;

  D2LOPS_HOST_DEVICE int64_t origin(int64_t output) const { return output * inputs / outputs; }

  D2LOPS_HOST_DEVICE int64_t tap(int64_t input, int64_t output) const {
    return input - origin(output);
  }

  D2LOPS_HOST_DEVICE Span inputs_of(int64_t output) const {
    const int64_t first = origin(output);
    return {first, ceil_div((output + 1) * inputs, outputs) - first, 1};
  }

  // The same question with the roles of inputs and outputs exchanged.
  D2LOPS_HOST_DEVICE Span outputs_of(int64_t input) const {
    return AdaptiveWindows{outputs, inputs}.inputs_of(input);
  }

  D2LOPS_HOST_DEVICE int64_t extent(int64_t output, bool) const { return inputs_of(output).count; }

  // No window has more taps than this.
  D2LOPS_HOST_DEVICE int64_t most_taps() const {
    if (outputs == 0) return 0;
    return inputs / outputs + (inputs % outputs == 0 ? 0 : 2);
  }

  D2LOPS_HOST_DEVICE int64_t spacing() const { return 0; }
};

}  // namespace d2lops
