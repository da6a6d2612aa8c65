"""Linear and linear + ReLU (D2L 3 and 5.1): y = relu(x Wᵀ + b)."""

from typing import Any

from torch import Tensor

from d2lops.backends import kernels, shape_rule
from d2lops.ops import _autocast
from d2lops.ops._checks import check_like, check_mask, check_size, check_tensor, explanation
from d2lops.ops._function import Function, total
from d2lops.ops.bias_grad import BiasGrad, masked, product_tangent


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight and add the bias: ``x Wᵀ + b``.

    Same as ``torch.nn.functional.linear(input, weight, bias)``. D2L 3.1.

    Args:
        input: ``(*, K)``, any number of dimensions, any strides; float32, float64, bfloat16 or
            float16 (the 16-bit ones are summed in float32).
        weight: ``(N, K)`` or ``(K,)``.
        bias: ``(N,)``, or one number.

    Returns:
        ``(*, N)``, or ``(*)`` for a one-dimensional weight.

    Raises:
        TypeError: an argument that is no tensor.
        RuntimeError: sizes that do not fit; another dtype or device than the input's.
        NotImplementedError: a dtype, layout or device without kernels.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([5.0]))
        tensor([[16.]])
    """
    return _linear("linear", input, weight, bias, relu=False)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the transposed weight, add the bias and clamp at zero, in one kernel.

    Same as ``torch.nn.functional.relu(torch.nn.functional.linear(input, weight, bias))``. Neither
    the product before the ReLU nor, in backward, the masked gradient exists in memory. D2L 5.1.

    Arguments, result and errors are those of :func:`linear`.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.linear_relu(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [-3.0, -4.0]]))
        tensor([[11.,  0.]])
    """
    return _linear("linear_relu", input, weight, bias, relu=True)


def _linear(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    if _autocast.enabled():
        input, weight, bias = _autocast.cast(input, weight, bias)
    try:
        size = input.shape
        rows = input if len(size) == 2 else input.reshape(size[:-1].numel(), size[-1])
        matrix = weight if weight.dim() == 2 else weight.unsqueeze(0)
        if bias is not None and bias.numel() == 1:
            bias = bias.expand(matrix.shape[0])
        output = Linear.apply(rows, matrix, bias, relu)
        if rows is input and matrix is weight:
            return output
        return output.view(size[:-1] + weight.shape[:-1])
    except Exception:
        _explain(op, input, weight, bias)
        raise


def _check(op: str, input: object, weight: object, bias: object) -> None:
    """What torch would refuse, in words of its own."""
    check_tensor(op, "input", input)
    check_like(op, "weight", weight, input)
    if weight.dim() not in (1, 2) or input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"{op}(): expected input of size (*, K) and weight of size (N, K) or (K,), but got "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    outputs = weight.shape[:-1].numel()
    if bias is not None:
        check_like(op, "bias", bias, input)
        if bias.dim() > 1 or bias.numel() not in (1, outputs):
            raise RuntimeError(
                f"{op}(): bias must have one number or {outputs}, but has size {list(bias.shape)}"
            )


class Linear(Function):
    """(x, W, b) -> x Wᵀ + b, through a ReLU or not."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        raw = kernels(x)
        return (raw.linear_relu if relu else raw.linear)(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, relu = inputs
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            x if needs_weight else None, weight if needs_x else None, output if relu else None
        )

    @staticmethod
    def tangent(
        ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, _: None
    ) -> Tensor:
        x, weight, y = ctx.saved_tensors
        y_t = total(
            None if x_t is None else Linear.apply(x_t, weight, None, False),
            None if weight_t is None else Linear.apply(x, weight_t, None, False),
            None if bias_t is None else bias_t.expand(x.shape[0], -1),
        )
        return masked(y_t, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            LinearInputGrad.apply(g, y, weight) if needs_x else None,
            LinearWeightGrad.apply(g, y, x) if needs_weight else None,
            BiasGrad.apply(g, y) if needs_bias else None,
            None,
        )


class LinearInputGrad(Function):
    """(g, W) -> (g masked by y) W."""

    @staticmethod
    def forward(g: Tensor, y: Tensor | None, weight: Tensor) -> Tensor:
        return kernels(g).linear_input_grad(g, y, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def tangent(ctx: Any, g_t: Tensor | None, _: Tensor | None, weight_t: Tensor | None) -> Tensor:
        g, y, weight = ctx.saved_tensors
        return product_tangent(LinearInputGrad, (g, g_t), y, (weight, weight_t))

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        g, y, weight = ctx.saved_tensors
        needs_g, _, needs_weight = ctx.needs_input_grad
        return (
            masked(Linear.apply(u, weight, None, False), y) if needs_g else None,
            None,
            LinearWeightGrad.apply(g, y, u) if needs_weight else None,
        )


class LinearWeightGrad(Function):
    """(g, x) -> (g masked by y)ᵀ x."""

    @staticmethod
    def forward(g: Tensor, y: Tensor | None, x: Tensor) -> Tensor:
        return kernels(g).linear_weight_grad(g, y, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def tangent(ctx: Any, g_t: Tensor | None, _: Tensor | None, x_t: Tensor | None) -> Tensor:
        g, y, x = ctx.saved_tensors
        return product_tangent(LinearWeightGrad, (g, g_t), y, (x, x_t))

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        g, y, x = ctx.saved_tensors
        needs_g, _, needs_x = ctx.needs_input_grad
        return (
            masked(Linear.apply(x, u, None, False), y) if needs_g else None,
            None,
            LinearInputGrad.apply(g, y, u) if needs_x else None,
        )


_explain = explanation(_check)


def _empty_product(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(op, x, weight, bias)
    _check_matrices(op, x=x, weight=weight)
    if bias is not None:
        check_size(op, "bias", bias, weight.shape[:1])
    return x.new_empty(x.size(0), weight.size(0))


def _check_matrices(op: str, **matrices: Tensor) -> None:
    for name, matrix in matrices.items():
        if matrix.dim() != 2:
            raise RuntimeError(f"{op}(): {name} must have 2 dimensions, but has {matrix.dim()}")


def _check_grad(op: str, g: Tensor, y: Tensor | None, name: str, other: Tensor) -> None:
    check_tensor(op, "g", g)
    check_like(op, name, other, g)
    check_mask(op, g, y)
    _check_matrices(op, **{"g": g, name: other})


@shape_rule("linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False) -> Tensor:
    return _empty_product("linear", x, weight, bias)


@shape_rule("linear_relu")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False) -> Tensor:
    return _empty_product("linear_relu", x, weight, bias)


@shape_rule("linear_input_grad")
def _(g: Tensor, y: Tensor | None, weight: Tensor, tf32: bool = False) -> Tensor:
    op = "linear_input_grad"
    _check_grad(op, g, y, "weight", weight)
    check_size(op, "weight", weight, (g.size(1), weight.size(1)))
    return g.new_empty(g.size(0), weight.size(1))


@shape_rule("linear_weight_grad")
def _(g: Tensor, y: Tensor | None, x: Tensor, tf32: bool = False) -> Tensor:
    op = "linear_weight_grad"
    _check_grad(op, g, y, "x", x)
    check_size(op, "x", x, (g.size(0), x.size(1)))
    return g.new_empty(g.size(1), x.size(1))
