"""Tiles of some positions (or taps, or pixels) and some channels.

Triton puts lanes along the dimension that it sees to be side by side in memory. Channels are, or
are not; of positions it often cannot tell. Where it sees nothing, lanes should be along positions,
and are, if these are the dimension that it then prefers: the first one up to Triton 3.6, the last
one in 3.9.
"""

import triton
import triton.language as tl

from d2lops.triton_kernels.arithmetic import widen

_FIRST = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
POSITIONS_FIRST = tl.constexpr(_FIRST)
POSITIONS = tl.constexpr(0 if _FIRST else 1)  # the dimension


@triton.jit
def of_positions(x):
    """A tile with a row or column for each element, which belong to positions."""
    return x[:, None] if POSITIONS_FIRST else x[None, :]


@triton.jit
def of_channels(x):
    return x[None, :] if POSITIONS_FIRST else x[:, None]


@triton.jit
def zeros(x_ptr, LANES: tl.constexpr, CHANNELS: tl.constexpr):
    """A tile for sums of such numbers."""
    if POSITIONS_FIRST:
        zero = tl.zeros((LANES, CHANNELS), x_ptr.dtype.element_ty)
    else:
        zero = tl.zeros((CHANNELS, LANES), x_ptr.dtype.element_ty)
    return widen(zero)


def ceil_div(a: int, b: int) -> int:  # triton.cdiv takes microseconds on this side
    return -(-a // b)


def power_of_two(size: int, most: int, least: int = 1) -> int:
    """The smallest one, from `least` to `most`, that holds `size`."""
    power = least
    while power < size and power < most:
        power *= 2
    return power


def block_of_channels(channels: int, most: int) -> int:
    """Of channels that lie side by side: as many as divide all of them, if these are no few. Then
    none has to be masked, and loads and stores can be wide."""
    block = most
    while block > 1 and channels % block != 0:
        block //= 2
    return block if block >= 8 else power_of_two(channels, most)
