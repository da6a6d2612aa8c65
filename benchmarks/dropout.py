"""Dropout: limited by memory. torch draws a mask, then multiplies; ours computes it on the way."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Work, numel, of_family, own


def cases() -> list[Case]:
    return [
        _case((1, 16, 12, 12), p=0.5, tiny=True, quick=True),
        large(),
        _case((3000, 3000), p=0.1),
        _case((128, 84), p=0.5, quick=True),
        _case((256, 256), p=0.5),  # the book's perceptron
        _case((128, 4096), p=0.5),  # AlexNet
        _case((256, 4096), p=0.1),
        _case((16, 384, 5, 5), p=0.5),  # NiN
        _case((16, 64, 56, 56), p=0.5, channels_last=True),
        _case((7, 1001), p=0.5),
        _case((1000, 999), p=0.9),
        _case((1000, 1000), p=0.5, dtype=torch.bfloat16),
        _case((1000, 1000), p=0.5, dtype=torch.float16),
        _case((1000, 1000), p=0.5, dtype=torch.float64),
        _case((64, 84), p=0.2, dtype=torch.bfloat16),
    ]


def cuda_cases() -> list[Case]:
    hundred_million, bfloat16 = (10_000, 10_000), torch.bfloat16
    return [
        _case((1, 16, 12, 12), p=0.5, tiny=True, quick=True),
        *of_family(
            "dropout",
            _case(hundred_million, p=0.5, quick=True),
            _case(hundred_million, p=0.5, dtype=bfloat16, quick=True),
            _case(hundred_million, p=0.1, dtype=bfloat16),
            _case((64, 64, 112, 112), p=0.5, dtype=bfloat16, channels_last=True),
            _case((4096, 4096), p=0.1),
            _case((1000, 999), p=0.9),
        ),
    ]


def large() -> Case:
    """So large that page faults, where they happen, take more time than all else."""
    return _case((3000, 3000), p=0.5, quick=True)


def _case(
    shape: tuple[int, ...],
    p: float,
    dtype: torch.dtype = torch.float32,
    tiny: bool = False,
    **rest: bool,
) -> Case:
    ours = own("dropout")
    once = Work(bytes=2 * numel(shape) * dtype.itemsize)
    return Case(
        operator="dropout",
        family="tiny" if tiny else "dropout",
        name=f"{'×'.join(map(str, shape))}, p={p}",
        shapes=(shape,),
        ours=lambda x: ours(x, p),
        theirs=lambda x: F.dropout(x, p),
        forward=once,
        backward=once,
        dtype=dtype,
        exact=lambda output: _masked(output, p),
        **rest,
    )


def _masked(output: Tensor, p: float) -> Callable[[Tensor], Tensor]:
    """x·keep/(1−p) with the mask that the output shows, which must keep 1−p of all elements."""
    keep = output != 0
    kept, n = keep.sum().item(), keep.numel()
    if abs(kept - n * (1 - p)) > 6 * (n * p * (1 - p)) ** 0.5:
        raise AssertionError(f"dropout with p={p} kept {kept} of {n} elements")
    return lambda x: x * keep / (1 - p)
