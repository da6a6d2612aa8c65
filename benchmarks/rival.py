"""The built-in operator as `torch.compile` makes it, compiled before any clock starts."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.measure import call

# A worker pool would still run while others are timed.
torch._inductor.config.compile_threads = 1
PATIENCE = 300  # seconds


def compiled(case: Case, mode: str) -> tuple[Callable[..., Tensor] | None, str]:
    """The compiled function; or none, and the reason."""
    torch._dynamo.reset()  # forgets what was compiled for other cases, and their networks
    function = case.compiled()
    try:
        with _limit(PATIENCE):
            call(function, case.arguments(mode))
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return function, ""


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"compilation took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
