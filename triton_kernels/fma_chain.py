"""A chain of multiply-adds in Triton: x <- (x + 1) / 2, as x * 1/2 + 1/2, `rounds` times.

What the benchmark suite measures the arithmetic units with; it computes nothing of use. The
iteration tends to 1 from anywhere, so it meets neither overflow nor subnormal numbers.

Tiling: a program keeps BLOCK elements in registers for all rounds, eight in each lane of a warp of
32: more than a unit has in flight, and they do not depend on one another. Eight rounds are
unrolled: one jump to 64 multiply-adds.

Bytes: one read and one write per element. Flops: 2 * rounds per element; thousands of rounds make
them the only limit.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import narrow, widen
from d2lops.triton_kernels.launch import launch

CONFIG = Config({"BLOCK": 1024}, num_warps=4)


@triton.jit
def multiply_and_add(x_ptr, y_ptr, count, rounds, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    chain = widen(tl.load(x_ptr + element, inside, 0.0))
    for _ in tl.range(0, rounds, loop_unroll_factor=8):
        chain = tl.fma(chain, 0.5, 0.5)
    tl.store(y_ptr + element, narrow(chain, y_ptr.dtype.element_ty), inside)


def fma_chain(x: Tensor, rounds: int, *, out: Tensor) -> None:
    if x.numel() == 0:
        return
    grid = (triton.cdiv(x.numel(), CONFIG.kwargs["BLOCK"]),)
    launch(multiply_and_add, grid, x, out, x.numel(), rounds, config=CONFIG)
