"""Dropout: limited by memory. torch draws a mask, then multiplies; ours computes it on the way."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Work, numel, own


def cases() -> list[Case]:
    return [
        _case((3000, 3000), p=0.5, quick=True),
        _case((128, 84), p=0.5, quick=True),
        _case((256, 4096), p=0.1),
        _case((16, 64, 56, 56), p=0.5, channels_last=True),
        _case((7, 1001), p=0.5),
        _case((1000, 1000), p=0.5, dtype=torch.bfloat16),
        _case((1000, 1000), p=0.5, dtype=torch.float16),
        _case((1000, 1000), p=0.5, dtype=torch.float64),
    ]


def _case(shape: tuple[int, ...], p: float, dtype: torch.dtype = torch.float32, **rest) -> Case:
    ours = own("dropout")
    once = Work(bytes=2 * numel(shape) * dtype.itemsize)
    return Case(
        operator="dropout",
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
