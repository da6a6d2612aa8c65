"""The kernels of pooling: the maximum or the average of each window (pool2d.py has the maths).

One for small windows, which are compiled for their sizes, one for any, and one whose lanes share a
window. They differ in how they walk over taps, not in what begins and ends the walk.
"""

import triton
import triton.language as tl

from d2lops.triton_kernels.arithmetic import narrow, widen
from d2lops.triton_kernels.blocks import POSITIONS, of_positions, zeros
from d2lops.triton_kernels.pool2d_tiles import averaged, planes, tile_of
from d2lops.triton_kernels.windows import inputs_of


@triton.jit
def maximum(best, where, x, tap):
    """The larger one and its tap; of equals the first, of NaNs the last."""
    better = (x > best) | (x != x)
    return tl.where(better, x, best), tl.where(better, tap, where)


@triton.jit
def largest(best, where):
    """What all lanes have seen: the same rule, but in integers, as maxima of floats drop NaNs."""
    is_nan = best != best
    last_nan = tl.max(tl.where(is_nan, where, -1), POSITIONS, keep_dims=True)
    most = tl.max(tl.where(is_nan, float("-inf"), best), POSITIONS, keep_dims=True)
    first = tl.min(tl.where(best == most, where, 0x7FFFFFFF), POSITIONS, keep_dims=True)
    has_nan = last_nan >= 0
    return tl.where(has_nan, float("nan"), most), tl.where(has_nan, last_nan, first)


@triton.jit
def first_tap(tap_h, tap_w, down, across, pitch):
    """Of a window, and where its maximum is if all it sees is -infinity. 0 if it sees nothing."""
    tap = tap_h * pitch + tap_w
    return tl.where((down > 0) & (across > 0), tap, 0).to(tl.int32)


@triton.jit
def unseen(x_ptr, argmax_ptr, tap, LANES: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile that has seen nothing: sums of 0, or maxima of -infinity, as if found at that tap."""
    total = zeros(x_ptr, LANES, CHANNELS)
    if argmax_ptr is not None:
        total -= float("inf")
    return total, tl.where(total < 0, tap, 0)  # tiles


@triton.jit
def store(
    y_ptr, argmax_ptr, place, total, where, exists,
    row, column, height, width, rows, columns,
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """A tile of maxima and where they are, or of sums, which become averages."""
    if argmax_ptr is not None:
        tl.store(argmax_ptr + place, where.to(argmax_ptr.dtype.element_ty), exists)
    else:
        total = averaged(
            total, row, column, height, width, rows, columns,
            kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
            DIVISOR, COUNT_INCLUDE_PAD, ADAPTIVE,
        )  # fmt: skip
    tl.store(y_ptr + place, narrow(total, y_ptr.dtype.element_ty), exists)


@triton.jit
def pool_small_windows(
    x_ptr, y_ptr, argmax_ptr,  # the last is None for averages
    channels, height, width, rows, columns, blocks,  # of planes of x, and of y
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,  # argmax has the same
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    INSIDE: tl.constexpr,  # no window sticks out
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Windows without dilation."""
    image, first, channel, row, column, exists = tile_of(
        channels, rows, columns, blocks, WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    row = tl.minimum(row, rows - 1)  # so that there is something to read
    top, left = row * STRIDE_H - TOP, column * STRIDE_W - LEFT
    x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
    x += top * x_stride_h + left * x_stride_w
    one = tl.full((), 1, tl.int64 if WIDE else tl.int32)
    begin = tl.maximum(-top, 0) * KERNEL_W + tl.maximum(-left, 0)
    total, where = unseen(x_ptr, argmax_ptr, begin.to(tl.int32), BLOCK_POSITIONS, BLOCK_CHANNELS)
    for i in tl.static_range(KERNEL_H):
        x_row = x + one * i * x_stride_h
        row_total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
        for j in tl.static_range(KERNEL_W):
            source = x_row + one * j * x_stride_w
            h, w = top + i, left + j
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            if argmax_ptr is not None:
                seen = tl.load(source) if INSIDE else tl.load(source, inside, float("-inf"))
                total, where = maximum(total, where, widen(seen), i * KERNEL_W + j)
            else:
                row_total += widen(tl.load(source) if INSIDE else tl.load(source, inside, 0.0))
        if argmax_ptr is None:
            total += row_total
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    store(
        y_ptr, argmax_ptr, place, total, where, exists,
        row, column, height, width, rows, columns,
        KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, TOP, BOTTOM, LEFT, RIGHT,
        DIVISOR, COUNT_INCLUDE_PAD, False,
    )  # fmt: skip


@triton.jit
def pool_windows(
    x_ptr, y_ptr, argmax_ptr,  # the last is None for averages
    channels, height, width, rows, columns, blocks,  # of planes of x, and of y
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,  # argmax has the same
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w,
    most_h, most_w,  # inputs that a window sees
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Any windows."""
    image, first, channel, row, column, exists = tile_of(
        channels, rows, columns, blocks, WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    h, down, tap_h = inputs_of(row, height, rows, kernel_h, stride_h, top, dilation_h, ADAPTIVE)
    w, across, tap_w = inputs_of(
        column, width, columns, kernel_w, stride_w, left, dilation_w, ADAPTIVE
    )
    down = tl.where(row < rows, down, 0)
    x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
    x += h * x_stride_h + w * x_stride_w
    one = tl.full((), 1, tl.int64 if WIDE else tl.int32)
    begin = first_tap(tap_h, tap_w, down, across, kernel_w)
    total, where = unseen(x_ptr, argmax_ptr, begin, BLOCK_POSITIONS, BLOCK_CHANNELS)
    for i in range(most_h):
        row_total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
        for j in range(most_w):
            source = x + one * i * dilation_h * x_stride_h + one * j * dilation_w * x_stride_w
            inside = (i < down) & (j < across)
            if argmax_ptr is not None:
                seen = widen(tl.load(source, inside, float("-inf")))
                tap = (tap_h + i) * kernel_w + tap_w + j
                total, where = maximum(total, where, seen, tap.to(tl.int32))
            else:
                row_total += widen(tl.load(source, inside, 0.0))
        if argmax_ptr is None:
            total += row_total
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    store(
        y_ptr, argmax_ptr, place, total, where, exists,
        row, column, height, width, rows, columns,
        kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
        DIVISOR, COUNT_INCLUDE_PAD, ADAPTIVE,
    )  # fmt: skip


@triton.jit
def pool_large_windows(
    x_ptr, y_ptr, argmax_ptr,  # the last is None for averages
    channels, height, width, rows, columns, blocks,  # of planes of x, and of y
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,  # argmax has the same
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w,
    taps,  # inputs that a window sees at most
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
    ONE_ROW: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    """Any windows: a program has one, in some channels, and its lanes share the taps."""
    image, first, channel, row, column, exists = tile_of(
        channels, rows, columns, blocks, WIDE, EVEN, BLOCK_CHANNELS, 1
    )
    h, down, tap_h = inputs_of(row, height, rows, kernel_h, stride_h, top, dilation_h, ADAPTIVE)
    w, across, tap_w = inputs_of(
        column, width, columns, kernel_w, stride_w, left, dilation_w, ADAPTIVE
    )
    x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
    x += h * x_stride_h + w * x_stride_w
    begin = first_tap(tap_h, tap_w, down, across, kernel_w)
    total, where = unseen(x_ptr, argmax_ptr, begin, BLOCK_TAPS, BLOCK_CHANNELS)
    one = tl.full((), 1, tl.int64 if WIDE else tl.int32)
    for start in range(0, taps, BLOCK_TAPS):
        number = one * start + of_positions(tl.arange(0, BLOCK_TAPS))
        if ONE_ROW:
            i, j = 0 * number, number
        else:
            i, j = number // tl.maximum(across, 1), number % tl.maximum(across, 1)
        inside = (i < down) & (j < across)
        source = x + (i * dilation_h * x_stride_h + j * dilation_w * x_stride_w)
        if argmax_ptr is not None:
            seen = widen(tl.load(source, inside, float("-inf")))
            tap = (tap_h + i) * kernel_w + tap_w + j
            total, where = maximum(total, where, seen, tap.to(tl.int32))
        else:
            total += widen(tl.load(source, inside, 0.0))
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    if argmax_ptr is not None:
        total, where = largest(total, where)
    else:
        total = tl.sum(total, POSITIONS, keep_dims=True)
    store(
        y_ptr, argmax_ptr, place, total, where, exists,
        row, column, height, width, rows, columns,
        kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
        DIVISOR, COUNT_INCLUDE_PAD, ADAPTIVE,
    )  # fmt: skip
