"""Dimensions of two tensors of one size, as few as tell where everything is."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Dim(NamedTuple):
    size: int
    x_stride: int
    y_stride: int


def collapsed(x: Tensor, y: Tensor, dims: Iterable[int]) -> list[Dim]:
    """The fewest that describe these ones, in their order: neighbours merged, 1s gone."""
    merged: list[Dim] = []
    for d in dims:
        size, x_stride, y_stride = x.size(d), x.stride(d), y.stride(d)
        if size == 1:
            continue
        if merged and merged[-1][1:] == (x_stride * size, y_stride * size):
            size *= merged.pop().size
        merged.append(Dim(size, x_stride, y_stride))
    return merged or [Dim(1, 1, 1)]
