"""The batching rules of raw operators: how ``torch.func.vmap`` computes a batch of calls at once.

A batch is folded into a dimension that the kernels have. Where the examples share their weight,
that is the batch of images or rows. Where they differ in nothing but the weight, it is the output
channels. Where each has both to itself, it is the groups: so the gradients of a weight for all
examples one by one are one call of a kernel. A product of matrices has no groups, but is a
cross-correlation with 1 x 1 kernels, which does.

A rule is given the raw operators of the backend, the size of the batch, where each argument has its
batch dimension (`dims`, None where it has none), and the arguments. It returns the outputs and
where they have it. torch asks for it by `d2lops.backends`, whichever the backend is.
"""

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Batched = tuple[Any, Any]  # outputs, and their batch dimensions


def batched(raw: SimpleNamespace, name: str, info: Any, dims: tuple, *arguments: Any) -> Batched:
    """What `torch.library.register_vmap` wants of the raw operator `name`."""
    if info.batch_size == 0:
        return _no_examples(getattr(raw, name), dims, arguments), 0
    return RULES[name](raw, info.batch_size, dims, *arguments)


def _no_examples(operator: Callable, dims: tuple, arguments: tuple) -> Any:
    """No outputs, of the sizes that they would have."""
    device = next(x.device for x in arguments if isinstance(x, Tensor))
    one = [
        x.new_empty(_without(x.shape, dim), device="meta") if isinstance(x, Tensor) else x
        for x, dim in zip(arguments, dims, strict=True)
    ]
    return tree_map_only(
        Tensor, lambda y: y.new_empty((0, *y.shape), device=device), operator(*one)
    )


def _without(shape: torch.Size, dim: int | None) -> Sequence[int]:
    return shape if dim is None else shape[:dim] + shape[dim + 1 :]


# Folding, and back.


def _batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _fold(x: Tensor | None, dim: int | None, size: int, into: int) -> Tensor | None:
    """One example after the other along dimension `into`."""
    if x is None:
        return None
    return _batch_first(x, dim, size).movedim(0, into).flatten(into, into + 1)


def _fold_outputs(
    x: Tensor | None, dim: int | None, size: int, into: int, groups: int
) -> Tensor | None:
    """The same with output channels, of which each group gets its share of every example."""
    if x is None:
        return None
    x = _batch_first(x, dim, size).unflatten(into + 1, (groups, -1))
    return x.movedim(0, into + 1).flatten(into, into + 2)


def _unfold(y: Tensor, size: int, folded: int) -> Batched:
    return y.unflatten(folded, (size, -1)), folded


def _unfold_outputs(y: Tensor, size: int, folded: int, groups: int) -> Batched:
    y = y.unflatten(folded, (groups, size, -1)).movedim(folded + 1, 0)
    return y.flatten(folded + 1, folded + 2), 0


# The rules.


def corr2d(
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    tf32: bool = False,
) -> Batched:
    x_dim, weight_dim, bias_dim = dims[:3]
    *steps, groups = window
    if weight_dim is None and bias_dim is None:
        x = _fold(x, x_dim, size, 0)
        return _unfold(raw.corr2d(x, weight, bias, window, relu, tf32), size, 0)
    if x_dim is None:
        weight = _fold_outputs(weight, weight_dim, size, 0, groups)
        bias = _fold_outputs(bias, bias_dim, size, 0, groups)
        y = raw.corr2d(x, weight, bias, window, relu, tf32)
        return _unfold_outputs(y, size, 1, groups)
    x = _fold(x, x_dim, size, 1)
    weight, bias = _fold(weight, weight_dim, size, 0), _fold(bias, bias_dim, size, 0)
    y = raw.corr2d(x, weight, bias, [*steps, size * groups], relu, tf32)
    return _unfold(y, size, 1)


def corr2d_input_grad(
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
) -> Batched:
    g_dim, y_dim, weight_dim = dims[:3]
    *steps, groups = window
    into = 0 if weight_dim is None else 1
    g, y = _fold(g, g_dim, size, into), _fold(y, y_dim, size, into)
    if weight_dim is not None:
        weight, window = _fold(weight, weight_dim, size, 0), [*steps, size * groups]
    x = raw.corr2d_input_grad(g, y, weight, height, width, window, tf32)
    return _unfold(x, size, into)


def corr2d_weight_grad(
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
) -> Batched:
    g_dim, y_dim, x_dim = dims[:3]
    *steps, groups = window
    if x_dim is None:
        g = _fold_outputs(g, g_dim, size, 1, groups)
        y = _fold_outputs(y, y_dim, size, 1, groups)
        weight = raw.corr2d_weight_grad(g, y, x, height, width, window, tf32)
        return _unfold_outputs(weight, size, 0, groups)
    g, y, x = _fold(g, g_dim, size, 1), _fold(y, y_dim, size, 1), _fold(x, x_dim, size, 1)
    window = [*steps, size * groups]
    return _unfold(raw.corr2d_weight_grad(g, y, x, height, width, window, tf32), size, 0)


def bias_grad(raw: SimpleNamespace, size: int, dims: tuple, g: Tensor, y: Tensor | None) -> Batched:
    g, y = _fold(g, dims[0], size, 1), _fold(y, dims[1], size, 1)
    return _unfold(raw.bias_grad(g, y), size, 0)


WINDOW_1X1 = [1, 1, 0, 0, 0, 0, 1, 1]  # stride, padding and dilation


def _images(x: Tensor | None) -> Tensor | None:
    """A matrix as images of one pixel."""
    return None if x is None else x.unflatten(1, (-1, 1, 1))


def linear(
    relu: bool,
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tf32: bool = False,
) -> Batched:
    x_dim, weight_dim, bias_dim = dims[:3]
    operator = raw.linear_relu if relu else raw.linear
    if weight_dim is None and bias_dim is None:
        return _unfold(operator(_fold(x, x_dim, size, 0), weight, bias, tf32), size, 0)
    weight, bias = _fold(weight, weight_dim, size, 0), _fold(bias, bias_dim, size, 0)
    if x_dim is None:
        return _unfold(operator(x, weight, bias, tf32), size, 1)
    x = _images(_fold(x, x_dim, size, 1))
    y = raw.corr2d(x, _images(weight), bias, [*WINDOW_1X1, size], relu, tf32)
    return _unfold(y.flatten(1), size, 1)


def linear_input_grad(
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    tf32: bool = False,
) -> Batched:
    g_dim, y_dim, weight_dim = dims[:3]
    if weight_dim is None:
        g, y = _fold(g, g_dim, size, 0), _fold(y, y_dim, size, 0)
        return _unfold(raw.linear_input_grad(g, y, weight, tf32), size, 0)
    g, y = _images(_fold(g, g_dim, size, 1)), _images(_fold(y, y_dim, size, 1))
    weight = _images(_fold(weight, weight_dim, size, 0))
    x = raw.corr2d_input_grad(g, y, weight, 1, 1, [*WINDOW_1X1, size], tf32)
    return _unfold(x.flatten(1), size, 1)


def linear_weight_grad(
    raw: SimpleNamespace,
    size: int,
    dims: tuple,
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    tf32: bool = False,
) -> Batched:
    g_dim, y_dim, x_dim = dims[:3]
    g, y = _fold(g, g_dim, size, 1), _fold(y, y_dim, size, 1)
    if x_dim is None:
        return _unfold(raw.linear_weight_grad(g, y, x, tf32), size, 0)
    x = _images(_fold(x, x_dim, size, 1))
    g, y, window = _images(g), _images(y), [*WINDOW_1X1, size]
    weight = raw.corr2d_weight_grad(g, y, x, 1, 1, window, tf32)
    return _unfold(weight.flatten(1), size, 0)


def pool2d(name: str, raw: SimpleNamespace, size: int, dims: tuple, *arguments: Any) -> Batched:
    """Pooling and its adjoints know images only one by one, and so do their argmaxes."""
    folded = [
        _fold(x, dim, size, 0) if isinstance(x, Tensor) else x
        for x, dim in zip(arguments, dims, strict=True)
    ]
    outputs = getattr(raw, name)(*folded)
    return tree_map_only(Tensor, lambda y: y.unflatten(0, (size, -1)), outputs), 0


def one_by_one(name: str, raw: SimpleNamespace, size: int, dims: tuple, *arguments: Any) -> Batched:
    """A mask depends on an element's place within its example, and each may have its own seed."""
    outputs = [
        getattr(raw, name)(
            *[
                x if dim is None else x.select(dim, i)
                for x, dim in zip(arguments, dims, strict=True)
            ]
        )
        for i in range(size)
    ]
    return torch.stack(outputs), 0


POOLINGS = (
    "max_pool2d",
    "max_pool2d_gather",
    "max_pool2d_scatter",
    "max_pool2d_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_gather",
    "adaptive_max_pool2d_scatter",
    "adaptive_max_pool2d_indices",
    "avg_pool2d",
    "avg_pool2d_adjoint",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_adjoint",
)
RULES: dict[str, Callable[..., Batched]] = {
    "corr2d": corr2d,
    "corr2d_input_grad": corr2d_input_grad,
    "corr2d_weight_grad": corr2d_weight_grad,
    "bias_grad": bias_grad,
    "linear": functools.partial(linear, False),
    "linear_relu": functools.partial(linear, True),
    "linear_input_grad": linear_input_grad,
    "linear_weight_grad": linear_weight_grad,
    **{name: functools.partial(pool2d, name) for name in POOLINGS},
    **{name: functools.partial(one_by_one, name) for name in ("dropout", "fma_chain")},
}
