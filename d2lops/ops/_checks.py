"""Argument checks that the operators share. Each raises the exception type that torch raises.

To check all arguments of a small layer takes longer than its kernel. So the functions only bring
them into canonical form; raw operators refuse what is not, and only then is the cause looked for.
The rules that tell the compiler sizes, where no raw operator runs, check for themselves.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LIMIT = 2**31  # windows and their steps stay below it
_DTYPES = frozenset(DTYPES)


def explanation(check: Callable[..., None]) -> Callable[..., None]:
    """Decorates checks that are made after a failure: what they raise is raised in its place."""

    @functools.wraps(check)
    def explain(*arguments: object) -> None:
        try:
            check(*arguments)
        except Exception as error:
            raise error from None

    return explain


def check_tensor(op: str, name: str, x: object) -> None:
    """`x` must be a dense tensor of one of the floating-point dtypes that have kernels."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}(): argument '{name}' must be Tensor, not {type(x).__name__}")
    if x.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise NotImplementedError(f"{op}(): {name} has dtype {x.dtype}; allowed: {allowed}")
    if x.layout is not torch.strided:
        raise NotImplementedError(f"{op}(): {name} has layout {x.layout}; allowed: torch.strided")


def check_like(op: str, name: str, x: object, like: Tensor) -> None:
    """`x` must be a tensor of the dtype and on the device of the operator's input."""
    check_tensor(op, name, x)
    if x.dtype != like.dtype:
        raise RuntimeError(
            f"{op}(): {name} has dtype {x.dtype}, but input has {like.dtype}; allowed: the same"
        )
    if x.device != like.device:
        raise RuntimeError(
            f"{op}(): {name} is on {x.device}, but input is on {like.device}; allowed: the same"
        )


def check_size(op: str, name: str, x: Tensor, size: Sequence[int]) -> None:
    """`x` must have the size that an operator's other arguments give it."""
    if x.shape != torch.Size(size):
        raise RuntimeError(f"{op}(): {name} must have size {list(size)}, but has {list(x.shape)}")


def check_mask(op: str, g: Tensor, y: Tensor | None) -> None:
    """`y`, the output of a ReLU that masks `g`, must look like it."""
    if y is not None:
        check_like(op, "y", y, g)
        check_size(op, "y", y, g.shape)


def batched(op: str, x: Tensor) -> Tensor:
    """`x` as (N, C, H, W), whether it has a batch dimension or not."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(0)
    raise RuntimeError(
        f"{op}(): expected 3D (unbatched) or 4D (batched) input, but input has size {list(x.shape)}"
    )


def pair(op: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """`value` as (height, width), each at least `least`."""
    if type(value) is int and least <= value < LIMIT:  # what most calls pass, without the detours
        return value, value
    if type(value) is tuple and len(value) == 2:
        height, width = value
        if type(height) is type(width) is int and least <= height < LIMIT > width >= least:
            return value
    both = numbers(op, name, value, (1, 2))
    both = both * 2 if len(both) == 1 else both
    check_least(op, name, both, least)
    return both


def padding4(op: str, name: str, value: int | Sequence[int]) -> tuple[int, int, int, int]:
    """`value` as (top, bottom, left, right): one number, (height, width), or all four."""
    if type(value) is int or (type(value) is tuple and len(value) == 2):
        height, width = pair(op, name, value, 0)
        return height, height, width, width
    given = numbers(op, name, value, (1, 2, 4))
    check_least(op, name, given, 0)
    if len(given) == 4:
        return given
    height, width = given * 2 if len(given) == 1 else given
    return height, height, width, width


def numbers(
    op: str, name: str, value: int | Sequence[int], lengths: tuple[int, ...]
) -> tuple[int, ...]:
    """`value` as a tuple of integers, whose length is one of `lengths`."""
    given = tuple(value) if isinstance(value, Sequence | torch.Size) else (value,)
    try:
        given = tuple([integer(number) for number in given])
    except TypeError:
        raise TypeError(f"{op}(): {name} must be int or tuple of ints, but got {value!r}") from None
    if len(given) not in lengths:
        allowed = " or ".join(map(str, lengths))
        raise RuntimeError(f"{op}(): {name} must have {allowed} numbers, but got {value!r}")
    return given


def integer(value: object) -> int:
    """`value` if it is an int, or the one that a NumPy integer or a tensor holds; never a bool."""
    if isinstance(value, bool):
        raise TypeError
    return value if isinstance(value, int | torch.SymInt) else operator.index(value)


def check_least(op: str, name: str, values: tuple[int, ...], least: int) -> None:
    for value in values:
        if value < least or value >= LIMIT:
            raise RuntimeError(
                f"{op}(): {name} must be at least {least} and below 2^31, but got {values}"
            )
