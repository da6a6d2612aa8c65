"""Dropout (D2L 5.6) in Triton.

    y[e] = keep[e] x[e] / (1 - p),  keep[e] = word e mod 4 of Philox4x32-10(seed, e div 4) >= p 2^32

with e the logical (row-major) index. A Philox call gives four words, so a lane computes one counter
and serves four elements. In contiguous tensors those are neighbours in memory: the four words are
interleaved in registers, and loads and stores stay 16 bytes wide. In tensors of any other strides a
tile holds counters of the innermost dimension on one axis and positions of the dimension around it
on the other, so that whichever of them is contiguous in memory is read in one piece.

Bytes: each element read and written once. About 13 integer instructions per element (ten rounds of
two wide multiplications, shared by four) make it limited by memory for 32-bit numbers, and about
equally by arithmetic for 16-bit ones.
"""

import itertools
import math
import struct

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import narrow, widen
from d2lops.triton_kernels.blocks import power_of_two
from d2lops.triton_kernels.dims import Dim, collapsed
from d2lops.triton_kernels.launch import launch, launch_fastest

CONTIGUOUS = [Config({"BLOCK": b}, num_warps=w) for b, w in [(256, 4), (512, 4), (512, 8)]]
STRIDED = 256  # counters of a program


@triton.jit
def scaled(x, word, threshold, scale_bits):
    """A dropped infinity or NaN is 0: selected, not multiplied by it."""
    value = widen(x)
    scale = scale_bits.to(tl.float64, bitcast=True).to(value.dtype)
    return narrow(tl.where(word >= threshold, value * scale, 0.0), x.dtype)


@triton.jit
def dropout_contiguous(
    x_ptr, y_ptr, seed_ptr, count, threshold: tl.uint32, scale_bits, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    a, b, c, d = tl.randint4x(tl.load(seed_ptr), program * BLOCK + tl.arange(0, BLOCK))
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * BLOCK,))
    element = program * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    # Only the last program asks what is inside: with a mask whose end is not known to be a multiple
    # of 16, loads and stores could not be wide.
    if (program + 1) * (4 * BLOCK) <= count:
        x = tl.load(x_ptr + element)
        tl.store(y_ptr + element, scaled(x, words, threshold, scale_bits))
    else:
        inside = element < count
        x = tl.load(x_ptr + element, inside, 0.0)
        tl.store(y_ptr + element, scaled(x, words, threshold, scale_bits), inside)


@triton.jit
def dropout_strided(
    x_ptr, y_ptr, seed_ptr, first,  # `first`: the logical index of the first element
    size1, size2, size3,  # of dimensions 1 to 3; how large dimension 0 is, the grid says
    x_stride0, x_stride1, x_stride2, x_stride3,
    y_stride0, y_stride1, y_stride2, y_stride3,
    threshold: tl.uint32, scale_bits,
    BLOCK_INNER: tl.constexpr, BLOCK_OUTER: tl.constexpr,
):  # fmt: skip
    inner_blocks = tl.cdiv(tl.cdiv(size3 + 3, 4), BLOCK_INNER)
    outer_blocks = tl.cdiv(size2, BLOCK_OUTER)
    program = tl.program_id(0)
    block3 = program % inner_blocks
    block2 = program // inner_blocks % outer_blocks
    image = program // inner_blocks // outer_blocks
    i0, i1 = (image // size1).to(tl.int64), (image % size1).to(tl.int64)
    i2 = block2 * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)[None, :].to(tl.int64)
    # Where each row begins, which may be within a counter's four.
    row = first + ((i0 * size1 + i1) * size2 + i2) * size3
    counter = row // 4 + block3 * BLOCK_INNER + tl.arange(0, BLOCK_INNER)[:, None]
    a, b, c, d = tl.randint4x(tl.load(seed_ptr), counter)
    x_row = x_ptr + i0 * x_stride0 + i1 * x_stride1 + i2 * x_stride2
    y_row = y_ptr + i0 * y_stride0 + i1 * y_stride1 + i2 * y_stride2
    for j in tl.static_range(4):
        word = a if j == 0 else b if j == 1 else c if j == 2 else d
        i3 = 4 * counter + j - row
        inside = (i3 >= 0) & (i3 < size3) & (i2 < size2)
        x = tl.load(x_row + i3 * x_stride3, inside, 0.0)
        tl.store(y_row + i3 * y_stride3, scaled(x, word, threshold, scale_bits), inside)


def dropout(x: Tensor, seed: Tensor, p: float, *, out: Tensor) -> None:
    threshold = math.ceil(p * 2**32)
    if threshold == 2**32:  # which no word reaches
        out.zero_()
        return
    if x.numel() == 0:
        return
    # As integers, so that none of its 64 bits are lost on the way to a kernel.
    (scale_bits,) = struct.unpack("q", struct.pack("d", 1 / (1 - p)))
    dims = collapsed(x, out, range(x.dim()))
    if dims == [Dim(x.numel(), 1, 1)] or x.numel() == 1:

        def run(config: Config) -> None:
            grid = (triton.cdiv(x.numel(), 4 * config.kwargs["BLOCK"]),)
            arguments = (x, out, seed, x.numel(), threshold, scale_bits)
            launch(dropout_contiguous, grid, *arguments, config=config)

        launch_fastest(run, CONTIGUOUS, dropout_contiguous, (x.numel(),), x)
    else:
        _dropout_strided(x, out, seed, dims, threshold, scale_bits)


def _dropout_strided(
    x: Tensor, y: Tensor, seed: Tensor, dims: list[Dim], threshold: int, scale_bits: int
) -> None:
    """A launch for each place in dimensions before the last four, which hardly any tensor has."""
    dims = [Dim(1, 0, 0)] * (4 - len(dims)) + dims
    leading, last = dims[:-4], dims[-4:]
    sizes, x_strides, y_strides = zip(*last, strict=True)
    # Lanes along whichever dimension is contiguous in memory, as far as it goes.
    outer = 4 if last[3].x_stride <= last[2].x_stride else power_of_two(sizes[2], 128)
    inner = STRIDED // outer
    config = Config({"BLOCK_INNER": inner, "BLOCK_OUTER": outer}, num_warps=4)
    blocks = triton.cdiv(triton.cdiv(sizes[3] + 3, 4), inner) * triton.cdiv(sizes[2], outer)
    for number, place in enumerate(itertools.product(*(range(dim.size) for dim in leading))):
        x_first = sum(i * dim.x_stride for i, dim in zip(place, leading, strict=True))
        y_first = sum(i * dim.y_stride for i, dim in zip(place, leading, strict=True))
        launch(
            dropout_strided,
            (sizes[0] * sizes[1] * blocks,),
            x.as_strided((), (), x.storage_offset() + x_first),
            y.as_strided((), (), y.storage_offset() + y_first),
            seed,
            number * math.prod(sizes),
            *sizes[1:],
            *x_strides,
            *y_strides,
            threshold,
            scale_bits,
            config=config,
        )
