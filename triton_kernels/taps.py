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

import math
from typing import NamedTuple

import triton
import triton.language as tl

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


def blocked(size: int, most: int, least: int = 1) -> int:
    """The power of two, from `least` to `most`, that holds `size`."""
    block = least
    while block < size and block < most:
        block *= 2
    return block


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
