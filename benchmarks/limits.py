"""What this machine can do at most, measured.

A case cannot be faster than copying its bytes, nor than doing its flops in registers.
"""

import functools
import itertools
import math
import time

import torch
from torch.utils.benchmark import Timer

from benchmarks.case import Work
from d2lops.ops.fma_chain import fma_chain

# Sets of tensors that are used in turn, so that no call finds its own in the nearest cache.
POOL = 3


@functools.cache
def copy_seconds(total_bytes: int) -> float:
    """How long `copy_` takes to read and write that many bytes together."""
    count = max(1, total_bytes // 8)
    turns = itertools.cycle([(torch.zeros(count), torch.zeros(count)) for _ in range(POOL)])
    return _fastest("to, source = next(turns); to.copy_(source)", turns=turns)


@functools.cache
def flops_per_second(dtype: torch.dtype) -> float:
    """Multiply-adds of all threads in the loaded library's instruction set, two flops each."""
    if dtype.itemsize == 2:  # computed with as float32
        return flops_per_second(torch.float32)
    x = torch.zeros(2**14 * torch.get_num_threads(), dtype=dtype)
    rounds = 1000
    seconds = _fastest("fma_chain(x, rounds)", fma_chain=fma_chain, x=x, rounds=rounds)
    return 2 * x.numel() * rounds / seconds


def least_seconds(work: Work, dtype: torch.dtype) -> tuple[float, str]:
    """How long the work takes at least, and which of its parts it is that takes so long."""
    copying = copy_seconds(work.bytes)
    computing = work.flops / flops_per_second(dtype)
    return (copying, "bytes") if copying > computing else (computing, "flops")


def calls_for(timer: Timer, seconds: float) -> int:
    """How many calls take about that long."""
    return max(1, math.ceil(seconds / timer.timeit(1).mean))


def _fastest(statement: str, **names: object) -> float:
    """The best of many short rounds: what disturbs a limit only ever makes it look lower."""
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    calls = calls_for(timer, seconds=0.0005)
    best, end = math.inf, time.perf_counter() + 0.4
    while time.perf_counter() < end:
        best = min(best, timer.timeit(calls).mean)
    return best
