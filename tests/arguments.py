"""Bad arguments of a layer, and how they must be refused."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from tests.device import on_cpu


def assert_refused_as_by_torch(
    ours: Callable, theirs: Callable, message: str, *arguments: Any, **named: Any
) -> pytest.ExceptionInfo:
    """Both raise on the arguments, the same type; ours says `message`."""
    with pytest.raises((RuntimeError, TypeError)) as expected:
        on_cpu(theirs)(*arguments, **named)
    with pytest.raises(expected.type, match=message) as raised:
        ours(*arguments, **named)
    return raised


def without_kernels(x: Tensor, weight: Tensor, bias: Tensor) -> list[tuple[Sequence[Tensor], str]]:
    """Tensors of a layer that torch may take and d2lops has no kernels for, and the messages."""
    return [
        ((x.long(), weight.long()), r"input has dtype torch\.int64; allowed: float32"),
        ((x.cfloat(), weight.cfloat()), r"input has dtype torch\.complex64; allowed"),
        ((x.to_sparse(), weight), r"input has layout torch\.sparse_coo; allowed"),
        ((x, weight.to_sparse()), r"weight has layout torch\.sparse_coo; allowed"),
        ((x, weight, bias.to_sparse()), r"bias has layout torch\.sparse_coo; allowed"),
        ((x.cpu().to_mkldnn(), weight), r"input has layout torch\._mkldnn; allowed"),
    ]


def assert_on_one_device(layer: Callable, *tensors: Tensor) -> None:
    """Each tensor but the first is refused on another device than the first's."""
    for which in range(1, len(tensors)):
        moved = [t.to("meta") if i == which else t for i, t in enumerate(tensors)]
        with pytest.raises(RuntimeError, match=f"is on meta, but input is on {tensors[0].device}"):
            layer(*moved)
