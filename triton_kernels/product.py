"""What the matrix products of linear and corr2d have in common: the order of tiles, the step that
multiplies, and what happens to sums before they are stored."""

import triton
import triton.language as tl
from torch import Tensor

from d2lops.triton_kernels.arithmetic import INTERPRETED, narrow, widen
from d2lops.triton_kernels.device import device_of

GROUP = tl.constexpr(8)


def precision(x: Tensor, tf32: bool) -> str:
    """How products of float32 numbers are computed; other dtypes are taken as they are."""
    return "tf32" if tf32 and device_of(x).tf32 else "ieee"


@triton.jit
def tile_at(number, rows, columns):
    """Row and column of the tile with that number: down eight rows, and then on to the next column.

    Tiles that are computed at the same time then form a square, nearly, and share what they read in
    the second-level cache.
    """
    width = GROUP * columns
    first = number // width * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + number % width % height, number % width // height


@triton.jit
def multiply(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # which the interpreter takes for integers
        a, b = widen(a), widen(b)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def finished(sums, bias, RELU: tl.constexpr, dtype: tl.constexpr):
    """What is stored: with the bias, a row or column of numbers, through the ReLU, narrowed."""
    sums += widen(bias)
    if RELU:  # which lets a NaN pass
        sums = tl.where(sums <= 0, 0.0, sums)
    return narrow(sums, dtype)
