"""Times a case, ours and torch's in turns, and compares what came out with float64.

Both sides get the same tensors, other ones from call to call. Inputs, and the gradient that enters
backward, are made before any clock starts. Results are compared for tensors that were not timed, so
that no answer can have been remembered.
"""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from benchmarks.case import Case
from benchmarks.limits import POOL, calls_for, least_seconds

ROUNDS = 9
FORWARD, TRAINING = MODES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        ours_seconds: median over the rounds; `ours_spread` is their interquartile range / median.
        limited_by: "bytes" or "flops", whichever takes the machine longer; `rate` is how many of
            them ours does in a second.
        of_limit: the least time in which the machine could do it / ours_seconds.
        ours_error: largest error against float64, of the output or, in training, of the gradient
            with the largest `error`; absent for float64.
        error: ours_error / torch_error; absent also where torch makes no error.
    """

    operator: str
    case: str
    dtype: str
    layout: str
    mode: str
    threads: int
    ours_seconds: float
    torch_seconds: float
    speedup: float
    ours_spread: float
    torch_spread: float
    limited_by: str
    rate: float
    of_limit: float
    ours_error: float | None
    torch_error: float | None
    error: float | None


class Arguments(NamedTuple):
    inputs: tuple[Tensor, ...]
    gradient: Tensor | None  # enters backward; absent where only forward is measured


def measure(case: Case, mode: str) -> Row:
    pool = [_arguments(case, mode) for _ in range(POOL)]
    ours_times, torch_times = _times_in_turns(case, pool)
    seconds, torch_seconds = statistics.median(ours_times), statistics.median(torch_times)
    work = case.forward if mode == FORWARD else case.forward.plus(case.backward)
    least, limited_by = least_seconds(work, case.dtype)
    ours_error, torch_error = _worst_errors(case, _arguments(case, mode))
    return Row(
        operator=case.operator,
        case=case.name,
        dtype=str(case.dtype).removeprefix("torch."),
        layout=case.layout,
        mode=mode,
        threads=torch.get_num_threads(),
        ours_seconds=seconds,
        torch_seconds=torch_seconds,
        speedup=torch_seconds / seconds,
        ours_spread=_spread(ours_times),
        torch_spread=_spread(torch_times),
        limited_by=limited_by,
        rate=getattr(work, limited_by) / seconds,
        of_limit=least / seconds,
        ours_error=ours_error,
        torch_error=torch_error,
        error=ours_error / torch_error if torch_error else None,
    )


def _arguments(case: Case, mode: str) -> Arguments:
    inputs = case.inputs()
    if mode == FORWARD:
        return Arguments(inputs, None)
    gradient = torch.randn_like(case.theirs(*inputs))
    return Arguments(tuple(x.requires_grad_() for x in inputs), gradient)


def _call(function: Callable[..., Tensor], arguments: Arguments) -> tuple[Tensor, ...]:
    """The output and, if there is a gradient to enter backward, the gradients of all inputs."""
    output = function(*arguments.inputs)
    if arguments.gradient is None:
        return (output,)
    return output, *torch.autograd.grad(output, arguments.inputs, arguments.gradient)


def _times_in_turns(case: Case, pool: list[Arguments]) -> tuple[list[float], list[float]]:
    """Seconds per call in each round, ours and torch's; who is first alternates."""
    timers = [_timer(case.ours, pool), _timer(case.theirs, pool)]
    calls = [calls_for(timer, seconds=0.01) for timer in timers]
    times: tuple[list[float], list[float]] = ([], [])
    for round in range(ROUNDS):
        for side in (round % 2, 1 - round % 2):
            times[side].append(timers[side].timeit(calls[side]).mean)
    return times


def _timer(function: Callable[..., Tensor], pool: list[Arguments]) -> Timer:
    names = {"call": _call, "function": function, "turns": itertools.cycle(pool)}
    statement = "call(function, next(turns))"
    return Timer(statement, globals=names, num_threads=torch.get_num_threads())


def _spread(times: list[float]) -> float:
    lower, middle, upper = statistics.quantiles(times, n=4)
    return (upper - lower) / middle


def _worst_errors(case: Case, arguments: Arguments) -> tuple[float | None, float | None]:
    """Of ours and of torch's output, or of those gradients in which ours compares worst."""
    ours = _errors(case, case.ours, arguments)
    theirs = _errors(case, case.theirs, arguments)
    if case.dtype == torch.float64:
        return None, None
    pairs = list(zip(ours, theirs, strict=True))
    of_interest = pairs[:1] if arguments.gradient is None else pairs[1:]
    return max(of_interest, key=lambda pair: pair[0] / max(pair[1], 1e-300))


def _errors(case: Case, function: Callable[..., Tensor], arguments: Arguments) -> list[float]:
    """Largest error of the output and of each gradient; raises where it is more than rounding."""
    results = _call(function, arguments)
    exact_function = case.exact(results[0]) if case.exact else case.theirs
    errors = []
    for result, exact in zip(results, _call(exact_function, _in_float64(arguments)), strict=True):
        difference = result.detach().double() - exact.detach()
        rounding = torch.finfo(case.dtype).eps ** 0.5  # half of the digits are right
        if not difference.norm() <= rounding * exact.norm():
            raise AssertionError(f"{case.operator}, {case.name}: a result is wrong")
        errors.append(difference.abs().max().item())
    return errors


def _in_float64(arguments: Arguments) -> Arguments:
    if arguments.gradient is None:
        return Arguments(tuple(x.double() for x in arguments.inputs), None)
    inputs = tuple(x.detach().double().requires_grad_() for x in arguments.inputs)
    return Arguments(inputs, arguments.gradient.double())
