"""A chain of multiply-adds, by which the benchmark suite measures the arithmetic units."""

import torch
from torch import Tensor

from d2lops.backends import kernels, shape_rule
from d2lops.ops._checks import check_tensor


def fma_chain(x: Tensor, rounds: int) -> Tensor:
    """Replace each element by ``(x + 1) / 2``, `rounds` times: ``2 * rounds`` flops an element.

    No operator of the book, and of no use but to be timed: the elements stay in registers, so a
    call with many rounds does nothing but multiply and add. 16-bit dtypes are computed in float32.
    Same as ``1 + (x - 1) / 2**rounds``; not differentiable.

    Args:
        x: contiguous, any shape; float32, float64, bfloat16 or float16.
        rounds: how often, at least 0.

    Returns:
        A tensor like `x`.

    Raises:
        TypeError: x is no tensor.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: x is not contiguous, or rounds is negative.

    Example:
        >>> import torch
        >>> from d2lops.ops.fma_chain import fma_chain
        >>> fma_chain(torch.tensor([9.0, 1.0]), 3)
        tensor([2., 1.])
    """
    _check(x, rounds)
    return kernels(x).fma_chain(x, rounds)


def _check(x: object, rounds: int) -> None:
    check_tensor("fma_chain", "x", x)
    if not x.is_contiguous():
        raise RuntimeError(f"fma_chain(): x must be contiguous, but has strides {x.stride()}")
    if rounds < 0:
        raise RuntimeError(f"fma_chain(): rounds must be at least 0, but got {rounds}")


@shape_rule("fma_chain")
def _(x: Tensor, rounds: int) -> Tensor:
    _check(x, rounds)
    return torch.empty_like(x)
