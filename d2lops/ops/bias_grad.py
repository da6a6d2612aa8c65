"""What a bias's gradient and a ReLU's mask have in common to corr2d and linear."""

from typing import Any

import torch
from torch import Tensor

from d2lops.backends import kernels, shape_rule
from d2lops.ops._checks import check_mask, check_tensor
from d2lops.ops._function import Function, total


def masked(g: Tensor, y: Tensor | None) -> Tensor:
    """`g` where y, the output of a ReLU, is positive (or NaN); all of it if there was no ReLU.

    Only second derivatives need it: the kernels of the first mask while they read.
    """
    return g if y is None else torch.where(y <= 0, 0, g)


def product_tangent(
    function: type[Function],
    first: tuple[Tensor, Tensor | None],
    y: Tensor | None,
    second: tuple[Tensor, Tensor | None],
    *rest: Any,
) -> Tensor:
    """Of a function of (g, y, other) that is linear in g and in other: each with its tangent."""
    (g, g_t), (other, other_t) = first, second
    if g_t is None and other_t is None:  # y has one, which plays no part
        g_t = torch.zeros_like(g)
    return total(
        None if g_t is None else function.apply(g_t, y, other, *rest),
        None if other_t is None else function.apply(g, y, other_t, *rest),
    )


class BiasGrad(Function):
    """g -> the sum of the masked g over every dimension but the second."""

    @staticmethod
    def forward(g: Tensor, y: Tensor | None) -> Tensor:
        return kernels(g).bias_grad(g, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        g, y = inputs
        ctx.shape = g.shape
        ctx.save_for_backward(y)

    @staticmethod
    def tangent(ctx: Any, g_t: Tensor | None, _: Tensor | None) -> Tensor:
        (y,) = ctx.saved_tensors
        if g_t is None:  # y has one, which plays no part
            g_t = torch.zeros_like(y)
        return BiasGrad.apply(g_t, y)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        (y,) = ctx.saved_tensors
        columns = u.reshape(-1, *[1] * (len(ctx.shape) - 2))
        return masked(columns.expand(ctx.shape), y), None


@shape_rule("bias_grad")
def _(g: Tensor, y: Tensor | None) -> Tensor:
    check_tensor("bias_grad", "g", g)
    check_mask("bias_grad", g, y)
    if g.dim() not in (2, 4):
        raise RuntimeError(f"bias_grad(): g must have 2 or 4 dimensions, but has {g.dim()}")
    return g.new_empty(g.size(1))
