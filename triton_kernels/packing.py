"""Images whose channels lie as the matrix products of corr2d want them.

That is side by side, a multiple of 16 of them in each group (the others are zero), so that every
row of a tile is made of whole packets of 16 bytes, and the compiler can tell. One pass over memory:
a tile is read along whichever of pixels and channels is contiguous, turned in shared memory, and
written along channels. A gradient is masked on the way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.ops._layout import empty
from d2lops.triton_kernels.arithmetic import passing
from d2lops.triton_kernels.blocks import power_of_two
from d2lops.triton_kernels.launch import launch
from d2lops.triton_kernels.product import aligned

PACKET = 16  # numbers; what Triton asks of every stride, whatever the size of a number


@triton.jit
def pack(
    x_ptr, mask_ptr, packed_ptr,  # the second may be None
    width, pixels, channels, held_packets, groups,  # channels of a group, as read and as held
    x_n, x_c, x_h, x_w,
    mask_n, mask_c, mask_h, mask_w,
    PACKET: tl.constexpr,
    DENSE: tl.constexpr,  # whether pixels are x_w apart, also from row to row
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    held = held_packets * PACKET
    all_held = groups * held
    pixel_blocks = tl.cdiv(pixels, BLOCK_P)
    channel_blocks = tl.cdiv(all_held, BLOCK_C)
    number = tl.program_id(0)
    pixel = number % pixel_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    number //= pixel_blocks
    place = number % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image = (number // channel_blocks).to(tl.int64)
    channel = (place // held * channels + place % held).to(tl.int64)
    there = (pixel < pixels)[:, None] & (place < all_held)[None, :]
    inside = there & (place % held < channels)[None, :]
    h, w = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)
    row = pixel.to(tl.int64) * x_w if DENSE else h * x_h + w * x_w
    x = tl.load(x_ptr + image * x_n + row[:, None] + (channel * x_c)[None, :], inside, 0.0)
    if mask_ptr is not None:
        row = h * mask_h + w * mask_w
        mask_at = mask_ptr + image * mask_n + row[:, None] + (channel * mask_c)[None, :]
        x = passing(x, tl.load(mask_at, inside, 0.0))
    at = (image * pixels + pixel)[:, None] * all_held + place[None, :]
    tl.store(packed_ptr + at, x, there)


def strides(x: Tensor) -> tuple[int, ...]:
    """With 0 for a dimension of one element, so that a stride that means nothing is of no harm."""
    return tuple(0 if size == 1 else s for size, s in zip(x.shape, x.stride(), strict=True))


def is_packed(x: Tensor, groups: int) -> bool:
    n, c, h, w = strides(x)
    numbers = (n, h, w, x.storage_offset(), x.size(1) // groups)
    whole = all(number % PACKET == 0 for number in numbers)
    repeats = any(size > 1 and s == 0 for size, s in zip(x.shape, x.stride(), strict=True))
    return c == 1 and whole and not repeats and aligned(x, 16 // x.itemsize)


def packed(x: Tensor, groups: int, mask: Tensor | None = None, packet: int = PACKET) -> Tensor:
    """An image (or weight) so laid out and masked, with the channels that are held."""
    images, all_channels, height, width = x.shape
    channels = all_channels // groups
    held = triton.cdiv(channels, packet)
    if mask is None and held * packet == channels:
        contiguous = x.is_contiguous(memory_format=torch.channels_last)
        if is_packed(x, groups) if packet == PACKET else contiguous:
            return x
    result = empty(x, (images, groups * held * packet, height, width), channels_last=True)
    if result.numel() == 0:
        return result
    n, c, h, w = strides(x)
    dense = height == 1 or width == 1 or h == width * w
    if width == 1:
        w = h  # from each pixel to the next
    pixels = height * width
    block_c = power_of_two(groups * held * packet, 64)
    block_p = power_of_two(pixels, 4096 // block_c)
    tiles = triton.cdiv(pixels, block_p) * triton.cdiv(groups * held * packet, block_c)
    launch(
        pack,
        (images * tiles,),
        *(x, mask, result, width, pixels, channels, held, groups),
        *(n, c, h, w, *strides(x if mask is None else mask)),
        config=Config({"BLOCK_P": block_p, "BLOCK_C": block_c}, num_warps=4),
        PACKET=packet,
        DENSE=dense,
    )
    return result
