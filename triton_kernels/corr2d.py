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

from d2lops.triton_kernels.arithmetic import narrow, passing
from d2lops.triton_kernels.depthwise import run_direct, run_few_channels, run_weight_grad_direct
from d2lops.triton_kernels.device import device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.packing import PACKET, is_packed, packed, strides
from d2lops.triton_kernels.product import multiply, precision, tile_at
from d2lops.triton_kernels.taps import (
    Axis,
    adjoint_axis,
    blocked,
    forward_axis,
    places,
    store,
    taps_of,
)


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
    first_h, count_h, shift_h = taps_of(phase_h, apart_h, kernel_h, top, dilation_h, tap_h, ADJOINT)
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
        inside_h = (h + down).to(tl.uint32, bitcast=True) < x_height
        inside_w = (w + across).to(tl.uint32, bitcast=True) < x_width
        inside = (inside_h & inside_w)[:, None]
        if EVEN:
            weight = tl.load(weight_at)
        else:
            weight = tl.load(weight_at, (k < depth - c)[:, None], 0.0)
            inside = inside & (k < depth - c)[None, :]
        if INSIDE and EVEN:
            x = tl.load(x_at)
            if MASKED:
                x = passing(x, tl.load(mask_ptr + x_step + x_offsets))
        else:
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
        inside_h = ((h + down)[:, None] + tap_h[None, :]).to(tl.uint32, bitcast=True) < x_height
        inside_w = ((w + across)[:, None] + tap_w[None, :]).to(tl.uint32, bitcast=True) < x_width
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


FEW = 16  # channels of a group: with fewer, most of a block of them would be padding
TINY = 64  # pairs of channels: with fewer, most of a tile would be


def on_tensor_cores(x: Tensor, kind: str) -> bool:
    return x.element_size() == 2 or (x.dtype == torch.float32 and kind == "tf32")


def configs_of(x: Tensor, kind: str, rows: int, columns: int, block_k: int) -> list[Config]:
    """For tiles of a matrix with so many rows and columns.

    Tiles are as large as registers allow, which hold sums everywhere but on Blackwell, and until
    Hopper what is multiplied as well. Four warps throughout: eight were reported to compute
    something else in a loop over taps and channels in one (pytorch/pytorch#173068).
    """
    device = device_of(x)
    ampere = device.maker == "cuda" and device.capability < 90
    wide = blocked(columns, 128, 16)
    sides = [(64, min(wide, 256 // x.element_size()))]
    if on_tensor_cores(x, kind) and x.element_size() == 4:
        sides = sides if ampere else [(128, min(wide, 64)), *sides]
    elif on_tensor_cores(x, kind) and ampere:
        sides = [(64, wide), *sides]
    elif on_tensor_cores(x, kind):
        sides = [(128, wide), (64, wide), (128, min(wide, 64))]
    # As many as fit into shared memory, and with numbers of 8 bytes into registers.
    stages = 2 if device.maker == "hip" or x.element_size() == 8 else 3
    sides = dict.fromkeys((min(m, blocked(rows, m, 16)), n) for m, n in sides)
    return [
        Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": block_k}, num_warps=4, num_stages=stages)
        for m, n in sides
    ]


def corr2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    axes = (
        forward_axis(out.size(2), weight.size(2), window[0], window[2], window[6]),
        forward_axis(out.size(3), weight.size(3), window[1], window[4], window[7]),
    )
    _write_image(x, None, weight, bias, window, relu, tf32, out, axes, adjoint=False)


def corr2d_input_grad(
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    if out.numel() == 0:
        return
    axes = (
        adjoint_axis(height, weight.size(2), window[0], window[2], window[6]),
        adjoint_axis(width, weight.size(3), window[1], window[4], window[7]),
    )
    _write_image(g, y, weight, None, window, False, tf32, out, axes, adjoint=True)


def _write_image(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    tf32: bool,
    y: Tensor,
    axes: tuple[Axis, Axis],
    adjoint: bool,
) -> None:
    """What corr2d and its adjoint have in common."""
    if y.numel() == 0:
        return
    groups = window[8]
    depth, columns = x.size(1) // groups, y.size(1) // groups
    kind = precision(x, tf32)
    if axes[0].positions * axes[1].positions >= 2**31:
        raise NotImplementedError("corr2d has no Triton kernels for planes of 2^31 outputs")
    if depth * columns < TINY:
        outputs, planes, *kernel = weight.shape
        weight = weight.view(groups, outputs // groups, planes, *kernel)
        order = (1, 0, 2, 3, 4) if adjoint else (2, 0, 1, 3, 4)
        weight = weight.permute(order).reshape(depth, groups * columns, *kernel)
        run_direct(x, mask, weight, bias, y, axes, groups, relu, adjoint)
    elif depth < FEW and not adjoint:
        run_few_channels(x, weight, bias, y, axes, groups, relu, kind)
    else:
        _run_product(x, mask, weight, bias, window, relu, y, axes, kind, adjoint)


def _run_product(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    y: Tensor,
    axes: tuple[Axis, Axis],
    kind: str,
    adjoint: bool,
) -> None:
    groups = window[8]
    columns = y.size(1) // groups
    taps = axes[0].kernel * axes[1].kernel
    # A mask that lies otherwise is applied on the way, since one offset serves both.
    if not is_packed(x, groups) or (mask is not None and strides(mask) != strides(x)):
        x, mask = packed(x, groups, mask), None
    depth = x.size(1) // groups
    # The weight has to have what is summed over side by side. Or, but for TF32, what is written:
    # the adjoint may then take it as it is for corr2d, with channels last.
    sideways = adjoint and is_packed(weight, 1) and weight.size(0) // groups == depth
    if not sideways or (x.dtype == torch.float32 and kind == "tf32"):
        weight = packed(weight.transpose(0, 1), groups) if adjoint else packed(weight, 1)
    elif adjoint:
        weight = weight.transpose(0, 1)
    channel, *others = strides(weight)
    weight_group = depth * others[0] if adjoint else columns * channel

    block_k = 16
    if on_tensor_cores(x, kind):
        block_k = blocked(depth, 64 if x.element_size() == 2 and depth % 64 == 0 else 32, 16)
    images = x.size(0)
    positions = images * axes[0].positions * axes[1].positions
    configs = configs_of(x, kind, 128, columns, block_k)
    flops = positions * axes[0].phases * axes[1].phases * groups * columns * depth * taps
    phases = axes[0].apart * axes[1].apart > 1
    if y.stride(1) != 1 and (phases or axes[0].positions * axes[1].positions % PACKET != 0):
        # Numbers are stored one by one, each with an address of its own: small tiles have enough.
        configs = configs_of(x, kind, 64, min(columns, 64), block_k)[:1]
    elif flops < 2**30:  # it is over before it could be measured, and small tiles are more tiles
        configs = configs[1:2] or configs
    masked = mask is not None
    mask = mask if masked else x
    outside = any(window[2:6]) or (adjoint and taps > 1)

    def run(config: Config) -> None:
        m, n, k = (config.kwargs[f"BLOCK_{side}"] for side in "MNK")
        tiles = triton.cdiv(positions, m) * triton.cdiv(columns, n)
        launch(
            corr2d_product,
            (tiles * axes[0].phases * axes[1].phases * groups,),
            *(x, mask, weight, y if bias is None else bias, y),
            *(images, *x.shape[2:], *y.shape[2:], depth, columns, groups, *axes[0], *axes[1]),
            *(*strides(x), weight_group, channel, *others),
            *(0 if bias is None else bias.stride(0), *y.stride()),
            config=config,
            ADJOINT=adjoint,
            MASKED=masked,
            BIAS=bias is not None,
            RELU=relu,
            INSIDE=not outside,
            EVEN=depth % k == 0,
            PHASES=phases,
            TURNED=y.stride(1) != 1,
            PRECISION=kind,
        )

    problem = (images, *y.shape[2:], depth, columns, groups, taps, str(adjoint))
    launch_fastest(run, configs, corr2d_product, problem, x)


def corr2d_weight_grad(
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    if out.numel() == 0:
        return
    if g.numel() * x.numel() == 0:
        out.zero_()
        return
    groups = window[8]
    rows, channels, taps = g.size(1) // groups, x.size(1) // groups, height * width
    dtype = torch.float64 if g.dtype == torch.float64 else torch.float32
    held_rows, held = rows, channels
    if rows * channels < TINY:
        sums = run_weight_grad_direct(g, y, x, (height, width), window, dtype)
    else:
        # Without tensor cores there are no registers left for a mask, and time enough for a copy.
        apart = y is not None and strides(y) != strides(g)
        if not is_packed(g, groups) or apart or not on_tensor_cores(g, precision(g, tf32)):
            g, y = packed(g, groups, y), None
        packet = blocked(channels, PACKET)
        x = packed(x, groups, packet=packet)
        held_rows, held = g.size(1) // groups, x.size(1) // groups
        sums = _run_weight_grad_product(g, y, x, (height, width), window, packet, tf32, dtype)
    parts, count = sums.size(0), sums.numel() // sums.size(0)
    launch(
        corr2d_weight_grad_sum,
        (triton.cdiv(count, 512),),
        *(sums, out, count, parts, rows, channels, held_rows, held, taps),
        config=Config({"BLOCK": 512}, num_warps=4),
    )


def _run_weight_grad_product(
    g: Tensor,
    mask: Tensor | None,
    x: Tensor,
    kernel: tuple[int, int],
    window: Sequence[int],
    packet: int,
    tf32: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The parts that the weight gradient is the sum of: (parts, output channels, taps, inputs)."""
    groups = window[8]
    images, outputs, height, width = g.shape
    rows, held, taps = outputs // groups, x.size(1) // groups, kernel[0] * kernel[1]
    columns = taps * held
    kind = precision(g, tf32)
    block_k = 128 // g.element_size() if on_tensor_cores(g, kind) else 16
    box = box_of(images, height, width, block_k)
    boxes = triton.cdiv(images, box[0]) * triton.cdiv(height, box[1]) * triton.cdiv(width, box[2])
    # Enough parts for the multiprocessors of any GPU, twice, but not for less than four boxes each:
    # their number decides on the order of the sum, so sizes alone decide on it.
    tiles = groups * triton.cdiv(rows, 128) * triton.cdiv(columns, 128)
    parts = max(1, min(triton.cdiv(264, tiles), boxes // 4))
    sums = g.new_empty((parts, outputs, columns), dtype=dtype)
    masked = mask is not None
    mask = mask if masked else g
    g_n, _, g_h, g_w = strides(g)
    x_n, _, x_h, x_w = strides(x)

    def run(config: Config) -> None:
        m, n = (config.kwargs[f"BLOCK_{side}"] for side in "MN")
        launch(
            corr2d_weight_grad_product,
            (triton.cdiv(rows, m) * triton.cdiv(columns, n) * groups * parts,),
            *(g, mask, x, sums, images, height, width, rows),
            *(*x.shape[2:], held // packet, groups, parts, kernel[1], taps),
            *(*window[:2], window[2], window[4], *window[6:8], *box[1:]),
            *(g_n, g_h, g_w, x_n // packet, x_h // packet, x_w // packet),
            config=config,
            PACKET=packet,
            MASKED=masked,
            PRECISION=kind,
        )

    problem = (images, height, width, rows, held, groups, taps)
    # Packets of few channels take many addresses, which leave registers for smaller tiles.
    configs = configs_of(g, kind, rows, columns if packet == PACKET else 64, block_k)
    launch_fastest(run, configs, corr2d_weight_grad_product, problem, g)
    return sums


def box_of(images: int, height: int, width: int, size: int) -> tuple[int, int, int]:
    """Images x rows x columns, powers of two whose product is `size`, such that few hold all."""
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
