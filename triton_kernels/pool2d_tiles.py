"""What the kernels of pooling share: the tile that a program has, and what averages divide by."""

import triton
import triton.language as tl

from d2lops.triton_kernels.blocks import of_channels, of_positions
from d2lops.triton_kernels.windows import extent


@triton.jit
def tile_of(
    channels, rows, columns, blocks,
    WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Which image, channels, rows and columns a program has, and what there is of them.

    Channels are the first one's number and those from there on, as numbers beyond it. EVEN says
    that all of them exist; else the last one that does takes the place of those that do not, so
    that only stores need to ask. `blocks` of positions make a plane.
    """
    program = tl.program_id(0)
    block = program % blocks
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    first = program // blocks % channel_blocks * BLOCK_CHANNELS
    image = (program // blocks // channel_blocks).to(tl.int64)
    channel = of_channels(tl.arange(0, BLOCK_CHANNELS))
    exists = of_channels(tl.full((BLOCK_CHANNELS,), True, tl.int1))
    if not EVEN:
        exists = channel < channels - first
        channel = tl.minimum(channel, channels - first - 1)
    if WIDE:
        block = block.to(tl.int64)
        channel = channel.to(tl.int64)
    position = block * BLOCK_POSITIONS + of_positions(tl.arange(0, BLOCK_POSITIONS))
    row, column = position // columns, position % columns
    return image, first.to(tl.int64), channel, row, column, exists & (row < rows)


@triton.jit
def planes(x_ptr, stride_n, stride_c, image, first, channel):
    """Where the planes of a tile's channels begin."""
    return x_ptr + image * stride_n + first * stride_c + channel * stride_c


@triton.jit
def divided(x, height, width, DIVISOR: tl.constexpr):
    """By what an average is divided by: DIVISOR, or the window's area if that is 0. Rounded to the
    nearest, so that the average of a constant is that constant."""
    if DIVISOR > 0 and DIVISOR & (DIVISOR - 1) == 0:
        return x * (1 / DIVISOR)
    else:
        by = tl.full((1, 1), DIVISOR, x.dtype) if DIVISOR != 0 else (height * width).to(x.dtype)
        return x / by if x.dtype == tl.float64 else tl.div_rn(x, by)


@triton.jit
def averaged(
    x, row, column, height, width, rows, columns,
    kernel_h, kernel_w, stride_h, stride_w, top, bottom, left, right,
    DIVISOR: tl.constexpr, COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """`x`, divided as is the average of the window in that row and column."""
    down = extent(row, height, rows, kernel_h, stride_h, top, bottom, COUNT_INCLUDE_PAD, ADAPTIVE)
    across = extent(
        column, width, columns, kernel_w, stride_w, left, right, COUNT_INCLUDE_PAD, ADAPTIVE
    )
    return divided(x, down, across, DIVISOR)
