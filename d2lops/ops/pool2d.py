"""Pooling (D2L 7.5): the maximum or the average of each window of an image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2lops.backends import kernels, shape_rule
from d2lops.ops._checks import (
    LIMIT,
    batched,
    check_least,
    check_size,
    check_tensor,
    explanation,
    padding4,
    pair,
)
from d2lops.ops._function import Function
from d2lops.ops._layout import empty, is_channels_last

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
            _check_divisor(divisor_override)
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


def _image(op: str, input: object) -> Tensor:
    """`input` as (N, C, H, W), of which only N may be zero; C too, for the adaptive average."""
    check_tensor(op, "input", input)
    x = batched(op, input)
    _, channels, height, width = x.shape
    if height == 0 or width == 0 or (channels == 0 and op != "adaptive_avg_pool2d"):
        raise RuntimeError(
            f"{op}(): input must not be empty but for its batch, but has size {list(input.shape)}"
        )
    return x


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


def _check_window(op: str, x: Tensor, window: Sequence[int], ceil_mode: bool) -> None:
    """At least one window fits into the image, and at least half of it does."""
    kernel, stride, padding = window[:2], window[2:4], window[4:8]
    dilation = window[8:] or (1, 1)
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        before, after = padding[2 * axis], padding[2 * axis + 1]
        if 2 * before > span or 2 * after > span:
            raise RuntimeError(
                f"{op}(): padding must be at most half of the window, which spans {span} with "
                f"kernel_size {kernel} and dilation {dilation}, but got {padding}"
            )
        slack = stride[axis] - 1 if ceil_mode else 0
        if span > x.shape[2 + axis] + before + after + slack:
            raise RuntimeError(
                f"{op}(): output would be empty: the window spans {span} with kernel_size {kernel} "
                f"and dilation {dilation}, but input has size {list(x.shape)} and padding {padding}"
            )


def _check_divisor(divisor: object) -> None:
    if not isinstance(divisor, int) or isinstance(divisor, bool):
        raise TypeError(
            f"avg_pool2d(): argument 'divisor_override' must be int, not {type(divisor).__name__}"
        )
    if divisor == 0:
        raise RuntimeError("avg_pool2d(): divisor_override must not be zero, but got 0")
    if abs(divisor) >= 2**63:
        raise ValueError(f"avg_pool2d(): divisor_override must fit in 64 bits, but got {divisor}")


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
    x = _image(op, input)
    window = _window(op, kernel_size, stride, padding) + pair(op, "dilation", dilation, 1)
    _check_window(op, x, window, ceil_mode)


@explanation
def _explain_adaptive(op: str, input: Tensor, size: int | Sequence[int | None] | None) -> None:
    _output_size(op, _image(op, input), size)


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


class MaxPool2d(Function):
    """x -> (y, argmax) with y = G x, where G is the linear map that argmax picks."""

    @staticmethod
    def forward(x: Tensor, op: str, window: tuple, last: tuple) -> tuple[Tensor, Tensor]:
        return getattr(kernels(x), op)(x, *window, *last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, ctx.op, ctx.window, _ = inputs
        ctx.size = x.shape[2:]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: None) -> tuple:
        if g is None:
            return None, None, None, None
        (argmax,) = ctx.saved_tensors
        x = MaxPool2dScatter.apply(g, argmax, ctx.op, ctx.size, ctx.window)
        return x, None, None, None


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
        ctx.size = x.shape[2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return AvgPool2dAdjoint.apply(g, ctx.size, *ctx.rest), None, None, None


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


# What the compiler knows of the raw operators: sizes, dtypes and strides of their outputs.


def _pooled_size(size: Sequence[int], window: Sequence[int], ceil_mode: bool) -> list[int]:
    pooled = list(size[:2])
    for axis in (0, 1):
        kernel, stride = window[axis], window[2 + axis]
        before, after = window[4 + 2 * axis], window[5 + 2 * axis]
        dilation = window[8 + axis] if len(window) > 8 else 1
        inputs = size[2 + axis]
        room = inputs + before + after - (kernel - 1) * dilation - 1
        windows = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (windows - 1) * stride >= inputs + before:
            windows -= 1
        pooled.append(windows)
    return pooled


def _adaptive_taps(inputs: int, outputs: int) -> int:
    """No adaptive window is longer, as csrc/common/window.h has it."""
    if outputs == 0:
        return 0
    return inputs // outputs + (0 if inputs % outputs == 0 else 2)


def _argmax_dtype(taps: int) -> torch.dtype:
    return torch.uint8 if taps <= 255 else torch.int32


# Raw operators can be called without the public functions: what those see to, and what the adjoints
# may be given at all.


def _raw_image(op: str, x: Tensor) -> Tensor:
    _image(op, x)
    if x.dim() != 4:
        raise RuntimeError(f"{op}(): x must have 4 dimensions, but has {x.dim()}")
    return x


def _check_windows(op: str, window: Sequence[int], dilated: bool = True) -> None:
    least = (1, 1, 1, 1, 0, 0, 0, 0) + ((1, 1) if dilated else ())
    if (
        len(window) != len(least)
        or any(not low <= n < LIMIT for low, n in zip(least, window, strict=True))
        or window[0] * window[1] >= LIMIT
    ):
        raise RuntimeError(
            f"{op}(): window must be kernel (2), stride (2), padding (4)"
            f"{' and dilation (2)' if dilated else ''}, at least {least} and below 2^31, with a "
            f"kernel of less than 2^31 elements, but got {list(window)}"
        )


def _check_output(
    op: str, name: str, y: Tensor, size: Sequence[int], window: Sequence[int]
) -> None:
    """`y` must be what pools an image of that size, in whichever mode along each axis."""
    floor, ceil = (_pooled_size(size, window, ceil_mode) for ceil_mode in (False, True))
    if y.dim() != 4 or any(n not in both for n, *both in zip(y.shape, floor, ceil, strict=True)):
        raise RuntimeError(
            f"{op}(): {name} must have size {floor}, or {ceil} in ceil_mode, but has "
            f"{list(y.shape)}"
        )


def _check_argmax(op: str, argmax: Tensor, taps: int, size: Sequence[int]) -> None:
    check_size(op, "argmax", argmax, size)
    allowed = {_argmax_dtype(taps), torch.int32}
    if argmax.dtype not in allowed:
        raise RuntimeError(
            f"{op}(): argmax must have a dtype of {allowed} for {taps} taps, but has {argmax.dtype}"
        )


def _check_gradient(op: str, g: Tensor, height: int, width: int) -> None:
    check_tensor(op, "g", g)
    if g.dim() != 4:
        raise RuntimeError(f"{op}(): g must have 4 dimensions, but has {g.dim()}")
    check_least(op, "input_size", (height, width), 1)


def _taps(inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """No adaptive window has more."""
    return _adaptive_taps(inputs[0], outputs[0]) * _adaptive_taps(inputs[1], outputs[1])


@shape_rule("max_pool2d")
def _(x, window, ceil_mode):
    op = "max_pool2d"
    _check_windows(op, window)
    _check_window(op, _raw_image(op, x), window, ceil_mode)
    size, channels_last = _pooled_size(x.shape, window, ceil_mode), is_channels_last(x)
    dtype = _argmax_dtype(window[0] * window[1])
    return empty(x, size, channels_last), empty(x, size, channels_last, dtype)


@shape_rule("adaptive_max_pool2d")
def _(x, height, width):
    x = _raw_image("adaptive_max_pool2d", x)
    check_least("adaptive_max_pool2d", "output_size", (height, width), 0)
    size, channels_last = [*x.shape[:2], height, width], is_channels_last(x)
    dtype = _argmax_dtype(_taps(x.shape[2:], (height, width)))
    return empty(x, size, channels_last), empty(x, size, channels_last, dtype)


@shape_rule("max_pool2d_gather")
def _(x, argmax, window):
    op = "max_pool2d_gather"
    _check_windows(op, window)
    _check_output(op, "argmax", argmax, _raw_image(op, x).shape, window)
    _check_argmax(op, argmax, window[0] * window[1], argmax.shape)
    return empty(x, argmax.shape, is_channels_last(x))


@shape_rule("adaptive_max_pool2d_gather")
def _(x, argmax):
    op = "adaptive_max_pool2d_gather"
    size = [*_raw_image(op, x).shape[:2], *argmax.shape[2:]]
    _check_argmax(op, argmax, _taps(x.shape[2:], size[2:]), size)
    return empty(x, size, is_channels_last(x))


@shape_rule("max_pool2d_scatter")
def _(g, argmax, height, width, window):
    op = "max_pool2d_scatter"
    _check_windows(op, window)
    _check_gradient(op, g, height, width)
    _check_output(op, "g", g, [*g.shape[:2], height, width], window)
    _check_argmax(op, argmax, window[0] * window[1], g.shape)
    return empty(g, [*g.shape[:2], height, width], is_channels_last(g))


@shape_rule("adaptive_max_pool2d_scatter")
def _(g, argmax, height, width):
    op = "adaptive_max_pool2d_scatter"
    _check_gradient(op, g, height, width)
    _check_argmax(op, argmax, _taps((height, width), g.shape[2:]), g.shape)
    return empty(g, [*g.shape[:2], height, width], is_channels_last(g))


@shape_rule("max_pool2d_indices")
def _(argmax, height, width, window):
    op = "max_pool2d_indices"
    _check_windows(op, window)
    check_least(op, "input_size", (height, width), 1)
    _check_output(op, "argmax", argmax, [*argmax.shape[:2], height, width], window)
    _check_argmax(op, argmax, window[0] * window[1], argmax.shape)
    return empty(argmax, argmax.shape, is_channels_last(argmax), torch.int64)


@shape_rule("adaptive_max_pool2d_indices")
def _(argmax, height, width):
    op = "adaptive_max_pool2d_indices"
    check_least(op, "input_size", (height, width), 1)
    _check_argmax(op, argmax, _taps((height, width), argmax.shape[2:]), argmax.shape)
    return empty(argmax, argmax.shape, is_channels_last(argmax), torch.int64)


@shape_rule("avg_pool2d")
def _(x, window, count_include_pad, divisor, ceil_mode):
    op = "avg_pool2d"
    _check_windows(op, window, dilated=False)
    _check_window(op, _raw_image(op, x), window, ceil_mode)
    _check_divisor(1 if divisor is None else divisor)
    return empty(x, _pooled_size(x.shape, window, ceil_mode), is_channels_last(x))


@shape_rule("avg_pool2d_adjoint")
def _(g, height, width, window, count_include_pad, divisor):
    op = "avg_pool2d_adjoint"
    _check_windows(op, window, dilated=False)
    _check_gradient(op, g, height, width)
    _check_output(op, "g", g, [*g.shape[:2], height, width], window)
    _check_divisor(1 if divisor is None else divisor)
    return empty(g, [*g.shape[:2], height, width], is_channels_last(g))


@shape_rule("adaptive_avg_pool2d")
def _(x, height, width):
    x = _raw_image("adaptive_avg_pool2d", x)
    check_least("adaptive_avg_pool2d", "output_size", (height, width), 0)
    return empty(x, [*x.shape[:2], height, width], is_channels_last(x))


@shape_rule("adaptive_avg_pool2d_adjoint")
def _(g, height, width):
    _check_gradient("adaptive_avg_pool2d_adjoint", g, height, width)
    return empty(g, [*g.shape[:2], height, width], is_channels_last(g))
