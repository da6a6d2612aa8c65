"""What all kernels do to numbers: 16-bit ones are widened, computed with, and narrowed again."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from d2lops.triton_kernels import device

INTERPRETED = tl.constexpr(device.INTERPRETED)


def sum_dtype(x: Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@triton.jit
def widen(x):
    """To float32, but for float64."""
    if x.dtype == tl.float64:
        return x
    else:  # or this would be compiled as well, and the two differ in type
        return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """To the dtype that is stored: to the nearest, of two the even one.

    The interpreter would truncate to bfloat16, so there its bits are rounded by hand: half a unit
    is added to them, less one where that would make an odd number of what is even.
    """
    if not (INTERPRETED and dtype == tl.bfloat16):
        return x.to(dtype)
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(x == x, rounded, 0x7FC00000).to(tl.float32, bitcast=True).to(dtype)


@triton.jit
def passing(g, y):
    """`g` where a ReLU whose output is `y` lets it pass: where y is positive, or NaN."""
    return tl.where(widen(y) <= 0, 0.0, widen(g)).to(g.dtype)
