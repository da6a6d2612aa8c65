"""What the kernels of corr2d share: where windows lie, and how tiles are stored.

With s the stride, d the dilation and p the padding before, tap r of output a lies at input

    h = a s + r d - p.

Kernels write a plane, whose positions are a, and read another one at the taps of each position.
Forward that is as above. For the input gradient, positions are inputs h, and tap r meets output
(h + p - r d) / s, where that is an integer. So positions are sorted by their phase, h mod s: with
h = phase + a s, the taps of a phase are first, first + tap, first + 2 tap, ... and what they meet
is shift + a, shift + image + a, shift + 2 image + a, ..., where tap = s / gcd(s, d) and image =
-d / gcd(s, d).
So no tap is visited in vain, and forward is the case of one phase, with positions s apart.

Whether a tap is inside of the image, 0 <= h < height, is one comparison of h taken as an unsigned
number.
"""

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from d2lops.triton_kernels.blocks import ceil_div
from d2lops.triton_kernels.packing import PACKET
from d2lops.triton_kernels.product import finished


class Axis(NamedTuple):
    """One axis of a correlation, as kernels take it, in this order."""

    phases: int  # the positions written, sorted by phase
    positions: int  # in the first phase, which has the most
    apart: int  # in the plane that is written
    stride: int  # in the plane that is read
    kernel: int
    padding: int
    dilation: int
    tap: int
    image: int


def forward_axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """For `size` outputs."""
    return Axis(1, size, 1, stride, kernel, padding, dilation, 1, dilation)


def adjoint_axis(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """For `size` inputs."""
    common = math.gcd(stride, dilation)
    phases = min(stride, size)
    positions = triton.cdiv(size, stride)
    tap, image = stride // common, -dilation // common
    return Axis(phases, positions, stride, 1, kernel, padding, dilation, tap, image)


def of_one_phase(axis: Axis) -> tuple[int, Axis] | None:
    """Where all taps meet rows of one phase of the stride: the first of these rows, and the axis
    over them, whose stride is 1."""
    stride = axis.stride
    if stride == 1:
        return 0, axis
    if axis.kernel > 1 and axis.dilation % stride:
        return None
    first = -axis.padding % stride
    padding, dilation = (axis.padding + first) // stride, axis.dilation // stride
    return first, axis._replace(stride=1, padding=padding, dilation=dilation, image=dilation)


def boxes_in(sizes: tuple[int, int, int], box: tuple[int, int, int]) -> int:
    return math.prod(ceil_div(size, side) for size, side in zip(sizes, box, strict=True))


def box_of(images: int, height: int, width: int, size: int) -> tuple[int, int, int]:
    """Images x rows x columns, powers of two whose product is `size`, such that few hold all."""
    sizes = (images, height, width, size)
    # The search takes as long as a small kernel. Sizes that the compiler leaves open have no hash.
    known = all(type(n) is int for n in sizes)
    return (_box_of if known else _box_of.__wrapped__)(*sizes)


@functools.cache
def _box_of(images: int, height: int, width: int, size: int) -> tuple[int, int, int]:
    boxes = []
    across = size
    while across >= 1:
        down = size // across
        while down >= 1:
            deep = size // across // down
            box = (deep, down, across)
            boxes.append((boxes_in((images, height, width), box), *box))
            down //= 2
        across //= 2
    return min(boxes)[1:]


def parts_of(tiles: int, boxes: int) -> int:
    """How many parts the positions of a weight gradient are summed in: enough for the
    multiprocessors of any GPU, twice, but not for less than four boxes each. Their number decides
    on the order of the sum, so sizes alone decide on it."""
    return max(1, min(triton.cdiv(264, tiles), boxes // 4))


def stored_one_by_one(y: Tensor, axes: tuple[Axis, Axis], groups: int) -> bool:
    """Whether Triton sees no packets in what is written. Then each number has an address of its
    own, in registers, which small tiles have enough of."""
    down, across = axes
    if y.stride(1) == 1:
        return y.size(1) // groups % PACKET != 0
    return down.phases * across.phases > 1 or down.positions * across.positions % PACKET != 0


@triton.jit
def taps_of(phase, stride, kernel, padding, dilation, tap, ADJOINT: tl.constexpr):
    """First tap that meets the positions of a phase, how many do, and what the first one meets."""
    if ADJOINT:
        first = tl.cast(kernel, tl.int32)
        for r in range(tl.minimum(tl.cast(tap, tl.int32), first)):
            met = (phase.to(tl.int64) + padding - r * dilation) % stride == 0
            first = tl.where(met, r, first)
        shift = (phase.to(tl.int64) + padding - first * dilation) // stride
        return first, (kernel - first + tap - 1) // tap, shift.to(tl.int32)
    none = tl.full((), 0, tl.int32)
    return none, none + kernel, none - padding


@triton.jit
def places(first, plane, BLOCK: tl.constexpr):
    """Images, and places in their planes, of BLOCK positions from number `first` on."""
    image = first // plane
    number = (first - image * plane).to(tl.int32) + tl.arange(0, BLOCK)
    return image + number // plane, number % plane


@triton.jit
def store(
    y_ptr, sums, bias_ptr, bias_stride, y_row, y_c, inside, group, first, columns,
    RELU: tl.constexpr,
    TURNED: tl.constexpr,  # whether along rows, which are positions, and not along channels
):  # fmt: skip
    """A tile of a product, finished: positions x channels of a group, from the `first` on."""
    CHANNELS: tl.constexpr = 1 if TURNED else 0  # where a dimension is missing
    POSITIONS: tl.constexpr = 1 - CHANNELS
    n = tl.expand_dims(first + tl.arange(0, sums.shape[1]), CHANNELS)
    there = n < columns
    channel = group * columns + n
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel * bias_stride, there, 0.0)
    if TURNED:
        sums = tl.trans(sums)
    y = finished(sums, bias, RELU, y_ptr.dtype.element_ty)
    at = y_ptr + tl.expand_dims(y_row, POSITIONS) + channel * y_c
    tl.store(at, y, there & tl.expand_dims(inside, POSITIONS))
