"""Cross-correlation (D2L 7) in Triton, and its two adjoints.

    corr2d        y[n, k, a, b]  = bias[k] + sum over c, r, s of    w[k, c, r, s] x[n, c, h, v]
    input grad    dx[n, c, h, v] = sum over k and the r, s, a, b    w[k, c, r, s] g[n, k, a, b]
                                   that meet (h, v) of
    weight grad   dw[k, c, r, s] = sum over n, a, b of              g[n, k, a, b] x[n, c, h, v]

with h = a stride + r dilation - top, and likewise v. Each is a matrix product, of which one operand
is gathered from the image as it is needed (implicit im2col).

The first two are one kernel, `corr2d_product`: rows are positions (n, a, b), columns are the
channels that are written, and a step of the sum is a tap and a block of the channels that are read.
So within a step an image's offsets differ from those of the first step by one number, rows are
looked up once for a tile, and what is left to do for a row and step is to see whether the tap is
inside. For the input gradient positions are sorted by their phase (taps.py), in which the same
taps meet all of them, so that a strided layer's gradient multiplies no zeros.

In the weight gradient, `corr2d_weight_grad_product`, rows are the output channels, columns are taps
and input channels, and the sum, over all positions, is long: each part of it is a tile of its own,
and what they come to is added in their order by a second kernel. A step is a box of images x rows x
columns, so that here, too, only one number changes from step to step.

Channels lie side by side in what these two kernels read, a multiple of 16 of them, so that 16 bytes
are copied at a time; other tensors are copied once before (packing.py), as cuDNN does it, too.
Where a group has few channels that would be mostly padding: depthwise.py has kernels for those.

Flops: 2 C R S per output. Arithmetic is the limit, but for few channels, where memory is.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.ops._layout import empty, is_channels_last
from d2lops.triton_kernels.arithmetic import narrow, passing
from d2lops.triton_kernels.depthwise import (
    corr2d_direct,
    corr2d_few_channels,
    corr2d_weight_grad_direct,
    store,
)
from d2lops.triton_kernels.device import device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.packing import is_packed, packed, strides
from d2lops.triton_kernels.product import multiply, precision, tile_at
from d2lops.triton_kernels.taps import Axis, adjoint_axis, forward_axis, places, taps_of, within


@triton.jit
def corr2d_product(
    x_ptr, mask_ptr, weight_ptr, bias_ptr, y_ptr,
    images, x_height, x_width, y_height, y_width,
    depth, columns, groups,  # channels of a group: those that are read, and those that are written
    phases_h, positions_h, apart_h, stride_h, kernel_h, top, dilation_h, tap_h, image_h,
    phases_w, positions_w, apart_w, stride_w, kernel_w, left, dilation_w, tap_w, image_w,
    x_n, x_c, x_h, x_w,
    weight_group, weight_column, weight_depth, weight_h, weight_w,
    bias_stride,
    y_n, y_c, y_h, y_w,
    ADJOINT: tl.constexpr, MASKED: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    INSIDE: tl.constexpr,  # whether no tap is ever in the padding
    EVEN: tl.constexpr,  # whether blocks divide the depth
    PHASES: tl.constexpr,  # whether there are more than one
    TURNED: tl.constexpr,  # whether tiles are stored along positions
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Which tile this is, of which phase and group; their rows are positions, numbered in 64 bits.
    count = tl.cast(images, tl.int64) * positions_h * positions_w
    rows = tl.cdiv(count, BLOCK_M).to(tl.int32)
    tiles = rows * tl.cdiv(columns, BLOCK_N)
    number = tl.program_id(0)
    row, column = tile_at(number % tiles, rows, tl.cdiv(columns, BLOCK_N))
    number //= tiles
    phase_w = number % phases_w
    phase_h = number // phases_w % phases_h
    group = (number // phases_w // phases_h).to(tl.int64)
    first_h, count_h, shift_h = taps_of(
        phase_h, apart_h, kernel_h, top, dilation_h, tap_h, ADJOINT
    )
    first_w, count_w, shift_w = taps_of(
        phase_w, apart_w, kernel_w, left, dilation_w, tap_w, ADJOINT
    )

    # Rows beyond the last image, and columns beyond the last, are looked up like others, and not
    # stored: that is less work than a mask, and a remainder is as contiguous as what it is of.
    first = row.to(tl.int64) * BLOCK_M
    image, place = places(first, positions_h * positions_w, BLOCK_M)
    image = tl.minimum(image, images - 1)
    h = place // positions_w * stride_h + shift_h
    w = place % positions_w * stride_w + shift_w
    k = tl.arange(0, BLOCK_K)
    n = ((column * BLOCK_N + tl.arange(0, BLOCK_N)) % columns).to(tl.int64)
    x_row = image * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w + group * depth * x_c
    x_offsets = x_row[:, None] + (k.to(tl.int64) * x_c)[None, :]
    weight_row = first_h.to(tl.int64) * weight_h + first_w.to(tl.int64) * weight_w
    weight_row += group * weight_group + n * weight_column
    weight_offsets = (k.to(tl.int64) * weight_depth)[:, None] + weight_row[None, :]

    sum_type = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    sums = tl.zeros((BLOCK_M, BLOCK_N), sum_type)
    r = tl.full((), 0, tl.int32)
    s = tl.full((), 0, tl.int32)
    c = tl.full((), 0, tl.int32)
    for _ in range(count_h * count_w * tl.cdiv(depth, BLOCK_K)):
        down = r * image_h
        across = s * image_w
        x_step = down.to(tl.int64) * x_h + across.to(tl.int64) * x_w + c.to(tl.int64) * x_c
        weight_step = (r * tap_h).to(tl.int64) * weight_h + (s * tap_w).to(tl.int64) * weight_w
        weight_step += c.to(tl.int64) * weight_depth
        x_at = x_ptr + x_step + x_offsets
        weight_at = weight_ptr + weight_step + weight_offsets
        if EVEN:
            weight = tl.load(weight_at)
        else:
            weight = tl.load(weight_at, (k < depth - c)[:, None], 0.0)
        if INSIDE and EVEN:
            x = tl.load(x_at)
            if MASKED:
                x = passing(x, tl.load(mask_ptr + x_step + x_offsets))
        else:
            inside = (within(h + down, x_height) & within(w + across, x_width))[:, None]
            if not EVEN:
                inside = inside & (k < depth - c)[None, :]
            x = tl.load(x_at, inside, 0.0)
            if MASKED:
                x = passing(x, tl.load(mask_ptr + x_step + x_offsets, inside, 0.0))
        sums = multiply(x, weight, sums, PRECISION)
        # On to the next block of channels, and from the last one to the next tap.
        c += BLOCK_K
        last = c >= depth
        c = tl.where(last, 0, c)
        s += last.to(tl.int32)
        last = s == count_w
        s = tl.where(last, 0, s)
        r += last.to(tl.int32)

    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = group * columns + n
    if BIAS:
        bias = tl.load(bias_ptr + channel * bias_stride, n < columns, 0.0)
    else:
        bias = tl.zeros((BLOCK_N,), y_ptr.dtype.element_ty)
    image, place = places(first, positions_h * positions_w, BLOCK_M)
    inside = image < images
    y_row = image * y_n
    if PHASES:
        h = phase_h + place // positions_w * apart_h
        w = phase_w + place % positions_w * apart_w
        inside = inside & (h < y_height) & (w < y_width)
        y_row += h.to(tl.int64) * y_h + w.to(tl.int64) * y_w
    else:
        y_row += place.to(tl.int64) * y_w
    store(y_ptr, sums, bias, y_row, channel * y_c, inside, n < columns, RELU, TURNED)


@triton.jit
def corr2d_weight_grad_product(
    g_ptr, mask_ptr, x_ptr, sums_ptr,
    images, g_height, g_width, rows,  # g, with so many channels in a group
    x_height, x_width, channel_packets,  # x likewise, but in packets
    groups, parts,
    kernel_w, taps, stride_h, stride_w, top, left, dilation_h, dilation_w,
    box_h, box_w,  # times BLOCK_K / (box_h box_w) images
    g_n, g_h, g_w,
    x_packets_n, x_packets_h, x_packets_w,
    PACKET: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    channels = channel_packets * PACKET
    columns = taps * channels
    row_tiles = tl.cdiv(rows, BLOCK_M)
    tiles = row_tiles * tl.cdiv(columns, BLOCK_N)
    number = tl.program_id(0)
    row, column = tile_at(number % tiles, row_tiles, tl.cdiv(columns, BLOCK_N))
    number //= tiles
    group = (number % groups).to(tl.int64)
    part = number // groups

    # Places in a box, and what is there in the first one.
    k = tl.arange(0, BLOCK_K)
    box_n = BLOCK_K // (box_h * box_w)
    image = k // (box_h * box_w)
    a = k // box_w % box_h
    b = k % box_w
    m = (row * BLOCK_M + tl.arange(0, BLOCK_M)) % rows
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = n // channels
    h = a * stride_h
    w = b * stride_w
    # Taps beyond the last are far outside of every image.
    tap_h = tl.where(tap < taps, tap // kernel_w * dilation_h - top, -(2**31))
    tap_w = tap % kernel_w * dilation_w - left
    g_row = image.to(tl.int64) * g_n + a.to(tl.int64) * g_h + b.to(tl.int64) * g_w
    g_offsets = g_row[:, None] + (group * rows + m)[None, :]
    x_n = tl.cast(x_packets_n, tl.int64) * PACKET
    x_h = tl.cast(x_packets_h, tl.int64) * PACKET
    x_w = tl.cast(x_packets_w, tl.int64) * PACKET
    x_row = image.to(tl.int64) * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
    x_column = tap_h.to(tl.int64) * x_h + tap_w.to(tl.int64) * x_w
    x_column += group * channels + n % channels
    x_offsets = x_row[:, None] + x_column[None, :]

    # The boxes of this part: as many as of any other, or one less.
    boxes_h = tl.cdiv(g_height, box_h)
    boxes_w = tl.cdiv(g_width, box_w)
    boxes = tl.cdiv(images, box_n) * boxes_h * boxes_w
    begin = (part.to(tl.int64) * boxes // parts).to(tl.int32)
    end = ((part + 1).to(tl.int64) * boxes // parts).to(tl.int32)
    box_b = begin % boxes_w
    box_a = begin // boxes_w % boxes_h
    box_i = begin // boxes_w // boxes_h

    sums = tl.zeros((BLOCK_M, BLOCK_N), sums_ptr.dtype.element_ty)
    for _ in range(end - begin):
        first_n = box_i * box_n
        first_a = box_a * box_h
        first_b = box_b * box_w
        down = first_a * stride_h
        across = first_b * stride_w
        g_step = first_n.to(tl.int64) * g_n + first_a.to(tl.int64) * g_h
        g_step += first_b.to(tl.int64) * g_w
        x_step = first_n.to(tl.int64) * x_n + down.to(tl.int64) * x_h + across.to(tl.int64) * x_w
        present = (image < images - first_n) & (a < g_height - first_a) & (b < g_width - first_b)
        inside_h = within((h + down)[:, None] + tap_h[None, :], x_height)
        inside_w = within((w + across)[:, None] + tap_w[None, :], x_width)
        g = tl.load(g_ptr + g_step + g_offsets, present[:, None], 0.0)
        if MASKED:
            g = passing(g, tl.load(mask_ptr + g_step + g_offsets, present[:, None], 0.0))
        x = tl.load(x_ptr + x_step + x_offsets, present[:, None] & inside_h & inside_w, 0.0)
        sums = multiply(tl.trans(g), x, sums, PRECISION)
        box_b += 1
        last = box_b == boxes_w
        box_b = tl.where(last, 0, box_b)
        box_a += last.to(tl.int32)
        last = box_a == boxes_h
        box_a = tl.where(last, 0, box_a)
        box_i += last.to(tl.int32)

    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (part.to(tl.int64) * groups * rows + group * rows + m)[:, None] * columns + n[None, :]
    tl.store(sums_ptr + at, sums, (m < rows)[:, None] & (n < columns)[None, :])


@triton.jit
def corr2d_weight_grad_sum(
    sums_ptr, dw_ptr, count, parts, rows, channels, held_rows, held_channels, taps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the parts, which are (groups, held rows, taps, held channels), to dw (k, c, taps)."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
    for part in range(parts):
        total += tl.load(sums_ptr + part * tl.cast(count, tl.int64) + e, e < count, 0.0)
    c = e % held_channels
    tap = e // held_channels % taps
    m = e // held_channels // taps
    k = m // held_rows * rows + m % held_rows
    dw = narrow(total, dw_ptr.dtype.element_ty)
    inside = (e < count) & (c < channels) & (m % held_rows < rows)
    tl.store(dw_ptr + (k * channels + c) * taps + tap, dw, inside)


FEW = 16  # channels: with fewer, most of a block of them would be padding


def blocked(size: int, most: int, least: int = 16) -> int:
    """The power of two that holds `size`, from `least` to `most`."""
    block = least
    while block < size and block < most:
        block *= 2
    return block


def product_configs(x: Tensor, columns: int, depth: int, exact: bool) -> list[Config]:
    """For tiles of positions and channels; `exact` for float32 numbers without TF32."""
    size = x.element_size()
    wide = blocked(columns, 128 if size < 4 else 64)
    block_k = blocked(depth, 64 if size == 2 and depth % 64 == 0 else 32 if size < 8 else 16)
    if exact or size == 8:
        tiles = [(64, min(wide, 64), 4, 2)]
    else:
        tiles = [(128, wide, 4, 3), (64, wide, 4, 3)]
    return [
        Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": block_k}, num_warps=w, num_stages=s)
        for m, n, w, s in tiles
    ]


def corr2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    tf32: bool = False,
) -> Tensor:
    axes = []
    for i in (0, 1):
        before, after = window[2 + 2 * i], window[3 + 2 * i]
        stride, dilation, kernel = window[i], window[6 + i], weight.size(2 + i)
        room = x.size(2 + i) + before + after - dilation * (kernel - 1) - 1
        axes.append(forward_axis(room // stride + 1, kernel, stride, before, dilation))
    size = (x.size(0), weight.size(0), axes[0].positions, axes[1].positions)
    y = empty(x, size, is_channels_last(x) or is_channels_last(weight))
    _write_image(x, None, weight, bias, y, axes, window, relu, tf32, adjoint=False)
    return y


def corr2d_input_grad(
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
) -> Tensor:
    size = (g.size(0), weight.size(1) * window[8], height, width)
    dx = empty(g, size, is_channels_last(g) or is_channels_last(weight))
    if dx.numel() == 0:
        return dx
    axes = [
        adjoint_axis(size[2 + i], weight.size(2 + i), window[i], window[2 + 2 * i], window[6 + i])
        for i in (0, 1)
    ]
    _write_image(g, y, weight, None, dx, axes, window, False, tf32, adjoint=True)
    return dx


def _write_image(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    axes: list[Axis],
    window: Sequence[int],
    relu: bool,
    tf32: bool,
    adjoint: bool,
) -> None:
    """corr2d, or its adjoint, of x: what they have in common."""
    if y.numel() == 0:
        return
    groups = window[8]
    # A weight of (channels that are written, channels that are read, ...).
    weight = weight.transpose(0, 1) if adjoint else weight
    depth = x.size(1) // groups
    columns = y.size(1) // groups
    kind = precision(x, tf32)
    flags = {"BIAS": bias is not None, "RELU": relu}
    bias = x if bias is None else bias
    images = x.size(0)
    sizes = (images, *x.shape[2:], *y.shape[2:])
    if depth * columns < 4 * FEW:
        side_by_side = strides(x)[1] == 1
        block_c = blocked(y.size(1), 64 if side_by_side else 4, 1)
        config = Config({"BLOCK_C": block_c, "BLOCK_P": 1024 // block_c}, num_warps=4)
        tiles = triton.cdiv(images * axes[0].positions * axes[1].positions, 1024 // block_c)
        tiles *= triton.cdiv(y.size(1), block_c) * axes[0].phases * axes[1].phases
        launch(
            corr2d_direct,
            (tiles,),
            *(x, x if mask is None else mask, weight, bias, y, *sizes, depth, columns, groups),
            *(*axes[0], *axes[1], *strides(x), *strides(x if mask is None else mask)),
            *(*_weight_strides(weight, groups, adjoint), bias.stride(0), *strides(y)),
            config=config,
            ADJOINT=adjoint,
            MASKED=mask is not None,
            **flags,
        )
    elif depth < FEW and not adjoint:
        held = blocked(depth, FEW, 1)
        if depth != held or not x.is_contiguous(memory_format=torch.channels_last):
            x = packed(x, groups, packet=held)
        weight = packed(weight, 1, packet=held)
        block_n = blocked(columns, 64)
        block_k = blocked(held * axes[0].kernel * axes[1].kernel, 64 if x.element_size() == 2 else 32 if x.element_size()==4 else 16)
        config = Config(
            {"BLOCK_M": 128, "BLOCK_N": block_n, "BLOCK_K": block_k}, num_warps=4, num_stages=3
        )
        tiles = triton.cdiv(images * axes[0].positions * axes[1].positions, 128)
        launch(
            corr2d_few_channels,
            (tiles * triton.cdiv(columns, block_n) * groups,),
            *(x, weight, bias, y, *sizes, columns, groups),
            *(axes[1].kernel, axes[0].kernel * axes[1].kernel, axes[0].stride, axes[1].stride),
            *(axes[0].padding, axes[1].padding, axes[0].dilation, axes[1].dilation),
            *(bias.stride(0), y.stride(0), y.stride(1), y.stride(3)),
            config=config,
            HELD=held,
            TURNED=y.stride(1) != 1,
            PRECISION=kind,
            **flags,
        )
    else:
        if not is_packed(x, groups) or (mask is not None and strides(mask) != strides(x)):
            x, mask = packed(x, groups, mask), None
        sideways = adjoint and (x.dtype != torch.float32 or kind == "ieee")
        known = is_packed(weight, groups if adjoint else 1)
        known = known or (sideways and is_packed(weight.transpose(0, 1), 1))
        if not known or x.size(1) // groups != depth:
            weight = packed(weight, groups if adjoint else 1)
        depth = x.size(1) // groups
        configs = product_configs(x, columns, depth, kind == "ieee" and x.dtype == torch.float32)
        unpadded = not any(window[2:6])
        inside = unpadded and (not adjoint or axes[0].kernel * axes[1].kernel == 1)

        def run(config: Config) -> None:
            m, n, k = (config.kwargs[f"BLOCK_{axis}"] for axis in "MNK")
            tiles = triton.cdiv(images * axes[0].positions * axes[1].positions, m)
            tiles *= triton.cdiv(columns, n) * axes[0].phases * axes[1].phases * groups
            launch(
                corr2d_product,
                (tiles,),
                *(x, x if mask is None else mask, weight, bias, y, *sizes, depth, columns, groups),
                *(*axes[0], *axes[1], *strides(x)),
                *(*_weight_strides(weight, groups, adjoint), bias.stride(0), *y.stride()),
                config=config,
                ADJOINT=adjoint,
                MASKED=mask is not None,
                INSIDE=inside,
                EVEN=depth % k == 0,
                PHASES=axes[0].apart * axes[1].apart > 1,
                TURNED=y.stride(1) != 1,
                PRECISION=kind,
                **flags,
            )

        problem = (*sizes[:3], depth, columns, groups, *axes[0][4:5], *axes[1][4:5], int(adjoint))
        launch_fastest(run, configs, corr2d_product, problem, x)


def _weight_strides(weight: Tensor, groups: int, adjoint: bool) -> tuple[int, ...]:
    """From a group to the next, and then those of (columns, depth, height, width)."""
    apart = strides(weight)
    dim = 1 if adjoint else 0
    return weight.size(dim) // groups * apart[dim], *apart


def corr2d_weight_grad(
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
) -> Tensor:
    groups = window[8]
    rows, channels, taps = g.size(1) // groups, x.size(1) // groups, height * width
    dw = empty(g, (g.size(1), channels, height, width), channels_last=False)
    if g.numel() * x.numel() == 0:
        return dw.zero_()
    sum_type = torch.float64 if g.dtype == torch.float64 else torch.float32
    images, _, *size = g.shape
    steps = (*window[:2], window[2], window[4], *window[6:8])
    held_rows, held = rows, channels
    if rows * channels < 4 * FEW:
        side_by_side = strides(g)[1] == 1 and strides(x)[1] == 1
        columns = channels * taps
        block_t = blocked(columns, 16, 1)
        block_c = blocked(g.size(1), 32 if side_by_side else 2, 1)
        block_p = 4096 // block_t // block_c
        config = Config({"BLOCK_C": block_c, "BLOCK_T": block_t, "BLOCK_P": block_p}, num_warps=4)
        tiles = triton.cdiv(g.size(1), block_c) * triton.cdiv(columns, block_t)
        pixels = images * size[0] * size[1]
        parts = max(1, min(triton.cdiv(1024, tiles), pixels // (8 * block_p)))
        sums = g.new_empty((parts, g.size(1), columns), dtype=sum_type)
        mask = g if y is None else y
        launch(
            corr2d_weight_grad_direct,
            (tiles * parts,),
            *(g, mask, x, sums, images, *size, rows, *x.shape[2:], channels, columns),
            *(groups, parts, width, *steps, *strides(g), *strides(mask), *strides(x)),
            config=config,
            MASKED=y is not None,
        )
    else:
        if not is_packed(g, groups) or (y is not None and strides(y) != strides(g)):
            g, y = packed(g, groups, y), None
        packet = blocked(channels, FEW, 1)
        if packet == FEW:
            x = x if is_packed(x, groups) else packed(x, groups)
        elif channels != packet or not x.is_contiguous(memory_format=torch.channels_last):
            x = packed(x, groups, packet=packet)
        held_rows, held = g.size(1) // groups, x.size(1) // groups
        columns = held * taps
        block_k = 64 if g.element_size() == 2 else 32 if g.element_size() == 4 else 16
        box = box_of(images, size[0], size[1], block_k)
        boxes = triton.cdiv(images, box[0])
        boxes *= triton.cdiv(size[0], box[1]) * triton.cdiv(size[1], box[2])
        tiles = triton.cdiv(held_rows, 128) * triton.cdiv(columns, 128) * groups
        parts = max(1, min(triton.cdiv(264, tiles), boxes // 4))
        sums = g.new_empty((parts, groups * held_rows, columns), dtype=sum_type)
        kind = precision(g, tf32)
        g_n, _, g_h, g_w = strides(g)
        x_n, _, x_h, x_w = strides(x)
        x_strides = (x_n, x_h, x_w)
        tile = 128 if g.element_size() == 2 else 64
        configs = [
            Config(
                {"BLOCK_M": min(m, blocked(held_rows, m)), "BLOCK_N": n, "BLOCK_K": block_k},
                num_warps=4,
                num_stages=3 if g.element_size() == 2 else 2,
            )
            for m, n in [(tile, tile)]
        ]

        def run(config: Config) -> None:
            m, n = (config.kwargs[f"BLOCK_{axis}"] for axis in "MN")
            tiles = triton.cdiv(held_rows, m) * triton.cdiv(columns, n) * groups
            launch(
                corr2d_weight_grad_product,
                (tiles * parts,),
                *(g, g if y is None else y, x, sums, images, *size, held_rows),
                *(*x.shape[2:], held // packet, groups, parts, width, taps, *steps, *box[1:]),
                *(g_n, g_h, g_w, *(s // packet for s in x_strides)),
                config=config,
                PACKET=packet,
                MASKED=y is not None,
                PRECISION=kind,
            )

        problem = (images, *size, held_rows, held, groups, taps)
        launch_fastest(run, configs, corr2d_weight_grad_product, problem, g)
    count = sums[0].numel()
    launch(
        corr2d_weight_grad_sum,
        (triton.cdiv(count, 512),),
        *(sums, dw, count, parts, rows, channels, held_rows, held, taps),
        config=Config({"BLOCK": 512}, num_warps=4),
    )
    return dw


def box_of(images: int, height: int, width: int, size: int) -> tuple[int, int, int]:
    """Images x rows x columns, powers of two of the product `size`, such that few boxes hold all."""
    boxes = []
    across = size
    while across >= 1:
        down = size // across
        while down >= 1:
            deep = size // across // down
            number = triton.cdiv(images, deep) * triton.cdiv(height, down)
            boxes.append((number * triton.cdiv(width, across), deep, down, across))
            down //= 2
        across //= 2
    return min(boxes)[1:]
