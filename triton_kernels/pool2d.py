"""Pooling (D2L 7.5) in Triton: the maximum or the average of each window, and the adjoints.

    max              y[o] = max x[i],  argmax[o] = the tap of i in o  (first of equals, last NaN)
    average          y[o] = (sum of x[i]) / area[o]
    average's        x[i] = sum of g[o] / area[o]
    max's            x[i] = sum of g[o] where argmax[o] is the tap of i in o

A tap is an input's number inside a window; taps in the padding count. Adjoints ask which windows
cover an input, so that every element is written once, and needs no atomics.

Tiling: a program has some positions of the planes of some channels. What a window sees depends on
its position alone, so it is found once and used for all of a lane's channels. Lanes are along
whichever lies side by side in memory: channels, 16 bytes for each lane, or else positions, with
the channels in turn. Windows without dilation, of at most 25 taps, are compiled for their sizes: no
loop, all loads in flight at once. Their adjoint's tile is made of cells, as high and wide as the
stride is: all inputs of a cell are covered by the same few windows, which are read once. Large
windows that are few, or lie apart, have a program of their own, whose lanes share the taps.

Bytes: each input and output once, and one for the argmax. Arithmetic: about 6 instructions a tap
and element for max, 3 for averages. Memory limits all but 3x3 windows that are one apart, and
those of 16-bit numbers that are two apart.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import narrow, widen
from d2lops.triton_kernels.blocks import (
    POSITIONS,
    block_of_channels,
    of_channels,
    of_positions,
    power_of_two,
    zeros,
)
from d2lops.triton_kernels.device import INTERPRETED
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.windows import (
    Axis,
    Windows,
    adaptive,
    between,
    extent,
    inputs_of,
    origin_of,
    window_over,
)

INFINITY = tl.constexpr(float("inf"))


# Tiles, of positions and channels, and what is computed on them.


@triton.jit
def tile_of(
    channels, rows, columns, blocks,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Which image, channels, rows and columns a program has, and what there is of them.

    Channels are the first one's number and those from there on, as numbers beyond it. EVEN says
    that all of them exist; else the last one that does takes the place of those that do not, so
    that only stores need to ask. `blocks` of positions make a plane.
    """
    program = tl.program_id(0)
    block = program % blocks
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    first = program // blocks % channel_blocks * BLOCK_CHANNELS
    image = (program // blocks // channel_blocks).to(tl.int64)
    channel = of_channels(tl.arange(0, BLOCK_CHANNELS))
    exists = of_channels(tl.full((BLOCK_CHANNELS,), True, tl.int1))
    if not EVEN:
        exists = channel < channels - first
        channel = tl.minimum(channel, channels - first - 1)
    if WIDE:
        block = block.to(tl.int64)
        channel = channel.to(tl.int64)
    position = block * BLOCK_POSITIONS + of_positions(tl.arange(0, BLOCK_POSITIONS))
    row, column = position // columns, position % columns
    return image, first.to(tl.int64), channel, row, column, exists & (row < rows)


@triton.jit
def planes(x_ptr, stride_n, stride_c, image, first, channel):
    """Where the planes of a tile's channels begin."""
    return x_ptr + image * stride_n + first * stride_c + channel * stride_c


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
    most = tl.max(tl.where(is_nan, -INFINITY, best), POSITIONS, keep_dims=True)
    first = tl.min(tl.where(best == most, where, 0x7FFFFFFF), POSITIONS, keep_dims=True)
    has_nan = last_nan >= 0
    return tl.where(has_nan, float("nan"), most), tl.where(has_nan, last_nan, first)


@triton.jit
def first_tap(tap_h, tap_w, down, across, pitch):
    """Of a window, and where its maximum is if all it sees is -infinity. 0 if it sees nothing."""
    tap = tap_h * pitch + tap_w
    return tl.where((down > 0) & (across > 0), tap, 0).to(tl.int32)


@triton.jit
def divided(x, height, width, DIVISOR: tl.constexpr):
    """By what an average is divided by: DIVISOR, or the window's area if that is 0. Rounded to the
    nearest, so that the average of a constant is that constant."""
    if DIVISOR > 0 and DIVISOR & (DIVISOR - 1) == 0:
        return x * (1 / DIVISOR)
    else:
        by = tl.full((1, 1), DIVISOR, x.dtype) if DIVISOR != 0 else (height * width).to(x.dtype)
        return x / by if x.dtype == tl.float64 else tl.div_rn(x, by)


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
    total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
    if argmax_ptr is not None:
        total -= INFINITY
        where = tl.maximum(-top, 0) * KERNEL_W + tl.maximum(-left, 0)
        where = tl.where(total < 0, where.to(tl.int32), 0)  # a tile
    for i in tl.static_range(KERNEL_H):
        x_row = x + one * i * x_stride_h
        row_total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
        for j in tl.static_range(KERNEL_W):
            source = x_row + one * j * x_stride_w
            h, w = top + i, left + j
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            if argmax_ptr is not None:
                seen = tl.load(source) if INSIDE else tl.load(source, inside, -INFINITY)
                total, where = maximum(total, where, widen(seen), i * KERNEL_W + j)
            else:
                row_total += widen(tl.load(source) if INSIDE else tl.load(source, inside, 0.0))
        if argmax_ptr is None:
            total += row_total
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    if argmax_ptr is not None:
        tl.store(argmax_ptr + place, where.to(argmax_ptr.dtype.element_ty), exists)
    else:
        down = extent(row, height, rows, KERNEL_H, STRIDE_H, TOP, BOTTOM, COUNT_INCLUDE_PAD, False)
        across = extent(
            column, width, columns, KERNEL_W, STRIDE_W, LEFT, RIGHT, COUNT_INCLUDE_PAD, False
        )
        total = divided(total, down, across, DIVISOR)
    tl.store(y_ptr + place, narrow(total, y_ptr.dtype.element_ty), exists)


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
    total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
    if argmax_ptr is not None:
        total -= INFINITY
        where = first_tap(tap_h, tap_w, down, across, kernel_w)
        where = tl.where(total < 0, where, 0)  # a tile
    for i in range(most_h):
        row_total = zeros(x_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
        for j in range(most_w):
            source = x + one * i * dilation_h * x_stride_h + one * j * dilation_w * x_stride_w
            inside = (i < down) & (j < across)
            if argmax_ptr is not None:
                seen = widen(tl.load(source, inside, -INFINITY))
                tap = (tap_h + i) * kernel_w + tap_w + j
                total, where = maximum(total, where, seen, tap.to(tl.int32))
            else:
                row_total += widen(tl.load(source, inside, 0.0))
        if argmax_ptr is None:
            total += row_total
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    if argmax_ptr is not None:
        tl.store(argmax_ptr + place, where.to(argmax_ptr.dtype.element_ty), exists)
    else:
        down = extent(
            row, height, rows, kernel_h, stride_h, top, bottom, COUNT_INCLUDE_PAD, ADAPTIVE
        )
        across = extent(
            column, width, columns, kernel_w, stride_w, left, right, COUNT_INCLUDE_PAD, ADAPTIVE
        )
        total = divided(total, down, across, DIVISOR)
    tl.store(y_ptr + place, narrow(total, y_ptr.dtype.element_ty), exists)


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
    total = zeros(x_ptr, BLOCK_TAPS, BLOCK_CHANNELS)
    if argmax_ptr is not None:
        total -= INFINITY
        where = first_tap(tap_h, tap_w, down, across, kernel_w)
        where = tl.where(total < 0, where, 0)  # a tile
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
            seen = widen(tl.load(source, inside, -INFINITY))
            tap = (tap_h + i) * kernel_w + tap_w + j
            total, where = maximum(total, where, seen, tap.to(tl.int32))
        else:
            total += widen(tl.load(source, inside, 0.0))
    place = planes(0, y_stride_n, y_stride_c, image, first, channel)
    place += row * y_stride_h + column * y_stride_w
    if argmax_ptr is not None:
        total, where = largest(total, where)
        tl.store(argmax_ptr + place, where.to(argmax_ptr.dtype.element_ty), exists)
    else:
        down = extent(
            row, height, rows, kernel_h, stride_h, top, bottom, COUNT_INCLUDE_PAD, ADAPTIVE
        )
        across = extent(
            column, width, columns, kernel_w, stride_w, left, right, COUNT_INCLUDE_PAD, ADAPTIVE
        )
        total = tl.sum(total, POSITIONS, keep_dims=True)
        total = divided(total, down, across, DIVISOR)
    tl.store(y_ptr + place, narrow(total, y_ptr.dtype.element_ty), exists)


@triton.jit
def with_window(
    total, value, picked, ROW: tl.constexpr, HEIGHT: tl.constexpr, COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """`total` and what an input has from a window of which it is the tap in that row and column."""
    if ROW >= 0 and ROW < HEIGHT and COLUMN >= 0 and COLUMN < WIDTH:
        if picked is not None:
            total += tl.where(picked == ROW * WIDTH + COLUMN, value, 0.0)
        else:
            total += value
    return total


@triton.jit
def adjoint_of_small_windows(
    g_ptr, argmax_ptr, x_ptr,  # the second is None for averages
    channels, height, width, rows, columns, blocks,
    g_stride_n, g_stride_c, g_stride_h, g_stride_w,
    argmax_stride_n, argmax_stride_c, argmax_stride_h, argmax_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    FIRST_H: tl.constexpr, FIRST_W: tl.constexpr,  # of the windows that cover cell 0
    COUNT_H: tl.constexpr, COUNT_W: tl.constexpr,  # of the windows that cover a cell
    PAIRS: tl.constexpr,  # of columns are stored together; strides of x count them
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Windows without dilation. Positions are cells of inputs, as large as the stride is."""
    image, first, channel, row, column, exists = tile_of(
        channels, tl.cdiv(height, STRIDE_H), tl.cdiv(width, STRIDE_W), blocks,
        WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS,
    )  # fmt: skip
    g = planes(g_ptr, g_stride_n, g_stride_c, image, first, channel)
    g += (row + FIRST_H) * g_stride_h + (column + FIRST_W) * g_stride_w
    if argmax_ptr is not None:
        argmax = planes(argmax_ptr, argmax_stride_n, argmax_stride_c, image, first, channel)
        argmax += (row + FIRST_H) * argmax_stride_h + (column + FIRST_W) * argmax_stride_w
    one = tl.full((), 1, tl.int64 if WIDE else tl.int32)
    seen = ()
    picked = ()
    for m in tl.static_range(COUNT_H):
        for n in tl.static_range(COUNT_W):
            h, w = row + FIRST_H + m, column + FIRST_W + n
            covers = (h >= 0) & (h < rows) & (w >= 0) & (w < columns)
            value = tl.load(g + one * m * g_stride_h + one * n * g_stride_w, covers, 0.0)
            if argmax_ptr is not None:
                source = argmax + one * m * argmax_stride_h + one * n * argmax_stride_w
                picked += (tl.load(source, covers, 0).to(tl.int32),)
                seen += (widen(value),)
            else:
                down = extent(
                    h, height, rows, KERNEL_H, STRIDE_H, TOP, BOTTOM, COUNT_INCLUDE_PAD, False
                )
                across = extent(
                    w, width, columns, KERNEL_W, STRIDE_W, LEFT, RIGHT, COUNT_INCLUDE_PAD, False
                )
                seen += (widen(value) * divided(zeros(g_ptr, 1, 1) + 1, down, across, DIVISOR),)
    x = planes(0, x_stride_n, x_stride_c, image, first, channel)
    for a in tl.static_range(STRIDE_H):
        h = row * STRIDE_H + a
        totals = ()
        for b in tl.static_range(STRIDE_W):
            total = zeros(g_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
            for m in tl.static_range(COUNT_H):
                for n in tl.static_range(COUNT_W):
                    total = with_window(
                        total, seen[m * COUNT_W + n],
                        picked[m * COUNT_W + n] if argmax_ptr is not None else None,
                        a + TOP - (FIRST_H + m) * STRIDE_H, KERNEL_H,
                        b + LEFT - (FIRST_W + n) * STRIDE_W, KERNEL_W,
                    )  # fmt: skip
            totals += (narrow(total, x_ptr.dtype.element_ty),)
        if PAIRS:
            pair = tl.join(totals[0], totals[1])
            place = (x + h * x_stride_h + column)[:, :, None] * 2 + tl.arange(0, 2)[None, None, :]
            tl.store(x_ptr + place, pair, (exists & (h < height))[:, :, None])
        else:
            for b in tl.static_range(STRIDE_W):
                w = column * STRIDE_W + b
                place = x + h * x_stride_h + w * x_stride_w
                tl.store(x_ptr + place, totals[b], exists & (h < height) & (w < width))


@triton.jit
def adjoint_of_windows(
    g_ptr, argmax_ptr, x_ptr,  # the second is None for averages
    channels, height, width, rows, columns, blocks,
    g_stride_n, g_stride_c, g_stride_h, g_stride_w,
    argmax_stride_n, argmax_stride_c, argmax_stride_h, argmax_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w,
    most_h, most_w,  # windows that may cover an input
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Any windows. Positions are inputs."""
    image, first, channel, row, column, exists = tile_of(
        channels, height, width, blocks, WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    g = planes(g_ptr, g_stride_n, g_stride_c, image, first, channel)
    if argmax_ptr is not None:
        argmax = planes(argmax_ptr, argmax_stride_n, argmax_stride_c, image, first, channel)
    total = zeros(g_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS)
    for m in range(most_h):
        h, tap_h, covers_h = window_over(
            row, m, height, rows, kernel_h, stride_h, top, dilation_h, most_h, ADAPTIVE
        )
        for n in range(most_w):
            w, tap_w, covers_w = window_over(
                column, n, width, columns, kernel_w, stride_w, left, dilation_w, most_w, ADAPTIVE
            )
            covers = covers_h & covers_w & (row < height)
            value = widen(tl.load(g + h * g_stride_h + w * g_stride_w, covers, 0.0))
            if argmax_ptr is not None:
                source = argmax + h * argmax_stride_h + w * argmax_stride_w
                tap = tap_h * kernel_w + tap_w
                value = tl.where(tl.load(source, covers, 0).to(tl.int32) == tap, value, 0.0)
            else:
                down = extent(
                    h, height, rows, kernel_h, stride_h, top, bottom, COUNT_INCLUDE_PAD, ADAPTIVE
                )
                across = extent(
                    w, width, columns, kernel_w, stride_w, left, right, COUNT_INCLUDE_PAD, ADAPTIVE
                )
                value *= divided(zeros(g_ptr, 1, 1) + 1, down, across, DIVISOR)
            total += value
    x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
    x += row * x_stride_h + column * x_stride_w
    tl.store(x, narrow(total, x_ptr.dtype.element_ty), exists)


@triton.jit
def adjoint_of_one_window(
    g_ptr, argmax_ptr, x_ptr,  # the second is None for averages
    channels, height, width, rows, columns, blocks,
    g_stride_n, g_stride_c, g_stride_h, g_stride_w,
    argmax_stride_n, argmax_stride_c, argmax_stride_h, argmax_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """A window that sees the whole plane. Positions are inputs."""
    image, first, channel, row, column, exists = tile_of(
        channels, height, width, blocks, WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    value = widen(tl.load(planes(g_ptr, g_stride_n, g_stride_c, image, first, channel)))
    if argmax_ptr is not None:
        argmax = planes(argmax_ptr, argmax_stride_n, argmax_stride_c, image, first, channel)
        tap = tl.load(argmax).to(tl.int32)
        total = tl.where(tap == row * width + column, value, 0.0)
    else:
        one = tl.full((1, 1), 1, tl.int32)
        value *= divided(zeros(g_ptr, 1, 1) + 1, one * height, one * width, DIVISOR)
        total = zeros(g_ptr, BLOCK_POSITIONS, BLOCK_CHANNELS) + value
    x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
    x += row * x_stride_h + column * x_stride_w
    tl.store(x, narrow(total, x_ptr.dtype.element_ty), exists)


@triton.jit
def gather(
    x_ptr, argmax_ptr, y_ptr,  # the first is None for indices
    channels, height, width, rows, columns, blocks,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    argmax_stride_n, argmax_stride_c, argmax_stride_h, argmax_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w,
    ADAPTIVE: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """The element that argmax points to, 0 if that is nowhere; or where in its plane it is."""
    image, first, channel, row, column, exists = tile_of(
        channels, rows, columns, blocks, WIDE, EVEN, BLOCK_CHANNELS, BLOCK_POSITIONS
    )
    argmax = planes(argmax_ptr, argmax_stride_n, argmax_stride_c, image, first, channel)
    argmax += row * argmax_stride_h + column * argmax_stride_w
    tap = tl.load(argmax, row < rows, 0).to(tl.int32)
    h = origin_of(row, height, rows, stride_h, top, ADAPTIVE) + tap // kernel_w * dilation_h
    w = origin_of(column, width, columns, stride_w, left, ADAPTIVE) + tap % kernel_w * dilation_w
    if x_ptr is not None:
        inside = exists & (tap >= 0) & (tap < kernel_h * kernel_w)
        inside &= (h >= 0) & (h < height) & (w >= 0) & (w < width)
        x = planes(x_ptr, x_stride_n, x_stride_c, image, first, channel)
        y = tl.load(x + h * x_stride_h + w * x_stride_w, inside, 0.0)
    else:
        y = h.to(tl.int64) * width + w
    place = planes(y_ptr, y_stride_n, y_stride_c, image, first, channel)
    tl.store(place + row * y_stride_h + column * y_stride_w, y, exists)


# What launchers have in common.


class Planes(NamedTuple):
    """The planes of some tensors of the same images and channels."""

    images: int
    channels: int
    strides: list[tuple[int, ...]]
    reach: int  # of a plane, in memory

    def channels_inside(self) -> bool:
        """Whether channels lie side by side."""
        return self.channels > 1 and all(stride[1] == 1 for stride in self.strides)


def merged(*tensors: Tensor) -> Planes:
    """Images whose channels follow those of the one before are one image of many channels."""
    images, channels = tensors[0].shape[:2]
    strides = [tuple(x.stride()) for x in tensors]
    reach = max(sum((x.size(d) - 1) * x.stride(d) for d in (2, 3)) for x in tensors)
    if channels == 1:
        return Planes(1, images, [(0, s[0], s[2], s[3]) for s in strides], reach)
    if images == 1 or all(s[0] == channels * s[1] for s in strides):
        return Planes(1, images * channels, [(0, *s[1:]) for s in strides], reach)
    return Planes(images, channels, strides, reach)


def flattened(windows: Windows, planes: Planes) -> tuple[Windows, Planes]:
    """Windows as wide as planes whose rows follow each other are windows of a single row, in which
    nothing has to be divided by its length. `planes` are those of inputs and outputs."""
    rows, columns = windows.rows, windows.columns
    width = columns.inputs
    x, y = planes.strides
    whole = columns.kernel == width and columns.before == columns.after == 0
    plain = not windows.adaptive and rows.dilation == columns.dilation == 1
    if not (whole and plain and x[2] == width * x[3]):
        return windows, planes
    row = Axis(
        rows.inputs * width,
        rows.outputs,
        *(width * number for number in (rows.kernel, rows.stride, rows.before, rows.after)),
    )
    strides = [(*x[:2], 0, x[3]), (*y[:2], 0, y[2])]
    return windows._replace(rows=Axis(1, 1, 1, 1), columns=row), planes._replace(strides=strides)


def block_of_positions(positions: int) -> int:
    """The lanes of a warp, or more, and so that few are idle."""
    if INTERPRETED:  # where a program takes long, whatever it has
        return power_of_two(positions, 2**12)
    block = power_of_two(positions, 128)
    for smaller in (64, 32):
        lanes, fewer = (triton.cdiv(positions, b) * b for b in (block, smaller))
        if smaller < block and fewer < 0.9 * lanes:
            block = smaller
    return block


def tile_of_taps(planes: Planes, positions: int, taps: int) -> Config:
    """For windows that have a program each. A lane takes some of the taps, as many as make up for
    adding up what lanes have found; a program has several channels, if it is not the only one.
    There is no choice, as the order of sums depends on it."""
    inside = planes.channels_inside()
    block = power_of_two(taps // 4, 32 if inside else 1024)
    channels = power_of_two(planes.channels, 2048 // max(block, 16))
    if INTERPRETED:  # where a program takes long, whatever its size
        return Config({"BLOCK_CHANNELS": power_of_two(planes.channels, 64), "BLOCK_TAPS": 512})
    least = min(channels, 32) if inside else 1  # that lie side by side
    while channels > least and planes.images * planes.channels * positions < 512 * channels:
        channels //= 2
    return Config({"BLOCK_CHANNELS": channels, "BLOCK_TAPS": max(block, 16)}, num_warps=4)


def tiles(planes: Planes, positions: int, x: Tensor, *channels: int) -> list[Config]:
    """The best guess first; no other for what is over at once.

    A lane has so many channels; or 16 bytes of them, where they lie side by side.
    """
    sizes = [128 * each for each in channels]
    if planes.channels_inside():
        sizes = [128 * 16 // x.element_size()]
    if INTERPRETED:  # where a program takes long, whatever its size
        sizes = [2**16]
    elif planes.images * planes.channels * positions < 2**20:
        sizes = sizes[:1]
    configs = []
    for size in sizes:
        if planes.channels_inside():
            c = block_of_channels(planes.channels, size // power_of_two(positions, size // 64))
            p = power_of_two(positions, size // c)
        else:
            p = block_of_positions(positions)
            c = power_of_two(planes.channels, size // p)
        configs.append(Config({"BLOCK_CHANNELS": c, "BLOCK_POSITIONS": p}, num_warps=4))
    return configs


def start(
    kernel: Any,
    tensors: tuple[Tensor | None, ...],
    windows: Windows,
    planes: Planes,
    positions: int,
    configs: list[Config],
    *numbers: int,
    **constants: Any,
) -> None:
    """Launch `kernel`, whose programs share out the `positions` of all planes."""
    strides = [stride for operand in planes.strides for stride in operand]
    most_channels = max(config.kwargs["BLOCK_CHANNELS"] for config in configs)
    apart = max(most_channels * operand[1] for operand in planes.strides)
    # Whether the numbers of positions, and their places in memory, may need 64 bits.
    wide = max(planes.reach + apart, windows.reach(), positions + 2**16) >= 2**31

    def run(config: Config) -> None:
        block = config.kwargs["BLOCK_CHANNELS"]
        blocks = triton.cdiv(positions, config.kwargs.get("BLOCK_POSITIONS", 1))
        launch(
            kernel,
            (planes.images * triton.cdiv(planes.channels, block) * blocks,),
            *tensors,
            planes.channels,
            *windows.sizes(),
            blocks,
            *strides,
            *numbers,
            config=config,
            WIDE=wide,
            EVEN=planes.channels % block == 0,
            **constants,
        )

    x = next(x for x in tensors if x is not None)
    elements = planes.images * planes.channels * positions
    launch_fastest(run, configs, kernel, (elements, windows.taps(), str(constants)), x)


def pool(x: Tensor, y: Tensor, argmax: Tensor | None, windows: Windows) -> None:
    if y.numel() == 0:
        return
    tensors, planes = (x, y, argmax), merged(x, y)
    positions = windows.rows.outputs * windows.columns.outputs
    most = [min(axis.kernel, axis.inputs) for axis in (windows.rows, windows.columns)]
    taps = most[0] * most[1]
    constants = windows.averaging()
    far_apart = windows.columns.inputs >= 8 * windows.columns.outputs or positions < 8
    few = planes.images * planes.channels * positions < 2**13
    share = (taps >= 16 and far_apart and not planes.channels_inside()) or (taps >= 32 and few)
    if windows.small() and not share:
        constants |= windows.constants()
        constants["INSIDE"] = windows.rows.inside() and windows.columns.inside()
        configs = tiles(
            planes, positions, x, *((8, 16) if taps <= 4 else (4, 8) if taps <= 9 else (4,))
        )
        start(pool_small_windows, tensors, windows, planes, positions, configs, **constants)
        return
    constants["ADAPTIVE"] = windows.adaptive
    if share:
        windows, planes = flattened(windows, planes)
        constants["ONE_ROW"] = windows.rows.kernel == 1
        configs = [tile_of_taps(planes, positions, taps)]
        numbers = (*windows.numbers(), taps)
        start(
            pool_large_windows, tensors, windows, planes, positions, configs, *numbers, **constants
        )
    else:
        configs = tiles(planes, positions, x, 8, 4)
        numbers = (*windows.numbers(), *most)
        start(pool_windows, tensors, windows, planes, positions, configs, *numbers, **constants)


def adjoint(g: Tensor, x: Tensor, argmax: Tensor | None, windows: Windows) -> None:
    if g.numel() == 0:
        x.zero_()
    if g.numel() == 0 or x.numel() == 0:
        return
    tensors, planes = (g, argmax, x), merged(g, g if argmax is None else argmax, x)
    positions = windows.rows.inputs * windows.columns.inputs
    constants = windows.averaging()
    cells = windows.cells() if windows.small() else None
    if windows.are_one():
        configs = tiles(planes, positions, x, 16, 8)
        start(adjoint_of_one_window, tensors, windows, planes, positions, configs, **constants)
    elif cells is not None:
        rows, columns = (triton.cdiv(a.inputs, a.stride) for a in (windows.rows, windows.columns))
        constants |= windows.constants() | cells
        constants["PAIRS"] = windows.columns.stride == 2 and x.size(3) % 2 == 0 and x.stride(3) == 1
        if constants["PAIRS"]:
            stride = tuple(number // 2 for number in planes.strides[2])
            planes = planes._replace(strides=[*planes.strides[:2], stride])
        few = cells["COUNT_H"] * cells["COUNT_W"] <= 4  # windows, whose values lanes hold
        configs = tiles(planes, rows * columns, x, *((8, 4) if few else (4,)))
        start(
            adjoint_of_small_windows, tensors, windows, planes, rows * columns, configs, **constants
        )
    else:
        constants["ADAPTIVE"] = windows.adaptive
        most = [axis.most_over(windows.adaptive) for axis in (windows.rows, windows.columns)]
        numbers = (*windows.numbers(), *most)
        configs = tiles(planes, positions, x, 8, 4)
        start(
            adjoint_of_windows, tensors, windows, planes, positions, configs, *numbers, **constants
        )


def look_up(x: Tensor | None, argmax: Tensor, y: Tensor, windows: Windows) -> None:
    if y.numel() == 0:
        return
    planes = merged(argmax if x is None else x, argmax, y)
    positions = windows.rows.outputs * windows.columns.outputs
    configs = tiles(planes, positions, y, 8, 4)
    start(
        gather, (x, argmax, y), windows, planes, positions, configs, *windows.numbers(),
        ADAPTIVE=windows.adaptive,
    )  # fmt: skip


def max_pool2d(
    x: Tensor, window: Sequence[int], ceil_mode: bool, *, out: tuple[Tensor, Tensor]
) -> None:
    y, argmax = out
    pool(x, y, argmax, between(*x.shape[2:], *y.shape[2:], window))


def adaptive_max_pool2d(x: Tensor, height: int, width: int, *, out: tuple[Tensor, Tensor]) -> None:
    y, argmax = out
    pool(x, y, argmax, adaptive(*x.shape[2:], height, width))


def max_pool2d_gather(x: Tensor, argmax: Tensor, window: Sequence[int], *, out: Tensor) -> None:
    look_up(x, argmax, out, between(*x.shape[2:], *argmax.shape[2:], window))


def adaptive_max_pool2d_gather(x: Tensor, argmax: Tensor, *, out: Tensor) -> None:
    look_up(x, argmax, out, adaptive(*x.shape[2:], *argmax.shape[2:]))


def max_pool2d_indices(
    argmax: Tensor, height: int, width: int, window: Sequence[int], *, out: Tensor
) -> None:
    look_up(None, argmax, out, between(height, width, *argmax.shape[2:], window))


def adaptive_max_pool2d_indices(argmax: Tensor, height: int, width: int, *, out: Tensor) -> None:
    look_up(None, argmax, out, adaptive(height, width, *argmax.shape[2:]))


def max_pool2d_scatter(
    g: Tensor, argmax: Tensor, height: int, width: int, window: Sequence[int], *, out: Tensor
) -> None:
    adjoint(g, out, argmax, between(height, width, *g.shape[2:], window))


def adaptive_max_pool2d_scatter(
    g: Tensor, argmax: Tensor, height: int, width: int, *, out: Tensor
) -> None:
    adjoint(g, out, argmax, adaptive(height, width, *g.shape[2:]))


def avg_pool2d(
    x: Tensor,
    window: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
    ceil_mode: bool,
    *,
    out: Tensor,
) -> None:
    windows = between(*x.shape[2:], *out.shape[2:], window)._replace(
        count_include_pad=count_include_pad, divisor=divisor or 0
    )
    pool(x, out, None, windows)


def adaptive_avg_pool2d(x: Tensor, height: int, width: int, *, out: Tensor) -> None:
    pool(x, out, None, adaptive(*x.shape[2:], height, width))


def avg_pool2d_adjoint(
    g: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
    *,
    out: Tensor,
) -> None:
    windows = between(height, width, *g.shape[2:], window)._replace(
        count_include_pad=count_include_pad, divisor=divisor or 0
    )
    adjoint(g, out, None, windows)


def adaptive_avg_pool2d_adjoint(g: Tensor, height: int, width: int, *, out: Tensor) -> None:
    adjoint(g, out, None, adaptive(height, width, *g.shape[2:]))
