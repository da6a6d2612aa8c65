"""The matrix products of corr2d where Hopper's tensor memory accelerator (TMA) gathers the image.

Same products as in corr2d_pointers.py, but the positions of a tile are a box: so many images x
rows x columns, each a power of two. What a tap makes of a box is again a box of the image, shifted,
so that one instruction fetches it, as [positions, channels], and puts zeros where it is outside.
That is what padding is. No thread computes an address, nor asks whether it is inside, and the loop
is as short as that of any matrix product. A box can be as flat as one row, or as one pixel of many
images: the one is taken of which fewest cover the positions.

Where the stride is not 1, taps meet rows of several phases, which are not a box. Adjoints have a
stride of 1 in what they read, and a forward layer whose taps are in one phase (1x1, above all)
reads every s-th row, as an image of its own.

Tiles are computed turned, channels x positions: of a product's operands only the second one may be
a box in shared memory; the first one takes a detour through registers to become a matrix. In the
weight gradient both are boxes, and the gradient takes it. A mask would, too, for every tap: so it
is applied before, once, by packing.py.
"""

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import sum_dtype
from d2lops.triton_kernels.blocks import ceil_div, power_of_two
from d2lops.triton_kernels.device import device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.packing import PACKET, strides
from d2lops.triton_kernels.product import (
    allow_descriptors,
    guessed_first,
    multiply,
    on_tensor_cores,
    persistent,
    stages_that_fit,
    tile_at,
)
from d2lops.triton_kernels.taps import (
    Axis,
    box_of,
    boxes_in,
    of_one_phase,
    parts_of,
    store,
    stored_one_by_one,
    taps_of,
)

# Products of fewer multiplications are over before it would pay.
LARGE = 2**28
# Positions, channels, warps, stages; from large tiles to small ones.
TILES = ((256, 128, 8, 4), (128, 128, 4, 3), (64, 64, 4, 4))
TILES_OF_FEW_CHANNELS = ((256, 64, 8, 4), (128, 64, 4, 4), (64, 64, 4, 4))
TILES_STORED_ONE_BY_ONE = ((128, 64, 4, 4), (64, 64, 4, 4))
# Output channels, input channels, warps, stages.
WEIGHT_TILES = ((128, 256, 8, 4), (128, 128, 4, 4), (64, 64, 4, 4))
WEIGHT_TILES_OF_FEW_CHANNELS = ((128, 64, 4, 4), (64, 64, 4, 4))
WEIGHT_POSITIONS = 64  # of a step


@triton.jit
def in_boxes(
    ptr, images, height, width, channels, stride_n, stride_h, stride_w,
    BOX_N: tl.constexpr, BOX_H: tl.constexpr, BOX_W: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """An image with channels last, to TMA."""
    return tl.make_tensor_descriptor(
        ptr, [images, height, width, channels], [stride_n, stride_h, stride_w, 1],
        [BOX_N, BOX_H, BOX_W, CHANNELS],
    )  # fmt: skip


@triton.jit
def corr2d_through_tma(
    x_ptr, weight_ptr, bias_ptr, y_ptr,  # the bias may be None
    images, x_height, x_width, y_height, y_width,
    depth, columns, groups,  # channels of a group: those that are read, and those that are written
    phases_h, positions_h, apart_h, kernel_h, top, dilation_h, tap_h, image_h,
    phases_w, positions_w, apart_w, kernel_w, left, dilation_w, tap_w, image_w,
    x_n, x_h, x_w,
    weight_column, weight_depth, weight_h, weight_w,
    bias_stride,
    y_n, y_c, y_h, y_w,
    ADJOINT: tl.constexpr, RELU: tl.constexpr,
    SIDEWAYS: tl.constexpr,  # whether the weight has side by side what is written
    TURNED: tl.constexpr,  # whether tiles are stored along positions
    PRECISION: tl.constexpr,
    BOX_H: tl.constexpr, BOX_W: tl.constexpr,  # times BLOCK_M / (BOX_H BOX_W) images
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    BOX_N: tl.constexpr = BLOCK_M // (BOX_H * BOX_W)
    x = in_boxes(
        x_ptr, images, x_height, x_width, groups * depth, x_n, x_h, x_w,
        BOX_N, BOX_H, BOX_W, BLOCK_K,
    )  # fmt: skip
    # Of one of them the weight has those of all groups: forward of what is written.
    depth_step = depth if ADJOINT else 0
    column_step = 0 if ADJOINT else columns
    depths = depth + (groups - 1) * depth_step
    all_columns = columns + (groups - 1) * column_step
    if SIDEWAYS:
        weight = tl.make_tensor_descriptor(
            weight_ptr, [kernel_h, kernel_w, depths, all_columns],
            [weight_h, weight_w, weight_depth, 1], [1, 1, BLOCK_K, BLOCK_N],
        )  # fmt: skip
    else:
        weight = tl.make_tensor_descriptor(
            weight_ptr, [kernel_h, kernel_w, all_columns, depths],
            [weight_h, weight_w, weight_column, 1], [1, 1, BLOCK_N, BLOCK_K],
        )  # fmt: skip
    boxes_h = tl.cdiv(positions_h, BOX_H)
    boxes_w = tl.cdiv(positions_w, BOX_W)
    boxes = tl.cdiv(images, BOX_N) * boxes_h * boxes_w
    blocks = tl.cdiv(columns, BLOCK_N)
    tiles = boxes * blocks * phases_w * phases_h * groups
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        box, block = tile_at(number % (boxes * blocks), boxes, blocks)
        phase = number // (boxes * blocks)
        phase_w = phase % phases_w
        phase_h = phase // phases_w % phases_h
        group = phase // phases_w // phases_h
        column = block * BLOCK_N
        first_depth = group * depth_step
        first_column = group * column_step + column
        n = box // boxes_w // boxes_h * BOX_N
        a = box // boxes_w % boxes_h * BOX_H
        b = box % boxes_w * BOX_W
        first_h, count_h, shift_h = taps_of(
            phase_h, apart_h, kernel_h, top, dilation_h, tap_h, ADJOINT
        )
        first_w, count_w, shift_w = taps_of(
            phase_w, apart_w, kernel_w, left, dilation_w, tap_w, ADJOINT
        )
        sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        r = tl.full((), 0, tl.int32)
        s = tl.full((), 0, tl.int32)
        c = tl.full((), 0, tl.int32)
        for _ in range(count_h * count_w * tl.cdiv(depth, BLOCK_K)):
            h = a + shift_h + r * image_h
            w = b + shift_w + s * image_w
            image = x.load([n, h, w, group * depth + c]).reshape(BLOCK_M, BLOCK_K)
            tap_r = first_h + r * tap_h
            tap_s = first_w + s * tap_w
            if SIDEWAYS:
                taps = weight.load([tap_r, tap_s, first_depth + c, first_column])
                taps = taps.reshape(BLOCK_K, BLOCK_N).T
            else:
                taps = weight.load([tap_r, tap_s, first_column, first_depth + c])
                taps = taps.reshape(BLOCK_N, BLOCK_K)
            sums = multiply(taps, image.T, sums, PRECISION)
            # On to the next block of channels, and from the last one to the next tap.
            c += BLOCK_K
            last = c >= depth
            c = tl.where(last, 0, c)
            s += last.to(tl.int32)
            last = s == count_w
            s = tl.where(last, 0, s)
            r += last.to(tl.int32)

        m = tl.arange(0, BLOCK_M)
        image_number = n + m // (BOX_H * BOX_W)
        place_h = a + m // BOX_W % BOX_H
        place_w = b + m % BOX_W
        h = phase_h + place_h * apart_h
        w = phase_w + place_w * apart_w
        inside = (image_number < images) & (place_h < positions_h) & (place_w < positions_w)
        inside = inside & (h < y_height) & (w < y_width)
        y_row = image_number.to(tl.int64) * y_n + h.to(tl.int64) * y_h + w.to(tl.int64) * y_w
        store(
            y_ptr, tl.trans(sums), bias_ptr, bias_stride, y_row, y_c, inside,
            group.to(tl.int64), column, columns, RELU, TURNED,
        )  # fmt: skip


@triton.jit
def met_by(offset, stride, x_size, g_size):
    """The rows of x that a tap meets, at `offset` from row 0 of g, are a stride apart: which one is
    the first of their phase, which of these row 0 of g meets, and where they end.

    They end where g does. Of what a box has of x beyond that, an infinity would show, although g is
    zero there.
    """
    phase = offset % stride
    phase = tl.where(phase < 0, phase + stride, phase)
    shift = (offset - phase) // stride
    return phase, shift, tl.minimum(tl.cdiv(x_size - phase, stride), g_size + shift)


@triton.jit
def corr2d_weight_grad_through_tma(
    g_ptr, x_ptr, sums_ptr,
    images, g_height, g_width, rows,  # g, with so many channels in a group
    x_height, x_width, channels,  # x likewise
    groups, parts,
    kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w,
    g_n, g_h, g_w,
    x_n, x_h, x_w,
    BOX_H: tl.constexpr, BOX_W: tl.constexpr,  # times BLOCK_K / (BOX_H BOX_W) images
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile for the output channels x input channels of a tap, and of a part of all positions."""
    BOX_N: tl.constexpr = BLOCK_K // (BOX_H * BOX_W)
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_M), tl.cdiv(channels, BLOCK_N)
    number = tl.program_id(0)
    row, column = tile_at(number % (row_tiles * column_tiles), row_tiles, column_tiles)
    number //= row_tiles * column_tiles
    tap = number % (kernel_h * kernel_w)
    number //= kernel_h * kernel_w
    group = number % groups
    part = number // groups
    row *= BLOCK_M
    column *= BLOCK_N
    offset_h = tap // kernel_w * dilation_h - top
    offset_w = tap % kernel_w * dilation_w - left
    phase_h, shift_h, end_h = met_by(offset_h, stride_h, x_height, g_height)
    phase_w, shift_w, end_w = met_by(offset_w, stride_w, x_width, g_width)
    met = (end_h > 0) & (end_w > 0)
    x_h = tl.cast(x_h, tl.int64)
    x_w = tl.cast(x_w, tl.int64)
    x = in_boxes(
        x_ptr + (phase_h * x_h + phase_w * x_w), images, tl.maximum(end_h, 1), tl.maximum(end_w, 1),
        groups * channels, x_n, stride_h * x_h, stride_w * x_w, BOX_N, BOX_H, BOX_W, BLOCK_N,
    )  # fmt: skip
    g = in_boxes(
        g_ptr, images, g_height, g_width, groups * rows, g_n, g_h, g_w,
        BOX_N, BOX_H, BOX_W, BLOCK_M,
    )  # fmt: skip

    # The boxes of this part: as many as of any other, or one less.
    boxes_h = tl.cdiv(g_height, BOX_H)
    boxes_w = tl.cdiv(g_width, BOX_W)
    boxes = tl.cdiv(images, BOX_N) * boxes_h * boxes_w
    begin = (part.to(tl.int64) * boxes // parts).to(tl.int32)
    end = ((part + 1).to(tl.int64) * boxes // parts).to(tl.int32)
    b = begin % boxes_w * BOX_W
    a = begin // boxes_w % boxes_h * BOX_H
    n = begin // boxes_w // boxes_h * BOX_N
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.where(met, end - begin, 0)):
        g_tile = g.load([n, a, b, group * rows + row]).reshape(BLOCK_K, BLOCK_M)
        x_tile = x.load([n, a + shift_h, b + shift_w, group * channels + column])
        sums = multiply(g_tile.T, x_tile.reshape(BLOCK_K, BLOCK_N), sums, "ieee")
        b += BOX_W
        last = b >= g_width
        b = tl.where(last, 0, b)
        a = tl.where(last, a + BOX_H, a)
        last = a >= g_height
        a = tl.where(last, 0, a)
        n = tl.where(last, n + BOX_N, n)

    m = row + tl.arange(0, BLOCK_M)
    k = column + tl.arange(0, BLOCK_N)
    at = (part.to(tl.int64) * groups + group) * rows
    at = ((at + m) * (kernel_h * kernel_w) + tap)[:, None] * channels + k[None, :]
    tl.store(sums_ptr + at, sums, (m < rows)[:, None] & (k < channels)[None, :])


def boxed(
    x: Tensor, y: Tensor, axes: tuple[Axis, Axis], groups: int, kind: str
) -> tuple[Tensor, tuple[Axis, Axis]] | None:
    """If y is to be computed here: the image and axes, with a stride of 1."""
    down, across = axes
    stride, depth = (down.stride, across.stride), x.size(1) // groups
    if not pays(x, kind, y.numel() * depth * down.kernel * across.kernel):
        return None
    if groups > 1 and depth % block_of_depth(x, depth):  # it would reach into the next group
        return None
    phases = [of_one_phase(axis) for axis in axes]
    if None in phases:
        return None
    (top, down), (left, across) = phases
    if stride != (1, 1):
        x = x[:, :, top :: stride[0], left :: stride[1]]
    return (x, (down, across)) if x.numel() else None


def fits_weight_grad(g: Tensor, x: Tensor, axes: tuple[Axis, Axis], groups: int, kind: str) -> bool:
    """Whether it is to be computed here. With few channels, a tile for each tap were mostly empty;
    and of TF32, tensor cores take no operands that have channels side by side."""
    channels = x.size(1) // groups
    many = min(g.size(1) // groups, channels) >= 64
    multiplications = g.numel() * channels * axes[0].kernel * axes[1].kernel
    return many and g.itemsize == 2 and pays(g, kind, multiplications)


def pays(x: Tensor, kind: str, multiplications: int) -> bool:
    device = device_of(x)
    has_tma = on_tensor_cores(x, kind) and device.capability >= 90
    return has_tma and (multiplications >= LARGE or device.maker == "interpreter")


def steps(x: Tensor) -> tuple[int, ...]:
    """Strides for TMA: none is 0, not even one that means nothing."""
    return tuple(stride or PACKET for stride in strides(x))


def block_of_depth(x: Tensor, depth: int) -> int:
    """Rows of 128 bytes in shared memory, or less."""
    return power_of_two(depth, 128 // x.itemsize, 16)


def configs_of(
    x: Tensor,
    tiles: tuple[tuple[int, int, int, int], ...],
    block_k: int,
    number: Callable[[int, int], int],
) -> list[Config]:
    """For problems of such a `number` of tiles."""
    configs = []
    for m, n, warps, stages in tiles:
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": block_k}
        stages = stages_that_fit(device_of(x), (m + n) * block_k * x.itemsize, stages)
        configs.append(Config(blocks, num_warps=warps, num_stages=stages))
    return guessed_first(configs, lambda config: number(*sides(config)))


def sides(config: Config) -> tuple[int, int]:
    return config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]


def run_product(
    x: Tensor,
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
    positions = (images, down.positions, across.positions)
    phases = down.phases * across.phases
    x_n, _, x_h, x_w = steps(x)

    def number(m: int, n: int) -> int:
        box = box_of(*positions, m)
        return boxes_in(positions, box) * ceil_div(columns, n) * phases * groups

    def run(config: Config) -> None:
        box = box_of(*positions, config.kwargs["BLOCK_M"])
        allow_descriptors()
        launch(
            corr2d_through_tma,
            (persistent(number(*sides(config)), config, x),),
            *(x, weight, bias, y, images, *x.shape[2:], *y.shape[2:], depth, columns, groups),
            *(*without_stride(down), *without_stride(across)),
            *(x_n, x_h, x_w, *steps(weight)),
            *(0 if bias is None else bias.stride(0), *y.stride()),
            config=config,
            ADJOINT=adjoint,
            RELU=relu,
            SIDEWAYS=weight.stride(1) != 1,
            TURNED=y.stride(1) != 1,
            PRECISION=kind,
            BOX_H=box[1],
            BOX_W=box[2],
        )

    if stored_one_by_one(y, axes, groups):
        tiles = TILES_STORED_ONE_BY_ONE
    else:
        tiles = TILES if columns > 64 else TILES_OF_FEW_CHANNELS
    # The largest ones have no registers left for the addresses of 32-bit numbers.
    configs = configs_of(x, tiles[x.itemsize == 4 :], block_of_depth(x, depth), number)
    problem = (*positions, depth, columns, groups, down.kernel, across.kernel, str(adjoint))
    launch_fastest(run, configs, corr2d_through_tma, problem, x)


def without_stride(axis: Axis) -> tuple[int, ...]:
    return axis[:3] + axis[4:]


def run_weight_grad(g: Tensor, x: Tensor, axes: tuple[Axis, Axis], groups: int) -> Tensor:
    """The parts that the weight gradient is the sum of: (parts, output channels, taps, inputs)."""
    images, outputs, height, width = g.shape
    rows, channels = outputs // groups, x.size(1) // groups
    down, across = axes
    taps = down.kernel * across.kernel
    box = box_of(images, height, width, WEIGHT_POSITIONS)

    def number(m: int, n: int) -> int:
        return ceil_div(rows, m) * ceil_div(channels, n) * taps * groups

    parts = parts_of(number(128, 128), boxes_in((images, height, width), box))
    sums = g.new_empty((parts, outputs, taps * channels), dtype=sum_dtype(g))
    g_n, _, g_h, g_w = steps(g)
    x_n, _, x_h, x_w = steps(x)

    def run(config: Config) -> None:
        allow_descriptors()
        launch(
            corr2d_weight_grad_through_tma,
            (number(*sides(config)) * parts,),
            *(g, x, sums, images, height, width, rows, *x.shape[2:], channels),
            *(groups, parts, down.kernel, across.kernel, down.stride, across.stride),
            *(down.padding, across.padding, down.dilation, across.dilation),
            *(g_n, g_h, g_w, x_n, x_h, x_w),
            config=config,
            BOX_H=box[1],
            BOX_W=box[2],
        )

    tiles = WEIGHT_TILES if channels > 64 else WEIGHT_TILES_OF_FEW_CHANNELS
    configs = configs_of(g, tiles, WEIGHT_POSITIONS, lambda m, n: number(m, n) * parts)
    problem = (images, height, width, rows, channels, groups, taps)
    launch_fastest(run, configs, corr2d_weight_grad_through_tma, problem, g)
    return sums
