"""How long a call takes: by the wall clock or, on a GPU, by the GPU's."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

# How many calls the GPU clock times in a row, and for how many cycles the GPU is kept waiting
# before the first: some 4 ms, in which the CPU has launched the kernels of most of them.
IN_A_ROW = 20
HEAD_START = 8_000_000

Clock = Callable[[int], float]  # from a number of calls, how many seconds one of them takes


def wall_clock(function: Callable, arguments: Iterable[tuple]) -> Clock:
    """Of one call after the other, with other arguments in turn; Python's time counts."""
    names = {"function": function, "turns": itertools.cycle(arguments)}
    timer = Timer("function(*next(turns))", globals=names, num_threads=torch.get_num_threads())
    return lambda calls: timer.timeit(calls).mean


def gpu_clock(function: Callable, arguments: Iterable[tuple]) -> Clock:
    """Of the GPU alone, whose caches hold none of the data; the median of the calls."""
    turns = itertools.cycle(arguments)

    def seconds(calls: int) -> float:
        events = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            for _ in range(min(calls, IN_A_ROW))
        ]
        torch.cuda._sleep(HEAD_START)
        for start, end in events:
            _larger_than_the_cache().zero_()
            start.record()
            function(*next(turns))
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1000

    return seconds


@functools.cache
def _larger_than_the_cache() -> Tensor:
    return torch.empty(2**28, dtype=torch.uint8, device="cuda")


def calls_for(clock: Clock, seconds: float) -> int:
    """How many calls take about that long. The first of all sets things up, and is not asked."""
    clock(1)
    return max(1, math.ceil(seconds / clock(1)))
