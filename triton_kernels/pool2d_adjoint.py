"""The kernels of pooling's adjoints, and of max-pooling's derivative (pool2d.py has the maths).

Adjoints ask which windows cover an input: one kernel for small windows, which are compiled for
their sizes, one for any, and one for a window that is the whole plane. The derivative, and indices,
look up what argmax points to.
"""

import triton
import triton.language as tl

from d2lops.triton_kernels.arithmetic import narrow, widen
from d2lops.triton_kernels.blocks import zeros
from d2lops.triton_kernels.pool2d_tiles import averaged, divided, planes, tile_of
from d2lops.triton_kernels.windows import origin_of, window_over


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
                weight = averaged(
                    zeros(g_ptr, 1, 1) + 1, h, w, height, width, rows, columns,
                    KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, TOP, BOTTOM, LEFT, RIGHT,
                    DIVISOR, COUNT_INCLUDE_PAD, False,
                )  # fmt: skip
                seen += (widen(value) * weight,)
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
                value *= averaged(
                    zeros(g_ptr, 1, 1) + 1, h, w, height, width, rows, columns,
                    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
                    DIVISOR, COUNT_INCLUDE_PAD, ADAPTIVE,
                )  # fmt: skip
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
