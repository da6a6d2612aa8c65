"""The number of threads, and what must not depend on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bits(x: Tensor) -> Tensor:
    """What torch.equal can compare NaN by NaN."""
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8)
