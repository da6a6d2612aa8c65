"""What this machine can do at most, measured.

A case cannot be faster than copying its bytes, nor than doing its flops in registers or, on a GPU,
in the largest product of its dtype on the tensor cores.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable

import torch

from benchmarks import device
from benchmarks.case import Work, tf32_allowed
from benchmarks.clock import calls_for, gpu_clock, wall_clock
from benchmarks.device import on_gpu
from d2lops.ops.fma_chain import fma_chain

# Sets of tensors that are used in turn, so that no call finds its own in the nearest cache.
POOL = 3


@functools.cache
def copy_seconds(total_bytes: int) -> float:
    """How long `copy_` takes to read and write that many bytes together."""
    count = max(1, total_bytes // 8)
    turns = [torch.rand(2, count, device=device.name).unbind() for _ in range(POOL)]
    return _fastest(lambda to, source: to.copy_(source), turns)


def flops_per_second(dtype: torch.dtype, tf32: bool = False) -> float:
    """Of the units that compute with the dtype: two flops for each multiply-add."""
    if on_gpu() and (dtype.itemsize == 2 or tf32):
        return _in_products(dtype, tf32)
    return _in_registers(torch.float32 if dtype.itemsize == 2 else dtype)


@functools.cache
def _in_registers(dtype: torch.dtype) -> float:
    chains, rounds = 2**23 if on_gpu() else 2**14 * torch.get_num_threads(), 1000
    x = torch.zeros(chains, dtype=dtype, device=device.name)
    return 2 * chains * rounds / _fastest(fma_chain, [(x, rounds)])


@functools.cache
def _in_products(dtype: torch.dtype, tf32: bool) -> float:
    size = 8192
    turns = [
        torch.randn(2, size, size, dtype=dtype, device=device.name).unbind() for _ in range(POOL)
    ]
    with tf32_allowed(tf32):
        return 2 * size**3 / _fastest(torch.mm, turns)


def least_seconds(work: Work, dtype: torch.dtype, tf32: bool = False) -> tuple[float, str]:
    """How long the work takes at least, and which of its parts it is that takes so long."""
    copying = copy_seconds(work.bytes)
    computing = work.flops / flops_per_second(dtype, tf32)
    return (copying, "bytes") if copying > computing else (computing, "flops")


def _fastest(function: Callable, arguments: Iterable[tuple]) -> float:
    """The best of many short rounds: what disturbs a limit only ever makes it look lower."""
    clock = (gpu_clock if on_gpu() else wall_clock)(function, arguments)
    calls = calls_for(clock, seconds=0.0005)
    best, end = math.inf, time.perf_counter() + (0.1 if on_gpu() else 0.4)
    while time.perf_counter() < end:
        best = min(best, clock(calls))
    return best
