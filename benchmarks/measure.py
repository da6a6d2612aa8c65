"""Times a case, ours and its rivals in turns, and compares what came out with float64.

All sides get the same tensors, other ones from call to call. Inputs, and the gradient that enters
backward, are made before any clock starts. Results are compared for tensors that were not timed, so
that no answer can have been remembered, in memory full of NaN, so that none can have been left out.
"""

import contextlib
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import d2lops
from benchmarks.case import FORWARD, Arguments, Case, short, tf32_allowed
from benchmarks.clock import Clock, calls_for, gpu_clock, wall_clock
from benchmarks.device import on_gpu
from benchmarks.kept import kept_bytes
from benchmarks.limits import POOL, least_seconds

ROUNDS = 9


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        ours_seconds: median over the rounds; `ours_spread` is their interquartile range / median.
        speedup: torch_seconds / ours_seconds; `compiled_speedup` likewise, over `torch.compile`.
        not_compiled: why there are no times of `torch.compile`.
        ours_kept: bytes that wait for backward, beside inputs and output; absent for forward.
        outputs: elements of the output.
        limited_by: "bytes" or "flops", whichever takes the machine longer; `rate` is how many of
            them ours does in a second.
        of_limit: the least time in which the machine could do it / ours_seconds.
        ours_error: largest error against float64, of the output or, in training, of the gradient
            with the largest `error`; absent for float64.
        error: ours_error / torch_error; absent also where torch makes no error.
        triton_seconds: on a GPU, of the same functions with the Triton kernels, where `ours` are
            the CUDA ones; the other `triton_...` likewise, over torch.
        no_triton: why they could not be measured.
    """

    operator: str
    family: str
    case: str
    dtype: str
    layout: str
    mode: str
    threads: int
    ours_seconds: float
    torch_seconds: float
    compiled_seconds: float | None
    speedup: float
    compiled_speedup: float | None
    ours_spread: float
    torch_spread: float
    compiled_spread: float | None
    not_compiled: str
    ours_kept: int | None
    torch_kept: int | None
    outputs: int | None
    limited_by: str
    rate: float
    of_limit: float
    ours_error: float | None
    torch_error: float | None
    error: float | None
    triton_seconds: float | None = None
    triton_speedup: float | None = None
    triton_spread: float | None = None
    triton_error: float | None = None
    no_triton: str = ""


def measure(
    case: Case,
    mode: str,
    compiled: Callable[..., Tensor] | None = None,
    not_compiled: str = "torch.compile was not asked for",
    triton: bool = False,
) -> Row:
    with tf32_allowed(case.tf32):
        return _measure(case, mode, compiled, not_compiled, triton)


def _measure(
    case: Case,
    mode: str,
    compiled: Callable[..., Tensor] | None,
    not_compiled: str,
    triton: bool,
) -> Row:
    triton_error, no_triton = _try_triton(case, mode) if triton else (None, "")
    clocks = _clocks(case, mode, compiled, triton and not no_triton)
    # A GPU that only the wall clock watches has to be kept busy for longer than it takes to start.
    seconds = 0.05 if on_gpu() and case.python_counts else 0.01
    times = _times_in_turns(clocks, seconds)
    medians = {side: statistics.median(of_side) for side, of_side in times.items()}
    spreads = {side: _spread(of_side) for side, of_side in times.items()}
    ours, theirs = medians["ours"], medians["torch"]
    work = case.work(mode)
    least, limited_by = least_seconds(work, case.dtype, case.tf32)
    ours_kept, torch_kept, outputs = _kept(case, mode)
    ours_error, torch_error = _worst_errors(case, mode)
    return Row(
        operator=case.operator,
        family=case.family,
        case=case.name,
        dtype="TF32" if case.tf32 else short(case.dtype),
        layout=case.layout,
        mode=mode,
        threads=torch.get_num_threads(),
        ours_seconds=ours,
        torch_seconds=theirs,
        compiled_seconds=medians.get("compiled"),
        speedup=theirs / ours,
        compiled_speedup=medians["compiled"] / ours if compiled else None,
        ours_spread=spreads["ours"],
        torch_spread=spreads["torch"],
        compiled_spread=spreads.get("compiled"),
        not_compiled="" if compiled else not_compiled,
        ours_kept=ours_kept,
        torch_kept=torch_kept,
        outputs=outputs,
        limited_by=limited_by,
        rate=getattr(work, limited_by) / ours,
        of_limit=least / ours,
        ours_error=ours_error,
        torch_error=torch_error,
        error=ours_error / torch_error if torch_error else None,
        triton_seconds=medians.get("triton"),
        triton_speedup=theirs / medians["triton"] if "triton" in medians else None,
        triton_spread=spreads.get("triton"),
        triton_error=triton_error,
        no_triton=no_triton,
    )


def _try_triton(case: Case, mode: str) -> tuple[float | None, str]:
    """The error of the Triton kernels, in multiples of torch's; and why they cannot be measured."""
    try:
        with d2lops.backend("triton"):
            ours, theirs = _worst_errors(case, mode)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ours / theirs if theirs else None, ""


def _clocks(
    case: Case, mode: str, compiled: Callable[..., Tensor] | None, triton: bool
) -> dict[str, Clock]:
    """By name, of each side that is measured; all with the same tensors."""
    pool = [case.arguments(mode) for _ in range(POOL)]
    clock = gpu_clock if on_gpu() and not case.python_counts else wall_clock

    def clock_of(function: Callable[..., Tensor]) -> Clock:
        return clock(call, [(function, arguments) for arguments in pool])

    clocks = {"ours": clock_of(case.ours), "torch": clock_of(case.theirs)}
    if triton:
        clocks["triton"] = _with_triton(clock_of(case.ours))
    if compiled:
        clocks["compiled"] = clock_of(compiled)
    return clocks


def _with_triton(clock: Clock) -> Clock:
    def seconds(calls: int) -> float:
        with d2lops.backend("triton"):
            return clock(calls)

    return seconds


def call(function: Callable[..., Tensor], arguments: Arguments) -> tuple[Tensor, ...]:
    """The output and, if there is a gradient to enter backward, the gradients of all inputs."""
    output = function(*arguments.inputs)
    if arguments.gradient is None:
        return (output,)
    return output, *torch.autograd.grad(output, arguments.inputs, arguments.gradient)


def _times_in_turns(clocks: dict[str, Clock], seconds: float) -> dict[str, list[float]]:
    """Each side's seconds per call in each round of that length; who is first goes round."""
    calls = {side: calls_for(clock, seconds) for side, clock in clocks.items()}
    times: dict[str, list[float]] = {side: [] for side in clocks}
    turns = deque(clocks)
    for _ in range(ROUNDS):
        for side in turns:
            times[side].append(clocks[side](calls[side]))
        turns.rotate(-1)
    return times


def _spread(times: list[float]) -> float:
    lower, middle, upper = statistics.quantiles(times, n=4)
    return (upper - lower) / middle


def _kept(case: Case, mode: str) -> tuple[int | None, int | None, int | None]:
    """Bytes that wait for backward, ours and torch's, and the output's elements."""
    if mode == FORWARD:
        return None, None, None
    inputs = case.arguments(mode).inputs
    (ours, outputs), (theirs, _) = (kept_bytes(forward, inputs) for forward in case.forwards())
    return ours, theirs, outputs


def _worst_errors(case: Case, mode: str) -> tuple[float | None, float | None]:
    """Of ours and of torch's output, or of those gradients in which ours compares worst."""
    ours, theirs, exact, arguments = case.comparison(mode)
    try:
        pairs = list(
            zip(
                _errors(ours, exact, arguments, case.eps),
                _errors(theirs, exact, arguments, case.eps),
                strict=True,
            )
        )
    except AssertionError as error:
        raise AssertionError(f"{case.operator}, {case.name}: {error}") from None
    if case.dtype == torch.float64:
        return None, None
    of_interest = pairs[:1] if arguments.gradient is None else pairs[1:]
    return max(of_interest, key=lambda pair: pair[0] / max(pair[1], 1e-300))


def _errors(
    function: Callable[..., Tensor],
    exact: Callable[[Tensor], Callable[..., Tensor]],
    arguments: Arguments,
    eps: float,
) -> list[float]:
    """Largest error of the output and of each gradient; raises where it is more than rounding."""
    _poison(function, arguments)
    results = call(function, arguments)
    with _without_search():
        exact_results = call(exact(results[0]), _in_float64(arguments))
    errors = []
    for result, right in zip(results, exact_results, strict=True):
        difference = result.detach().double() - right.detach()
        rounding = eps**0.5  # half of the digits are right
        if not difference.norm() <= rounding * right.norm():
            raise AssertionError("a result is wrong")
        errors.append(difference.abs().max().item())
    return errors


def _poison(function: Callable[..., Tensor], arguments: Arguments) -> None:
    """Leaves NaN in memory of the size of the results, which the next ones then get."""
    results = call(function, arguments)
    _ = [torch.full_like(x.detach(), math.nan) for x in (*results, *results)]


@contextlib.contextmanager
def _without_search() -> Iterator[None]:
    """cuDNN's search for the fastest convolution takes seconds in float64, and this one is all."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _in_float64(arguments: Arguments) -> Arguments:
    if arguments.gradient is None:
        return Arguments(tuple(x.double() for x in arguments.inputs))
    inputs = tuple(x.detach().double().requires_grad_() for x in arguments.inputs)
    return Arguments(inputs, arguments.gradient.double())
