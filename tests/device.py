"""Where the tests run: `D2LOPS_TEST_DEVICE=cuda pytest` runs them on a GPU.

With `D2LOPS_BACKEND=triton`, too, they test the Triton kernels; with `TRITON_INTERPRET=1` instead
of a GPU, in Triton's interpreter.

`conftest.py` makes it torch's default device, so that tests name none, but for these: random
numbers are drawn on the CPU, which makes them the same everywhere, and moved.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

DEVICE = torch.device(os.environ.get("D2LOPS_TEST_DEVICE", "cpu"))
BACKEND = os.environ.get("D2LOPS_BACKEND", "auto")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The raw operators of the backend that is tested.
raw = torch.ops.d2lops_triton if BACKEND == "triton" else torch.ops.d2lops
cpu_only = pytest.mark.skipif(DEVICE.type != "cpu", reason="is about the CPU alone")


def normal(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, device="cpu").to(DEVICE)


def integers(least: int, most: int, *size: int, seed: int = 0) -> Tensor:
    """From `least` to `most`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(least, most + 1, size, generator=generator, device="cpu").to(DEVICE)


def permutation(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device="cpu").to(DEVICE)


def on_cpu(function: Callable) -> Callable:
    """`function`, computed on the CPU whatever the tests' device; gradients flow through.

    For torch's answers where those of its GPU libraries may differ: to NaN, bad arguments, empty
    tensors.
    """
    if DEVICE.type == "cpu":
        return function

    @functools.wraps(function)
    def moved(*arguments: Any, **named: Any) -> Any:
        with torch.device("cpu"):
            arguments, named = tree_map_only(Tensor, Tensor.cpu, (arguments, named))
            result = function(*arguments, **named)
        return tree_map_only(Tensor, lambda x: x.to(DEVICE), result)

    return moved
