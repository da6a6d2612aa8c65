"""Pooling (D2L 7.5): the maximum or the average of each window of an image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2lops.backends import kernels
from d2lops.ops._checks import batched, check_tensor, explanation, padding4, pair
from d2lops.ops._function import Function
from d2lops.ops._layout import laid_out
from d2lops.ops._pool2d_rules import check_divisor, check_window, image

Pair = tuple[int, int]


def max_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of an image. D2L 7.5.

    Same as ``torch.nn.functional.max_pool2d`` with the same arguments, but for integer tensors,
    which have no kernels here. A NaN in a window wins; of equal elements, the first.

    Args:
        input: (N, C, H, W) or (C, H, W), any strides; float32, float64, bfloat16 or float16.
        kernel_size: height and width of the window, or one number for both.
        stride: steps between windows, likewise; `kernel_size` if absent.
        padding: how far windows may begin outside of the image, at most half a window: one number,
            (height, width), or (top, bottom, left, right).
        dilation: steps between a window's elements.
        ceil_mode: whether the last windows may stick out beyond the padding.
        return_indices: also return where each maximum is: ``h * W + w``, int64.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out), channels_last if the input is. With
        ``return_indices``, the maxima and the indices.

    Raises:
        TypeError: the input is no tensor, or an argument is not made of ints.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: a size that is empty, an argument out of range, or windows larger than the
            image.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.max_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """
    op = "max_pool2d"
    try:
        window = _window(op, kernel_size, stride, padding) + pair(op, "dilation", dilation, 1)
        return _max_pool(op, input, (window,), (ceil_mode,), return_indices)
    except Exception:
        _explain_sliding(op, input, kernel_size, stride, padding, dilation, ceil_mode)
        raise


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of an image, the windows sharing it out evenly. D2L 7.5.

    Same as ``torch.nn.functional.adaptive_max_pool2d`` with the same arguments. Output ``(i, j)``
    is the maximum of rows ``i * H // H_out`` to ``ceil((i + 1) * H / H_out) - 1``, and columns
    likewise.

    Args:
        input: (N, C, H, W) or (C, H, W), any strides; float32, float64, bfloat16 or float16.
        output_size: (H_out, W_out), or one number for both; None for the size of the input.
        return_indices: also return where each maximum is: ``h * W + w``, int64.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out), channels_last if the input is. With
        ``return_indices``, the maxima and the indices.

    Raises:
        TypeError: the input is no tensor, or the output size is not made of ints.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: an input size that is empty, or an output size out of range.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.adaptive_max_pool2d(torch.arange(12.0).reshape(1, 3, 4), (1, None))
        tensor([[[ 8.,  9., 10., 11.]]])
    """
    op = "adaptive_max_pool2d"
    try:
        return _max_pool(op, input, (), _output_size(op, input, output_size), return_indices)
    except Exception:
        _explain_adaptive(op, input, output_size)
        raise


def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The average of each window of an image. D2L 7.5.

    Same as ``torch.nn.functional.avg_pool2d`` with the same arguments.

    Args:
        input: (N, C, H, W) or (C, H, W), any strides; float32, float64, bfloat16 or float16.
        kernel_size: height and width of the window, or one number for both.
        stride: steps between windows, likewise; `kernel_size` if absent.
        padding: how far windows may begin outside of the image, at most half a window: one number,
            (height, width), or (top, bottom, left, right).
        ceil_mode: whether the last windows may stick out beyond the padding.
        count_include_pad: whether the padding counts as zeros, or not at all.
        divisor_override: what to divide each window's sum by.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out), channels_last if the input is.

    Raises:
        TypeError: the input is no tensor, or an argument is not made of ints.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: a size that is empty, an argument out of range, or windows larger than the
            image.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.avg_pool2d(torch.arange(16.0).reshape(1, 4, 4), 2)
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """
    op = "avg_pool2d"
    try:
        if divisor_override is not None:
            check_divisor(divisor_override)
        window = _window(op, kernel_size, stride, padding)
        return _avg_pool(op, input, (window, count_include_pad, divisor_override), (ceil_mode,))
    except Exception:
        _explain_sliding(op, input, kernel_size, stride, padding, 1, ceil_mode)
        raise


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The average of each window of an image, the windows sharing it out evenly. D2L 7.5.

    Same as ``torch.nn.functional.adaptive_avg_pool2d`` with the same arguments. Output ``(i, j)``
    is the average of rows ``i * H // H_out`` to ``ceil((i + 1) * H / H_out) - 1``, and columns
    likewise.

    Args:
        input: (N, C, H, W) or (C, H, W), any strides; float32, float64, bfloat16 or float16.
        output_size: (H_out, W_out), or one number for both; None for the size of the input.

    Returns:
        (N, C, H_out, W_out) or (C, H_out, W_out), channels_last if the input is.

    Raises:
        TypeError: the input is no tensor, or the output size is not made of ints.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: an input height or width that is empty, or an output size out of range.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.adaptive_avg_pool2d(torch.arange(12.0).reshape(1, 3, 4), (1, 2))
        tensor([[[4.5000, 6.5000]]])
    """
    op = "adaptive_avg_pool2d"
    try:
        return _avg_pool(op, input, (), _output_size(op, input, output_size))
    except Exception:
        _explain_adaptive(op, input, output_size)
        raise


def pool2d(X: Tensor, pool_size: int | Sequence[int], mode: str = "max") -> Tensor:  # noqa: N803
    """The book's pooling: every window of an image, one step apart, without padding. D2L 7.5.

    Same as ``torch.nn.functional.max_pool2d(X[None], pool_size, stride=1)[0]``, or ``avg_pool2d``.

    Args:
        X: (H, W), (C, H, W) or (N, C, H, W), any strides; float32, float64, bfloat16 or float16.
        pool_size: height and width of the window, or one number for both.
        mode: ``"max"`` or ``"avg"``.

    Returns:
        (..., H - p_h + 1, W - p_w + 1).

    Raises:
        ValueError: another mode.
        TypeError, NotImplementedError, RuntimeError: as for `max_pool2d`.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.pool2d(torch.arange(9.0).reshape(3, 3), (2, 2))
        tensor([[4., 5.],
                [7., 8.]])
    """
    if mode not in ("max", "avg"):
        raise ValueError(f"pool2d(): mode must be 'max' or 'avg', but got {mode!r}")
    check_tensor("pool2d", "X", X)
    pool = max_pool2d if mode == "max" else avg_pool2d
    if X.dim() == 2:
        return pool(X.unsqueeze(0), pool_size, stride=1).squeeze(0)
    return pool(X, pool_size, stride=1)


# Arguments in canonical form, and why raw operators refuse them.


def _like(input: Tensor, y: Tensor) -> Tensor:
    """An output without a batch dimension, if the input has none."""
    return y if input.dim() == 4 else y.squeeze(0)


def _window(
    op: str,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
) -> tuple[int, ...]:
    """Kernel, stride and padding, as the raw operators take them; maxima have dilation, too."""
    kernel = pair(op, "kernel_size", kernel_size, 1)
    step = kernel if stride is None or stride == [] else pair(op, "stride", stride, 1)
    return kernel + step + padding4(op, "padding", padding)


def _output_size(op: str, input: Tensor, size: int | Sequence[int | None] | None) -> Pair:
    if type(size) is not int and isinstance(size, Sequence):
        if len(size) != 2:
            raise RuntimeError(f"{op}(): output_size must have 2 numbers, but got {size!r}")
        size = tuple([input.shape[i - 2] if size[i] is None else size[i] for i in (0, 1)])
    return pair(op, "output_size", size, 0)


@explanation
def _explain_sliding(
    op: str,
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> None:
    x = image(op, input)
    window = _window(op, kernel_size, stride, padding) + pair(op, "dilation", dilation, 1)
    check_window(op, x, window, ceil_mode)


@explanation
def _explain_adaptive(op: str, input: Tensor, size: int | Sequence[int | None] | None) -> None:
    _output_size(op, image(op, input), size)


# Operators. `op` names a raw operator, and with a suffix its companions; `window` is what all of
# them take, and `last` what the pooling itself takes besides.


def _max_pool(
    op: str, input: Tensor, window: tuple, last: tuple, return_indices: bool
) -> Tensor | tuple[Tensor, Tensor]:
    x = input if input.dim() == 4 else batched(op, input)
    y, argmax = MaxPool2d.apply(x, op, window, last)
    if not return_indices:
        return _like(input, y)
    indices = getattr(kernels(x), f"{op}_indices")(argmax, *x.shape[2:], *window)
    return _like(input, y), _like(input, indices)


def _avg_pool(op: str, input: Tensor, window: tuple, last: tuple) -> Tensor:
    x = input if input.dim() == 4 else batched(op, input)
    return _like(input, AvgPool2d.apply(x, op, window, last))


# An image's gradient is laid out as the image, whatever came after the pool: a flattening turns the
# layout of the output's. It is turned back before the adjoint, which follows it and has more to
# write; and after it if need be, for outputs of 1 x 1 do not tell their layout.


class MaxPool2d(Function):
    """x -> (y, argmax) with y = G x, where G is the linear map that argmax picks."""

    @staticmethod
    def forward(x: Tensor, op: str, window: tuple, last: tuple) -> tuple[Tensor, Tensor]:
        return getattr(kernels(x), op)(x, *window, *last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, ctx.op, ctx.window, _ = inputs
        ctx.size, ctx.channels_last = x.shape[2:], x.stride(1) == 1
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple:
        if g is None:
            return None, None, None, None
        (argmax,) = ctx.saved_tensors
        g = laid_out(g, ctx.channels_last)
        x = MaxPool2dScatter.apply(g, argmax, ctx.op, ctx.size, ctx.window)
        return laid_out(x, ctx.channels_last), None, None, None


class MaxPool2dScatter(Function):
    """g -> G' g, the adjoint of the map that argmax picks."""

    @staticmethod
    def forward(g: Tensor, argmax: Tensor, op: str, size: torch.Size, window: tuple) -> Tensor:
        return getattr(kernels(g), f"{op}_scatter")(g, argmax, *size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, argmax, ctx.op, _, ctx.window = inputs
        ctx.save_for_backward(argmax)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple:
        (argmax,) = ctx.saved_tensors
        return MaxPool2dGather.apply(x, argmax, ctx.op, ctx.window), None, None, None, None


class MaxPool2dGather(Function):
    """x -> G x, the map that argmax picks."""

    @staticmethod
    def forward(x: Tensor, argmax: Tensor, op: str, window: tuple) -> Tensor:
        return getattr(kernels(x), f"{op}_gather")(x, argmax, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, argmax, ctx.op, ctx.window = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(argmax)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        (argmax,) = ctx.saved_tensors
        x = MaxPool2dScatter.apply(g, argmax, ctx.op, ctx.size, ctx.window)
        return x, None, None, None


class AvgPool2d(Function):
    """x -> y = A x: linear."""

    @staticmethod
    def forward(x: Tensor, op: str, window: tuple, last: tuple) -> Tensor:
        return getattr(kernels(x), op)(x, *window, *last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, *ctx.rest = inputs
        ctx.size, ctx.channels_last = x.shape[2:], x.stride(1) == 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        g = laid_out(g, ctx.channels_last)
        x = AvgPool2dAdjoint.apply(g, ctx.size, *ctx.rest)
        return laid_out(x, ctx.channels_last), None, None, None


class AvgPool2dAdjoint(Function):
    """g -> A' g, the adjoint of the average."""

    @staticmethod
    def forward(g: Tensor, size: torch.Size, op: str, window: tuple, last: tuple) -> Tensor:
        return getattr(kernels(g), f"{op}_adjoint")(g, *size, *window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, _, *ctx.rest = inputs

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple:
        return AvgPool2d.apply(x, *ctx.rest), None, None, None, None
