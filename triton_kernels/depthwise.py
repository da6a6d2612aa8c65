"""Correlations of few channels in Triton: what would leave a matrix product mostly empty.

Depthwise layers have one input and one output channel per group, the book's first layers have one
or three in all. Where both numbers are small, each output is summed by one lane, tap by tap, and
memory is the limit: `corr2d_direct` for the two maps that write an image (as in corr2d.py, of one
phase at a time), and `corr2d_weight_grad_direct`, whose tile is channels x taps x positions of a
row. Tiles are shaped such that lanes follow what is contiguous in memory, channels or positions.

Where few channels are read but many written, `corr2d_few_channels` is a matrix product again,
whose depth is all channels and taps in one, so that only its end is padded.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import passing, sum_dtype, widen
from d2lops.triton_kernels.blocks import power_of_two
from d2lops.triton_kernels.launch import launch
from d2lops.triton_kernels.packing import packed, strides
from d2lops.triton_kernels.product import finished, multiply, on_tensor_cores, tile_at, zeros
from d2lops.triton_kernels.taps import Axis, places, store, stored_one_by_one, taps_of

UNROLLED = 8  # taps across, at most


@triton.jit
def corr2d_direct(
    x_ptr, mask_ptr, weight_ptr, bias_ptr, y_ptr,  # mask and bias may be None
    images, x_height, x_width, y_height, y_width,
    depth, columns, groups,  # channels of a group: those that are read, and those that are written
    phases_h, positions_h, apart_h, stride_h, kernel_h, top, dilation_h, tap_h, image_h,
    phases_w, positions_w, apart_w, stride_w, kernel_w, left, dilation_w, tap_w, image_w,
    x_n, x_c, x_h, x_w,
    mask_n, mask_c, mask_h, mask_w,
    weight_depth, weight_column, weight_h, weight_w,  # with the columns of all groups
    bias_stride,
    y_n, y_c, y_h, y_w,
    ADJOINT: tl.constexpr, RELU: tl.constexpr,
    UNROLL: tl.constexpr,  # so many taps across, which is best all of them
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
    first_h, count_h, shift_h = taps_of(phase_h, apart_h, kernel_h, top, dilation_h, tap_h, ADJOINT)
    first_w, count_w, shift_w = taps_of(
        phase_w, apart_w, kernel_w, left, dilation_w, tap_w, ADJOINT
    )

    there = channel < columns * groups
    channel = channel.to(tl.int64)
    image, place = places(first, positions_h * positions_w, BLOCK_P)
    a, b = place // positions_w, place % positions_w
    h = a * stride_h + shift_h
    w = b * stride_w + shift_w
    h64, w64 = h.to(tl.int64), w.to(tl.int64)
    x_place = image * x_n + h64 * x_h + w64 * x_w
    x_at = x_ptr + (channel // columns * depth * x_c)[:, None] + x_place[None, :]
    mask_place = image * mask_n + h64 * mask_h + w64 * mask_w
    mask_offset = (channel // columns * depth * mask_c)[:, None] + mask_place[None, :]
    weight_at = weight_ptr + channel * weight_column
    weight_at += first_h.to(tl.int64) * weight_h + first_w.to(tl.int64) * weight_w
    sums = zeros(y_ptr, BLOCK_C, BLOCK_P)
    for c in range(depth):
        for r in range(count_h):
            down = r * image_h
            inside_h = ((h + down).to(tl.uint32, bitcast=True) < x_height) & (image < images)
            x_row = x_at + (down * tl.cast(x_h, tl.int64) + c * tl.cast(x_c, tl.int64))
            mask_row = mask_offset + (
                down * tl.cast(mask_h, tl.int64) + c * tl.cast(mask_c, tl.int64)
            )
            weight_row = weight_at + c * tl.cast(weight_depth, tl.int64)
            weight_row += r * tap_h * tl.cast(weight_h, tl.int64)
            for s in tl.range(0, count_w, loop_unroll_factor=UNROLL):
                across = s * image_w
                inside = inside_h & ((w + across).to(tl.uint32, bitcast=True) < x_width)
                inside = there[:, None] & inside[None, :]
                x = tl.load(x_row + across * tl.cast(x_w, tl.int64), inside, 0.0)
                if mask_ptr is not None:
                    mask_at = mask_ptr + (mask_row + across * tl.cast(mask_w, tl.int64))
                    x = passing(x, tl.load(mask_at, inside, 0.0))
                weight = tl.load(weight_row + s * tap_w * tl.cast(weight_w, tl.int64), there, 0.0)
                sums += widen(x) * widen(weight)[:, None]

    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel * bias_stride, there, 0.0)[:, None]
    h = phase_h + a * apart_h
    w = phase_w + b * apart_w
    inside = (image < images) & (h < y_height) & (w < y_width)
    y_place = image * y_n + h.to(tl.int64) * y_h + w.to(tl.int64) * y_w
    y = finished(sums, bias, RELU, y_ptr.dtype.element_ty)
    y_at = y_ptr + (channel * y_c)[:, None] + y_place[None, :]
    tl.store(y_at, y, there[:, None] & inside[None, :])


@triton.jit
def corr2d_few_channels(
    x_ptr, weight_ptr, bias_ptr, y_ptr,
    images, x_height, x_width, y_height, y_width,
    columns, groups,  # channels of a group that are written
    kernel_w, taps, stride_h, stride_w, top, left, dilation_h, dilation_w,
    bias_stride, y_n, y_c, y_w,
    HELD: tl.constexpr,  # channels of a group that are read
    RELU: tl.constexpr, TURNED: tl.constexpr, PRECISION: tl.constexpr,
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
    sums = zeros(y_ptr, BLOCK_M, BLOCK_N)
    for start in range(0, taps * HELD, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tap = k // HELD
        down = tap // kernel_w * dilation_h
        across = tap % kernel_w * dilation_w
        x_column = down * x_h + across * x_w + k % HELD
        inside = (h[:, None] + down[None, :]).to(tl.uint32, bitcast=True) < x_height
        inside_w = (w[:, None] + across[None, :]).to(tl.uint32, bitcast=True) < x_width
        inside = inside & inside_w & (tap < taps)[None, :]
        x = tl.load(x_ptr + x_row[:, None] + x_column[None, :], inside, 0.0)
        weight_at = weight_ptr + k[:, None] + weight_row[None, :]
        weight = tl.load(weight_at, (tap < taps)[:, None], 0.0)
        sums = multiply(x, weight, sums, PRECISION)

    image, place = places(first, y_height * y_width, BLOCK_M)
    y_row = image * y_n + place.to(tl.int64) * y_w
    inside = image < images
    store(
        y_ptr, sums, bias_ptr, bias_stride, y_row, y_c, inside,
        group, column * BLOCK_N, columns, RELU, TURNED,
    )  # fmt: skip


@triton.jit
def corr2d_weight_grad_direct(
    g_ptr, mask_ptr, x_ptr, sums_ptr,  # the mask may be None
    images, g_height, g_width, rows,  # g, with so many channels in a group
    x_height, x_width, channels, columns,  # x likewise, and times the taps
    groups, parts,
    kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w,
    g_n, g_c, g_h, g_w,
    mask_n, mask_c, mask_h, mask_w,
    x_n, x_c, x_h, x_w,
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
    there = channel < rows * groups
    written = there[:, None] & (column < columns)[None, :]
    channel = channel.to(tl.int64)
    b = tl.arange(0, BLOCK_P)
    w = b * stride_w
    b64, w64 = b.to(tl.int64), w.to(tl.int64)
    g_at = g_ptr + (channel * g_c)[:, None, None] + (b64 * g_w)[None, None, :]
    mask_offset = (channel * mask_c)[:, None, None] + (b64 * mask_w)[None, None, :]
    x_tile = ((channel // rows * channels)[:, None] + (column % channels)[None, :]) * x_c
    x_tile += (tap_h.to(tl.int64) * x_h + tap_w.to(tl.int64) * x_w)[None, :]
    x_at = x_ptr + x_tile[:, :, None] + (w64 * x_w)[None, None, :]

    # The rows of all images that are this part: as many as of any other, or one less.
    count = tl.cast(images, tl.int64) * g_height
    begin = part.to(tl.int64) * count // parts
    end = (part + 1).to(tl.int64) * count // parts
    image = begin // g_height
    a = (begin % g_height).to(tl.int32)
    sums = tl.zeros((BLOCK_C, BLOCK_T, BLOCK_P), sums_ptr.dtype.element_ty)
    for _ in range((end - begin).to(tl.int32)):
        h = a * stride_h
        g_row = image * g_n + a.to(tl.int64) * g_h
        mask_row = image * mask_n + a.to(tl.int64) * mask_h
        x_row = image * x_n + h.to(tl.int64) * x_h
        down = written & ((h + tap_h).to(tl.uint32, bitcast=True) < x_height)[None, :]
        for first in range(0, g_width, BLOCK_P):
            present = b < g_width - first
            inside = there[:, None, None] & present[None, None, :]
            g = tl.load(g_at + (g_row + first * tl.cast(g_w, tl.int64)), inside, 0.0)
            if mask_ptr is not None:
                mask_step = mask_row + first * tl.cast(mask_w, tl.int64)
                g = passing(g, tl.load(mask_ptr + (mask_offset + mask_step), inside, 0.0))
            across = first * stride_w
            inside = ((w + across)[None, :] + tap_w[:, None]).to(tl.uint32, bitcast=True) < x_width
            inside = (inside & present[None, :])[None, :, :] & down[:, :, None]
            x = tl.load(x_at + (x_row + across * tl.cast(x_w, tl.int64)), inside, 0.0)
            sums += g.to(sums.dtype) * x.to(sums.dtype)
        a += 1
        last = a == g_height
        a = tl.where(last, 0, a)
        image += last.to(tl.int64)

    at = (part.to(tl.int64) * rows * groups + channel)[:, None] * columns + column[None, :]
    tl.store(sums_ptr + at, tl.sum(sums, 2), written)


def run_direct(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    axes: tuple[Axis, Axis],
    groups: int,
    relu: bool,
    adjoint: bool,
) -> None:
    """`weight` has the channels that are read, those that are written in all groups, and taps."""
    depth, columns = x.size(1) // groups, y.size(1) // groups
    if strides(x)[1] == 1:  # two packets of 16 bytes for each lane
        block_c = power_of_two(y.size(1), 64)
        block_p = 256 * 16 // x.itemsize // block_c
        weight = packed(weight, 1) if weight.stride(1) != 1 else weight
    else:
        block_c, block_p = power_of_two(y.size(1), 4), 256
    down, across = axes
    tiles = triton.cdiv(x.size(0) * down.positions * across.positions, block_p)
    tiles *= triton.cdiv(y.size(1), block_c) * down.phases * across.phases
    launch(
        corr2d_direct,
        (tiles,),
        *(x, mask, weight, bias, y),
        *(x.size(0), *x.shape[2:], *y.shape[2:], depth, columns, groups, *down, *across),
        *(*strides(x), *strides(x if mask is None else mask), *strides(weight)),
        *(0 if bias is None else bias.stride(0), *y.stride()),
        config=Config({"BLOCK_C": block_c, "BLOCK_P": block_p}, num_warps=4),
        ADJOINT=adjoint,
        RELU=relu,
        UNROLL=1 if mask is not None else min(triton.cdiv(across.kernel, across.tap), UNROLLED),
    )


def run_few_channels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    axes: tuple[Axis, Axis],
    groups: int,
    relu: bool,
    precision: str,
) -> None:
    depth, columns = x.size(1) // groups, y.size(1) // groups
    held = power_of_two(depth, 16)
    x = packed(x, groups, packet=held)
    weight = packed(weight, 1, packet=held)
    down, across = axes
    taps = down.kernel * across.kernel
    # Numbers that are summed without tensor cores want registers of their own, too.
    small = stored_one_by_one(y, axes, groups) or not on_tensor_cores(x, precision)
    block_m = 64 if small else 128
    block_n = power_of_two(columns, 64, 16)
    block_k = power_of_two(held * taps, 128 // x.itemsize, 16)
    tiles = triton.cdiv(x.size(0) * down.positions * across.positions, block_m)
    launch(
        corr2d_few_channels,
        (tiles * triton.cdiv(columns, block_n) * groups,),
        *(x, weight, bias, y),
        *(x.size(0), *x.shape[2:], *y.shape[2:], columns, groups, across.kernel, taps),
        *(down.stride, across.stride, down.padding, across.padding),
        *(down.dilation, across.dilation),
        *(0 if bias is None else bias.stride(0), y.stride(0), y.stride(1), y.stride(3)),
        config=Config(
            {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k},
            num_warps=4,
            num_stages=2,
        ),
        HELD=held,
        RELU=relu,
        TURNED=y.stride(1) != 1,
        PRECISION=precision,
    )


def run_weight_grad_direct(
    g: Tensor,
    mask: Tensor | None,
    x: Tensor,
    axes: tuple[Axis, Axis],
    groups: int,
) -> Tensor:
    """The parts that the weight gradient is the sum of: (parts, output channels, taps, inputs)."""
    images, outputs, height, width = g.shape
    rows, channels = outputs // groups, x.size(1) // groups
    down, across = axes
    columns = channels * down.kernel * across.kernel
    block_t = power_of_two(columns, 16)
    if strides(g)[1] == 1 and strides(x)[1] == 1:
        block_c = power_of_two(outputs, 32)
        block_p = power_of_two(width, 8)
    else:
        block_p = power_of_two(width, 128)
        block_c = power_of_two(outputs, 4096 // 16 // block_p)
    tiles = triton.cdiv(outputs, block_c) * triton.cdiv(columns, block_t)
    parts = min(triton.cdiv(1024, tiles), triton.cdiv(images * height * width, 2048))
    parts = min(parts, images * height)
    sums = g.new_empty((parts, outputs, columns), dtype=sum_dtype(g))
    launch(
        corr2d_weight_grad_direct,
        (tiles * parts,),
        *(g, mask, x, sums, images, height, width, rows, *x.shape[2:], channels, columns),
        *(groups, parts, across.kernel, down.stride, across.stride),
        *(down.padding, across.padding, down.dilation, across.dilation),
        *(*strides(g), *strides(g if mask is None else mask), *strides(x)),
        config=Config({"BLOCK_C": block_c, "BLOCK_T": block_t, "BLOCK_P": block_p}, num_warps=4),
    )
    return sums
