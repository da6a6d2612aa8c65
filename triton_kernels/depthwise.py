"""Correlations of few channels in Triton: what would leave a matrix product mostly empty.

Depthwise layers have one input and one output channel per group, the book's first layers have one
or three in all. Where both numbers are small, each output is summed by one lane, tap by tap, and
memory is the limit: `corr2d_direct` for the two maps that write an image (as in corr2d.py, of one
phase at a time), and `corr2d_weight_grad_direct`, whose tile is channels x taps x positions.
Tiles are turned such that what is contiguous in memory, channels or positions, is on their inner
axis.

Where few channels are read but many written, `corr2d_few_channels` is a matrix product again,
whose depth is all channels and taps in one, so that only its end is padded.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import passing, widen
from d2lops.triton_kernels.device import INTERPRETED
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.packing import strides
from d2lops.triton_kernels.product import finished, multiply, tile_at
from d2lops.triton_kernels.taps import Axis, places, taps_of, within


@triton.jit
def store(
    y_ptr, sums, bias, y_row, y_column, row_inside, column_inside,
    RELU: tl.constexpr,
    TURNED: tl.constexpr,  # whether along rows, which are positions, and not along channels
):  # fmt: skip
    """A tile of a product, finished."""
    dtype = y_ptr.dtype.element_ty
    if TURNED:
        y = finished(tl.trans(sums), bias[:, None], RELU, dtype)
        at = y_ptr + y_column[:, None] + y_row[None, :]
        tl.store(at, y, column_inside[:, None] & row_inside[None, :])
    else:
        y = finished(sums, bias[None, :], RELU, dtype)
        at = y_ptr + y_row[:, None] + y_column[None, :]
        tl.store(at, y, row_inside[:, None] & column_inside[None, :])


@triton.jit
def corr2d_direct(
    x_ptr, mask_ptr, weight_ptr, bias_ptr, y_ptr,
    images, x_height, x_width, y_height, y_width,
    depth, columns, groups,  # channels of a group: those that are read, and those that are written
    phases_h, positions_h, apart_h, stride_h, kernel_h, top, dilation_h, tap_h, image_h,
    phases_w, positions_w, apart_w, stride_w, kernel_w, left, dilation_w, tap_w, image_w,
    x_n, x_c, x_h, x_w,
    mask_n, mask_c, mask_h, mask_w,
    weight_group, weight_column, weight_depth, weight_h, weight_w,
    bias_stride,
    y_n, y_c, y_h, y_w,
    ADJOINT: tl.constexpr, MASKED: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    count = tl.cast(images, tl.int64) * positions_h * positions_w
    blocks = tl.cdiv(count, BLOCK_P).to(tl.int32)
    number = tl.program_id(0)
    first = (number % blocks).to(tl.int64) * BLOCK_P
    number //= blocks
    channel_blocks = tl.cdiv(columns * groups, BLOCK_C)
    channel = number % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    number //= channel_blocks
    phase_w = number % phases_w
    phase_h = number // phases_w
    first_h, count_h, shift_h = taps_of(
        phase_h, apart_h, kernel_h, top, dilation_h, tap_h, ADJOINT
    )
    first_w, count_w, shift_w = taps_of(
        phase_w, apart_w, kernel_w, left, dilation_w, tap_w, ADJOINT
    )

    there = channel < columns * groups
    group = (channel // columns).to(tl.int64)
    image, place = places(first, positions_h * positions_w, BLOCK_P)
    a, b = place // positions_w, place % positions_w
    h = a * stride_h + shift_h
    w = b * stride_w + shift_w
    h64, w64 = h.to(tl.int64), w.to(tl.int64)
    x_place = image * x_n + h64 * x_h + w64 * x_w
    x_at = x_ptr + (group * depth * x_c)[:, None] + x_place[None, :]
    mask_place = image * mask_n + h64 * mask_h + w64 * mask_w
    mask_at = mask_ptr + (group * depth * mask_c)[:, None] + mask_place[None, :]
    weight_at = weight_ptr + group * weight_group + channel % columns * weight_column
    weight_at += first_h.to(tl.int64) * weight_h + first_w.to(tl.int64) * weight_w
    sum_type = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    sums = tl.zeros((BLOCK_C, BLOCK_P), sum_type)
    for c in range(depth):
        for r in range(count_h):
            inside_h = within(h + r * image_h, x_height) & (image < images)
            for s in range(count_w):
                inside = inside_h & within(w + s * image_w, x_width)
                inside = there[:, None] & inside[None, :]
                step = (r * image_h) * tl.cast(x_h, tl.int64)
                step += (s * image_w) * tl.cast(x_w, tl.int64) + c * tl.cast(x_c, tl.int64)
                x = tl.load(x_at + step, inside, 0.0)
                if MASKED:
                    step = (r * image_h) * tl.cast(mask_h, tl.int64)
                    step += (s * image_w) * tl.cast(mask_w, tl.int64)
                    step += c * tl.cast(mask_c, tl.int64)
                    x = passing(x, tl.load(mask_at + step, inside, 0.0))
                step = c * tl.cast(weight_depth, tl.int64)
                step += (r * tap_h) * tl.cast(weight_h, tl.int64)
                step += (s * tap_w) * tl.cast(weight_w, tl.int64)
                weight = tl.load(weight_at + step, there, 0.0)
                sums += widen(x) * widen(weight)[:, None]

    if BIAS:
        bias = tl.load(bias_ptr + channel.to(tl.int64) * bias_stride, there, 0.0)
    else:
        bias = tl.zeros((BLOCK_C,), y_ptr.dtype.element_ty)
    h = phase_h + a * apart_h
    w = phase_w + b * apart_w
    inside = (image < images) & (h < y_height) & (w < y_width)
    y_place = image * y_n + h.to(tl.int64) * y_h + w.to(tl.int64) * y_w
    y_at = y_ptr + (channel.to(tl.int64) * y_c)[:, None] + y_place[None, :]
    y = finished(sums, bias[:, None], RELU, y_ptr.dtype.element_ty)
    tl.store(y_at, y, there[:, None] & inside[None, :])


@triton.jit
def corr2d_few_channels(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    images, x_height, x_width, y_height, y_width,
    columns, groups,  # channels of a group that are written
    kernel_w, taps, stride_h, stride_w, top, left, dilation_h, dilation_w,
    bias_stride, y_n, y_c, y_w,
    HELD: tl.constexpr,  # channels of a group that are read
    BIAS: tl.constexpr, RELU: tl.constexpr, TURNED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    count = tl.cast(images, tl.int64) * y_height * y_width
    rows = tl.cdiv(count, BLOCK_M).to(tl.int32)
    tiles = rows * tl.cdiv(columns, BLOCK_N)
    number = tl.program_id(0)
    row, column = tile_at(number % tiles, rows, tl.cdiv(columns, BLOCK_N))
    group = (number // tiles).to(tl.int64)
    first = row.to(tl.int64) * BLOCK_M
    image, place = places(first, y_height * y_width, BLOCK_M)
    image = tl.minimum(image, images - 1)
    h = place // y_width * stride_h - top
    w = place % y_width * stride_w - left
    n = ((column * BLOCK_N + tl.arange(0, BLOCK_N)) % columns).to(tl.int64)
    x_w = tl.cast(groups * HELD, tl.int64)
    x_h = x_width * x_w
    x_row = (image * x_height + h) * x_h + w * x_w + group * HELD
    weight_row = (group * columns + n) * (taps * HELD)
    sum_type = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    sums = tl.zeros((BLOCK_M, BLOCK_N), sum_type)
    for start in range(0, taps * HELD, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tap = k // HELD
        down = tap // kernel_w * dilation_h
        across = tap % kernel_w * dilation_w
        x_column = down * x_h + across * x_w + k % HELD
        inside = within(h[:, None] + down[None, :], x_height)
        inside = inside & within(w[:, None] + across[None, :], x_width)
        inside = inside & (tap < taps)[None, :]
        x = tl.load(x_ptr + x_row[:, None] + x_column[None, :], inside, 0.0)
        weight_at = weight_ptr + k[:, None] + weight_row[None, :]
        weight = tl.load(weight_at, (tap < taps)[:, None], 0.0)
        sums = multiply(x, weight, sums, PRECISION)

    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = group * columns + n
    if BIAS:
        bias = tl.load(bias_ptr + channel * bias_stride, n < columns, 0.0)
    else:
        bias = tl.zeros((BLOCK_N,), y_ptr.dtype.element_ty)
    image, place = places(first, y_height * y_width, BLOCK_M)
    y_row = image * y_n + place.to(tl.int64) * y_w
    store(y_ptr, sums, bias, y_row, channel * y_c, image < images, n < columns, RELU, TURNED)


@triton.jit
def corr2d_weight_grad_direct(
    g_ptr, mask_ptr, x_ptr, sums_ptr,
    images, g_height, g_width, rows,  # g, with so many channels in all, and in a group
    x_height, x_width, channels, columns,  # x likewise, and times the taps
    groups, parts,
    kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w,
    g_n, g_c, g_h, g_w,
    mask_n, mask_c, mask_h, mask_w,
    x_n, x_c, x_h, x_w,
    MASKED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    channel_blocks = tl.cdiv(rows * groups, BLOCK_C)
    channel = number % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    number //= channel_blocks
    column_blocks = tl.cdiv(columns, BLOCK_T)
    column = number % column_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    part = number // column_blocks
    tap = column // channels
    tap_h = tap // kernel_w * dilation_h - top
    tap_w = tap % kernel_w * dilation_w - left
    written = (channel < rows * groups)[:, None] & (column < columns)[None, :]
    channel64 = channel.to(tl.int64)
    g_channel = channel64 * g_c
    mask_channel = channel64 * mask_c
    x_channel = (channel64 // rows * channels)[:, None] + (column % channels)[None, :]
    x_tile = x_channel * x_c
    x_tile += (tap_h.to(tl.int64) * x_h + tap_w.to(tl.int64) * x_w)[None, :]

    count = tl.cast(images, tl.int64) * g_height * g_width
    begin = part.to(tl.int64) * count // parts
    end = (part + 1).to(tl.int64) * count // parts
    sums = tl.zeros((BLOCK_C, BLOCK_T, BLOCK_P), sums_ptr.dtype.element_ty)
    for block in range(tl.cdiv(end - begin, BLOCK_P).to(tl.int32)):
        first = begin + block * BLOCK_P
        image, place = places(first, g_height * g_width, BLOCK_P)
        a, b = place // g_width, place % g_width
        present = (first + tl.arange(0, BLOCK_P) < end)[None, :]
        inside = (channel < rows * groups)[:, None] & present
        place = image * g_n + a.to(tl.int64) * g_h + b.to(tl.int64) * g_w
        g = tl.load(g_ptr + g_channel[:, None] + place[None, :], inside, 0.0)
        if MASKED:
            place = image * mask_n + a.to(tl.int64) * mask_h + b.to(tl.int64) * mask_w
            mask_at = mask_ptr + mask_channel[:, None] + place[None, :]
            g = passing(g, tl.load(mask_at, inside, 0.0))
        h = a * stride_h
        w = b * stride_w
        place = image * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
        inside = within(h[None, :] + tap_h[:, None], x_height) & present
        inside = inside & within(w[None, :] + tap_w[:, None], x_width)
        inside = inside[None, :, :] & written[:, :, None]
        x = tl.load(x_ptr + x_tile[:, :, None] + place[None, None, :], inside, 0.0)
        sums += widen(g)[:, None, :] * widen(x)

    at = (part.to(tl.int64) * rows * groups + channel64)[:, None] * columns + column[None, :]
    tl.store(sums_ptr + at, tl.sum(sums, 2), written)
