"""The matrix products of corr2d through pointers: each thread copies its packets of the image.

`corr2d_product` serves the two maps that write an image. Its rows are positions (n, a, b), its
columns the channels that are written, and a step of the sum is a tap and a block of the channels
that are read. So within a step an image's offsets differ from those of the first step by one
number, rows are looked up once for a tile, and what is left to do for a row and step is to see
whether the tap is inside.

In `corr2d_weight_grad_product` rows are the output channels, columns are taps and input channels,
and the sum is over all positions. A step is a box of images x rows x columns, so that here, too,
only one number changes from step to step.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import passing, sum_dtype
from d2lops.triton_kernels.blocks import power_of_two
from d2lops.triton_kernels.device import device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.packing import PACKET, strides
from d2lops.triton_kernels.product import multiply, on_tensor_cores, tile_at, zeros
from d2lops.triton_kernels.taps import (
    Axis,
    box_of,
    boxes_in,
    parts_of,
    places,
    store,
    stored_one_by_one,
    taps_of,
)


@triton.jit
def corr2d_product(
    x_ptr, mask_ptr, weight_ptr, bias_ptr, y_ptr,  # mask and bias may be None
    images, x_height, x_width, y_height, y_width,
    depth, columns, groups,  # channels of a group: those that are read, and those that are written
    phases_h, positions_h, apart_h, stride_h, kernel_h, top, dilation_h, tap_h, image_h,
    phases_w, positions_w, apart_w, stride_w, kernel_w, left, dilation_w, tap_w, image_w,
    x_n, x_c, x_h, x_w,
    weight_group, weight_column, weight_depth, weight_h, weight_w,
    bias_stride,
    y_n, y_c, y_h, y_w,
    ADJOINT: tl.constexpr, RELU: tl.constexpr,
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

    sums = zeros(y_ptr, BLOCK_M, BLOCK_N)
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
            if mask_ptr is not None:
                x = passing(x, tl.load(mask_ptr + x_step + x_offsets))
        else:
            x = tl.load(x_at, inside, 0.0)
            if mask_ptr is not None:
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
    store(
        y_ptr, sums, bias_ptr, bias_stride, y_row, y_c, inside,
        group, column * BLOCK_N, columns, RELU, TURNED,
    )  # fmt: skip


@triton.jit
def corr2d_weight_grad_product(
    g_ptr, mask_ptr, x_ptr, sums_ptr,  # the mask may be None
    images, g_height, g_width, rows,  # g, with so many channels in a group
    x_height, x_width, channel_packets,  # x likewise, but in packets
    groups, parts,
    kernel_w, taps, stride_h, stride_w, top, left, dilation_h, dilation_w,
    box_h, box_w,  # times BLOCK_K / (box_h box_w) images
    g_n, g_h, g_w,
    x_packets_n, x_packets_h, x_packets_w,
    PACKET: tl.constexpr,
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
        if mask_ptr is not None:
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


# Products of fewer multiplications are over before they could be measured.
LARGE = 2**30


def configs_of(x: Tensor, kind: str, rows: int, columns: int, block_k: int) -> list[Config]:
    """For tiles of a matrix with so many rows and columns.

    Tiles are as large as registers allow, which hold sums everywhere but on Blackwell, and until
    Hopper what is multiplied as well. Four warps throughout: eight were reported to compute
    something else in a loop over taps and channels in one (pytorch/pytorch#173068).
    """
    device = device_of(x)
    ampere = device.maker == "cuda" and device.capability < 90
    wide = power_of_two(columns, 128, 16)
    sides = [(64, min(wide, 256 // x.itemsize))]
    if on_tensor_cores(x, kind) and x.itemsize == 4:
        sides = sides if ampere else [(128, min(wide, 64)), *sides]
    elif on_tensor_cores(x, kind) and ampere:
        sides = [(64, wide), *sides]
    elif on_tensor_cores(x, kind):
        sides = [(128, wide), (64, wide), (128, min(wide, 64))]
    # As many as fit into shared memory, and with numbers of 8 bytes into registers.
    stages = 2 if device.maker == "hip" or x.itemsize == 8 else 3
    sides = dict.fromkeys((min(m, power_of_two(rows, m, 16)), n) for m, n in sides)
    return [
        Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": block_k}, num_warps=4, num_stages=stages)
        for m, n in sides
    ]


def stays_inside(axis: Axis, size: int, adjoint: bool) -> bool:
    """Whether no tap is ever in the padding."""
    last = (axis.positions - 1) * axis.stride + (axis.kernel - 1) * axis.dilation
    return axis.padding == 0 and last < size and not (adjoint and axis.kernel > 1)


def run_product(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    axes: tuple[Axis, Axis],
    groups: int,
    relu: bool,
    kind: str,
    adjoint: bool,
) -> None:
    """`weight` has the channels that are written, and then those that are read."""
    images, depth, columns = x.size(0), x.size(1) // groups, y.size(1) // groups
    down, across = axes
    phases = down.phases * across.phases
    pixels = down.positions * across.positions
    multiplications = images * pixels * phases * groups * columns * depth
    multiplications *= down.kernel * across.kernel
    block_k = 16
    if on_tensor_cores(x, kind):
        block_k = power_of_two(depth, 64 if x.itemsize == 2 and depth % 64 == 0 else 32, 16)
    configs = configs_of(x, kind, 128, columns, block_k)
    if stored_one_by_one(y, axes, groups):
        configs = configs_of(x, kind, 64, min(columns, 64), block_k)[:1]
    elif multiplications < LARGE:  # small tiles are more tiles
        configs = configs[1:2] or configs
    channel, *others = strides(weight)

    def run(config: Config) -> None:
        m, n, k = (config.kwargs[f"BLOCK_{side}"] for side in "MNK")
        tiles = triton.cdiv(images * pixels, m) * triton.cdiv(columns, n)
        launch(
            corr2d_product,
            (tiles * phases * groups,),
            *(x, mask, weight, bias, y),
            *(images, *x.shape[2:], *y.shape[2:], depth, columns, groups, *down, *across),
            *strides(x),
            *(depth * others[0] if adjoint else columns * channel, channel, *others),
            *(0 if bias is None else bias.stride(0), *y.stride()),
            config=config,
            ADJOINT=adjoint,
            RELU=relu,
            INSIDE=all(map(stays_inside, axes, x.shape[2:], (adjoint, adjoint))),
            EVEN=depth % k == 0,
            PHASES=phases > 1,
            TURNED=y.stride(1) != 1,
            PRECISION=kind,
        )

    layout = f"{adjoint} {mask is None} {y.stride(1) == 1}"
    problem = (images, *y.shape[2:], depth, columns, groups, down.kernel, across.kernel, layout)
    launch_fastest(run, configs, corr2d_product, problem, x)


def run_weight_grad(
    g: Tensor,
    mask: Tensor | None,
    x: Tensor,
    axes: tuple[Axis, Axis],
    groups: int,
    packet: int,
    kind: str,
) -> Tensor:
    """The parts that the weight gradient is the sum of: (parts, output channels, taps, inputs)."""
    images, outputs, height, width = g.shape
    down, across = axes
    taps = down.kernel * across.kernel
    rows, columns = outputs // groups, taps * (x.size(1) // groups)
    block_k = 128 // g.itemsize if on_tensor_cores(g, kind) else 16
    box = box_of(images, height, width, block_k)
    tiles = groups * triton.cdiv(rows, 128) * triton.cdiv(columns, 128)
    parts = parts_of(tiles, boxes_in((images, height, width), box))
    sums = g.new_empty((parts, outputs, columns), dtype=sum_dtype(g))
    g_n, _, g_h, g_w = strides(g)
    x_n, _, x_h, x_w = strides(x)

    def run(config: Config) -> None:
        m, n = (config.kwargs[f"BLOCK_{side}"] for side in "MN")
        launch(
            corr2d_weight_grad_product,
            (triton.cdiv(rows, m) * triton.cdiv(columns, n) * groups * parts,),
            *(g, mask, x, sums, images, height, width, rows),
            *(*x.shape[2:], columns // taps // packet, groups, parts, across.kernel, taps),
            *(down.stride, across.stride, down.padding, across.padding),
            *(down.dilation, across.dilation, *box[1:]),
            *(g_n, g_h, g_w, x_n // packet, x_h // packet, x_w // packet),
            config=config,
            PACKET=packet,
            PRECISION=kind,
        )

    # Packets of few channels take many addresses, which leave registers for smaller tiles.
    configs = configs_of(g, kind, rows, columns if packet == PACKET else 64, block_k)
    problem = (images, height, width, rows, columns, groups, taps, str(mask is None))
    launch_fastest(run, configs, corr2d_weight_grad_product, problem, g)
    return sums
