"""The gradient of a bias (D2L 5.1 and 7.2) in Triton: the sum of g, masked by the sign of y where a
ReLU was fused, over every dimension but the second; of (N, C, H, W) images or (M, N) matrices.

Tiling: what is summed up for a channel, its pixels, is cut in parts. A program has a part of some
channels, through which it goes in steps of a tile. Lanes are along whichever lies side by side in
memory, channels or pixels. A second kernel adds the parts of each channel, in float64. Into how
many parts, and in which order, depends on no GPU: a sum has the same bits on each.

Bytes: one read of g (and y). Flops: an addition and a comparison per element. Memory is the limit.
"""

import math

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import narrow, passing, sum_dtype, widen
from d2lops.triton_kernels.blocks import (
    POSITIONS,
    block_of_channels,
    of_channels,
    of_positions,
    power_of_two,
    zeros,
)
from d2lops.triton_kernels.dims import collapsed
from d2lops.triton_kernels.launch import launch

TILE = 2048  # elements that a program reads at once
LEAST_STEPS = 8  # of a part; with fewer it does not pay
ENOUGH_PROGRAMS = 2048  # to keep a GPU busy
ADDING = Config({"BLOCK_CHANNELS": 32, "BLOCK_PARTS": 64}, num_warps=4)


@triton.jit
def sum_parts(
    g_ptr, y_ptr, sums_ptr,  # y may be None; (parts, channels)
    channels, pixels, height, width, part_size,
    g_stride_c, g_stride_n, g_stride_h, g_stride_w,
    y_stride_c, y_stride_n, y_stride_h, y_stride_w,
    RANK: tl.constexpr,  # of n, h and w, how many there are: the last ones
    WIDE: tl.constexpr,  # places in memory need 64 bits
    EVEN: tl.constexpr,  # blocks of channels are full
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    part = tl.program_id(0) // blocks
    channel = of_channels(tl.program_id(0) % blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))
    exists = channel < channels
    if not EVEN:  # the last one is read for those that do not exist, so that none is masked
        channel = tl.minimum(channel, channels - 1)
    g = g_ptr + channel.to(tl.int64) * g_stride_c
    if y_ptr is not None:
        y = y_ptr + channel.to(tl.int64) * y_stride_c
    one = tl.full((), 1, tl.int64 if WIDE else tl.int32)
    end = tl.minimum(pixels, one * (part + 1) * part_size)
    total = zeros(g_ptr, BLOCK_PIXELS, BLOCK_CHANNELS)
    for start in range(0, part_size, BLOCK_PIXELS):
        pixel = one * part * part_size + start + of_positions(tl.arange(0, BLOCK_PIXELS))
        inside = pixel < end
        n, h, w = 0 * one, 0 * one, pixel
        if RANK > 1:
            h, w = pixel // width, pixel % width
        if RANK > 2:
            n, h = h // height, h % height
        x = tl.load(g + (n * g_stride_n + h * g_stride_h + w * g_stride_w), inside, 0.0)
        if y_ptr is not None:
            mask = y + (n * y_stride_n + h * y_stride_h + w * y_stride_w)
            x = passing(x, tl.load(mask, inside, 0.0))
        total += widen(x)
    total = narrow(tl.sum(total, POSITIONS, keep_dims=True), sums_ptr.dtype.element_ty)
    tl.store(sums_ptr + part.to(tl.int64) * channels + channel, total, exists)


@triton.jit
def add_parts(
    sums_ptr, db_ptr, channels, parts, BLOCK_CHANNELS: tl.constexpr, BLOCK_PARTS: tl.constexpr
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    exists = channel < channels
    total = tl.zeros((BLOCK_PARTS, BLOCK_CHANNELS), tl.float64)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)[:, None].to(tl.int64)
        inside = exists & (part < parts)
        total += tl.load(sums_ptr + part * channels + channel, inside, 0.0).to(tl.float64)
    total = tl.sum(total, 0, keep_dims=True).to(sums_ptr.dtype.element_ty)
    tl.store(db_ptr + channel, narrow(total, db_ptr.dtype.element_ty), exists)


def bias_grad(g: Tensor, y: Tensor | None, *, out: Tensor) -> None:
    if g.numel() == 0:
        out.zero_()
        return
    channels = g.size(1)
    dims = collapsed(g, g if y is None else y, (0, *range(2, g.dim())))
    rank = len(dims)
    sizes, g_strides, y_strides = zip(*[(1, 0, 0)] * (3 - rank), *dims, strict=True)
    pixels = math.prod(sizes)
    if g.stride(1) == 1 and channels > 1:
        block = block_of_channels(channels, 64)
    else:
        block = power_of_two(channels, 8)
    step = power_of_two(pixels, TILE // block)
    blocks = triton.cdiv(channels, block)
    least = triton.cdiv(pixels, triton.cdiv(ENOUGH_PROGRAMS, blocks))
    part_size = max(triton.cdiv(least, step), LEAST_STEPS) * step
    parts = triton.cdiv(pixels, part_size)
    sums = out
    if parts > 1:
        sums = out.new_empty((parts, channels), dtype=sum_dtype(g))
    reach = [
        sum((n - 1) * s for n, s in zip(sizes, t, strict=True)) for t in (g_strides, y_strides)
    ]
    config = Config({"BLOCK_CHANNELS": block, "BLOCK_PIXELS": step}, num_warps=4)
    launch(
        sum_parts,
        (parts * blocks,),
        *(g, y, sums, channels, pixels, *sizes[1:], part_size),
        *(g.stride(1), *g_strides, 0 if y is None else y.stride(1), *y_strides),
        config=config,
        RANK=rank,
        WIDE=max(*reach, pixels + part_size) >= 2**31,
        EVEN=channels % block == 0,
    )
    if parts > 1:
        grid = (triton.cdiv(channels, ADDING.kwargs["BLOCK_CHANNELS"]),)
        launch(add_parts, grid, sums, out, channels, parts, config=ADDING)
