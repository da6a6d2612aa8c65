"""Cross-correlation (D2L 7), which deep learning calls convolution, and its adjoints.

The trilinear form <corr2d(x, w), g> has three partial maps: `Corr2d` (given x and w),
`Corr2dInputGrad` (given g and w) and `Corr2dWeightGrad` (given g and x). Each one's derivatives are
the other two.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2lops.backends import kernels, shape_rule
from d2lops.ops import _autocast
from d2lops.ops._checks import (
    LIMIT,
    batched,
    check_like,
    check_mask,
    check_size,
    check_tensor,
    explanation,
    integer,
    padding4,
    pair,
)
from d2lops.ops._function import Function, total
from d2lops.ops._layout import empty, is_channels_last
from d2lops.ops.bias_grad import BiasGrad, masked, product_tangent


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate images with kernels, over many input and output channels.

    Same as ``torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation, groups)``,
    except that padding may also be given for each side. D2L 7.2-7.4.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``, any strides (channels_last gives channels_last);
            float32, float64, bfloat16 or float16 (the 16-bit ones are summed in float32).
        weight: ``(K, C / groups, R, S)``, any strides.
        bias: ``(K,)``.
        stride: steps of the window: one number, or (height, width).
        padding: zeros around the image: one number, (height, width), (top, bottom, left, right),
            ``"valid"`` for none, or ``"same"`` for an output as large as the input (stride 1).
        dilation: distance of the window's elements: one number, or (height, width).
        groups: input and output channels are connected in so many separate groups.

    Returns:
        ``(N, K, H', W')`` or ``(K, H', W')`` with
        ``H' = (H + top + bottom - dilation (R - 1) - 1) // stride + 1``, likewise ``W'``.

    Raises:
        TypeError: an argument that is no tensor, or no integer.
        RuntimeError: sizes that do not fit; stride, padding, dilation or groups out of range;
            another dtype or device than the input's.
        NotImplementedError: a dtype, layout or device without kernels.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), padding=(0, 1, 0, 1))
        tensor([[[[4., 4., 2.],
                  [4., 4., 2.],
                  [2., 2., 1.]]]])
    """
    return _conv2d("conv2d", input, weight, bias, stride, padding, dilation, groups, relu=False)


def conv_relu2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate and clamp at zero, in one kernel.

    Same as ``torch.nn.functional.relu(torch.nn.functional.conv2d(...))``; arguments, result and
    errors are those of :func:`conv2d`. D2L 7.6, 8.1.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.conv_relu2d(torch.tensor([[[1.0, 3.0, 2.0]]]), torch.tensor([[[[1.0, -1.0]]]]))
        tensor([[[0., 1.]]])
    """
    return _conv2d("conv_relu2d", input, weight, bias, stride, padding, dilation, groups, relu=True)


def corr2d(X: Tensor, K: Tensor) -> Tensor:  # noqa: N803 - the book's names
    """The book's cross-correlation of one image (D2L 7.2.1, 7.4.1, 7.4.2), by its arguments' ranks.

    =============  =================  ================  =======================
    X              K                  result            the book's name
    =============  =================  ================  =======================
    ``(H, W)``     ``(R, S)``         ``(H', W')``      ``corr2d``
    ``(C, H, W)``  ``(C, R, S)``      ``(H', W')``      ``corr2d_multi_in``
    ``(C, H, W)``  ``(K, C, R, S)``   ``(K, H', W')``   ``corr2d_multi_in_out``
    =============  =================  ================  =======================

    With ``H' = H - R + 1`` and ``W' = W - S + 1``. Same as ``torch.nn.functional.conv2d`` on X and
    K with the missing dimensions put in front. Errors are those of :func:`conv2d`.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.corr2d(torch.arange(9.0).reshape(3, 3), torch.arange(4.0).reshape(2, 2))
        tensor([[19., 25.],
                [37., 43.]])
    """
    if _autocast.enabled():
        X, K = _autocast.cast(X, K)  # noqa: N806
    check_tensor("corr2d", "X", X)
    check_like("corr2d", "K", K, X)
    if (X.dim(), K.dim()) not in ((2, 2), (3, 3), (3, 4)):
        raise RuntimeError(
            "corr2d(): X and K must have 2 and 2, 3 and 3, or 3 and 4 dimensions, but have "
            f"{X.dim()} and {K.dim()}"
        )
    image = X.unsqueeze(0) if X.dim() == 2 else X
    kernel = K[(None,) * (4 - K.dim())]
    result = conv2d(image, kernel)
    return result if K.dim() == 4 else result.squeeze(0)


# Stride (height, width), padding (top, bottom, left, right), dilation (height, width), groups: as
# the raw operators take them.
Window = tuple[int, int, int, int, int, int, int, int, int]


def _conv2d(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    if _autocast.enabled():
        input, weight, bias = _autocast.cast(input, weight, bias)
    try:
        window = _window(op, weight, stride, padding, dilation, groups)
        if input.dim() == 4:
            return Corr2d.apply(input, weight, bias, window, relu)
        return Corr2d.apply(batched(op, input), weight, bias, window, relu).squeeze(0)
    except Exception:
        _explain(op, input, weight, bias, stride, padding, dilation, groups)
        raise


@explanation
def _explain(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> None:
    _check_tensors(op, input, weight, bias)
    window = _window(op, weight, *arguments)
    _check_sizes(op, batched(op, input).shape, weight.shape, window)


def _window(
    op: str,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> Window:
    stride = pair(op, "stride", stride, 1)
    dilation = pair(op, "dilation", dilation, 1)
    if isinstance(padding, str):
        sides = _padding_by_name(op, padding, weight, stride, dilation)
    else:
        sides = padding4(op, "padding", padding)
    if type(groups) is not int:
        try:
            groups = integer(groups)
        except TypeError:
            raise TypeError(f"{op}(): groups must be int, but got {groups!r}") from None
    return (*stride, *sides, *dilation, groups)


def _padding_by_name(
    op: str, name: str, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    if name == "valid":
        return 0, 0, 0, 0
    if name != "same":
        raise RuntimeError(f"{op}(): padding must be numbers, 'valid' or 'same', but got {name!r}")
    if stride != (1, 1):
        raise RuntimeError(f"{op}(): padding='same' needs stride 1, but stride is {stride}")
    height, width = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    return height // 2, height - height // 2, width // 2, width - width // 2


def _check_tensors(op: str, input: object, weight: object, bias: object) -> None:
    """What torch would refuse of the tensors alone."""
    check_tensor(op, "input", input)
    check_like(op, "weight", weight, input)
    if weight.dim() != 4:
        raise RuntimeError(
            f"{op}(): weight must have 4 dimensions, but has size {list(weight.shape)}"
        )
    if bias is not None:
        check_like(op, "bias", bias, input)
        if bias.shape != weight.shape[:1]:
            raise RuntimeError(
                f"{op}(): bias must have size [{weight.shape[0]}], but has {list(bias.shape)}"
            )


def _check_sizes(
    op: str, input_size: Sequence[int], weight_size: Sequence[int], window: Window
) -> None:
    """What torch would refuse of the sizes and the window together."""
    _, channels, *size = input_size
    outputs, planes, *kernel = weight_size
    *padding, down, across, groups = window[2:]
    if groups < 1 or outputs % groups != 0 or outputs == 0:
        raise RuntimeError(
            f"{op}(): groups must be positive and divide the output channels, weight.size(0) = "
            f"{outputs} > 0, but got {groups}"
        )
    if channels != planes * groups:
        raise RuntimeError(
            f"{op}(): groups = {groups} and weight of size {list(weight_size)} want input with "
            f"{planes * groups} channels, but input has {channels}"
        )
    height, width = _output_size(size, kernel, window)
    if height < 1 or width < 1 or 0 in kernel:
        raise RuntimeError(
            f"{op}(): kernel of size {kernel}, dilation {(down, across)}, must not be empty "
            f"nor larger than the input of size {size}, padded by {tuple(padding)}"
        )


def _output_size(size: Sequence[int], kernel: Sequence[int], window: Window) -> tuple[int, int]:
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, _ = window
    return (
        (size[0] + top + bottom - dilation_h * (kernel[0] - 1) - 1) // stride_h + 1,
        (size[1] + left + right - dilation_w * (kernel[1] - 1) - 1) // stride_w + 1,
    )


class Corr2d(Function):
    """(x, w, b) -> corr2d(x, w) + b, through a ReLU or not."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, relu: bool
    ) -> Tensor:
        return kernels(x).corr2d(x, weight, bias, window, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.window, relu = inputs
        ctx.input_size, ctx.kernel_size = x.shape[2:], weight.shape[2:]
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            x if needs_weight else None, weight if needs_x else None, output if relu else None
        )

    @staticmethod
    def tangent(
        ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None
    ) -> Tensor:
        x, weight, y = ctx.saved_tensors
        outputs = _output_size(ctx.input_size, ctx.kernel_size, ctx.window)
        size = (x.shape[0], weight.shape[0], *outputs)
        y_t = total(
            None if x_t is None else Corr2d.apply(x_t, weight, None, ctx.window, False),
            None if weight_t is None else Corr2d.apply(x, weight_t, None, ctx.window, False),
            None if bias_t is None else bias_t.view(-1, 1, 1).expand(size),
        )
        return masked(y_t, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            Corr2dInputGrad.apply(g, y, weight, ctx.input_size, ctx.window) if needs_x else None,
            Corr2dWeightGrad.apply(g, y, x, ctx.kernel_size, ctx.window) if needs_weight else None,
            BiasGrad.apply(g, y) if needs_bias else None,
            None,
            None,
        )


class Corr2dInputGrad(Function):
    """(g, w) -> the adjoint of x -> corr2d(x, w), applied to g masked by y."""

    @staticmethod
    def forward(
        g: Tensor, y: Tensor | None, weight: Tensor, size: torch.Size, window: Window
    ) -> Tensor:
        return kernels(g).corr2d_input_grad(g, y, weight, *size, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        g, y, weight, ctx.input_size, ctx.window = inputs
        ctx.kernel_size = weight.shape[2:]
        ctx.save_for_backward(g, y, weight)

    @staticmethod
    def tangent(
        ctx: Any, g_t: Tensor | None, _: Tensor | None, weight_t: Tensor | None, *__: None
    ) -> Tensor:
        g, y, weight = ctx.saved_tensors
        last = ctx.input_size, ctx.window
        return product_tangent(Corr2dInputGrad, (g, g_t), y, (weight, weight_t), *last)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        g, y, weight = ctx.saved_tensors
        needs_g, _, needs_weight = ctx.needs_input_grad[:3]
        return (
            masked(Corr2d.apply(u, weight, None, ctx.window, False), y) if needs_g else None,
            None,
            Corr2dWeightGrad.apply(g, y, u, ctx.kernel_size, ctx.window) if needs_weight else None,
            None,
            None,
        )


class Corr2dWeightGrad(Function):
    """(g, x) -> the adjoint of w -> corr2d(x, w), applied to g masked by y."""

    @staticmethod
    def forward(g: Tensor, y: Tensor | None, x: Tensor, size: torch.Size, window: Window) -> Tensor:
        return kernels(g).corr2d_weight_grad(g, y, x, *size, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        g, y, x, ctx.kernel_size, ctx.window = inputs
        ctx.input_size = x.shape[2:]
        ctx.save_for_backward(g, y, x)

    @staticmethod
    def tangent(
        ctx: Any, g_t: Tensor | None, _: Tensor | None, x_t: Tensor | None, *__: None
    ) -> Tensor:
        g, y, x = ctx.saved_tensors
        last = ctx.kernel_size, ctx.window
        return product_tangent(Corr2dWeightGrad, (g, g_t), y, (x, x_t), *last)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple:
        g, y, x = ctx.saved_tensors
        needs_g, _, needs_x = ctx.needs_input_grad[:3]
        return (
            masked(Corr2d.apply(x, u, None, ctx.window, False), y) if needs_g else None,
            None,
            Corr2dInputGrad.apply(g, y, u, ctx.input_size, ctx.window) if needs_x else None,
            None,
            None,
        )


def _check_window(op: str, window: Window) -> None:
    """What the public functions see to: raw operators can be called without them."""
    least = (1, 1, 0, 0, 0, 0, 1, 1, 1)
    fits = len(window) == 9 and all(low <= n < LIMIT for low, n in zip(least, window, strict=True))
    if not fits:
        raise RuntimeError(
            f"{op}(): window must be stride (2), padding (4), dilation (2) and groups, each at "
            f"least {least} and below 2^31, but got {list(window)}"
        )


def _check_grad(op: str, g: Tensor, y: Tensor | None, name: str, other: Tensor) -> None:
    check_tensor(op, "g", g)
    check_like(op, name, other, g)
    check_mask(op, g, y)
    for argument, x in (("g", g), (name, other)):
        if x.dim() != 4:
            raise RuntimeError(f"{op}(): {argument} must have 4 dimensions, but has {x.dim()}")


@shape_rule("corr2d")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    relu: bool,
    tf32: bool = False,
) -> Tensor:
    op = "conv_relu2d" if relu else "conv2d"
    _check_window(op, window)
    _check_tensors(op, x, weight, bias)
    if x.dim() != 4:
        raise RuntimeError(f"{op}(): x must have 4 dimensions, but has {x.dim()}")
    _check_sizes(op, x.shape, weight.shape, window)
    size = (x.size(0), weight.size(0), *_output_size(x.shape[2:], weight.shape[2:], window))
    return empty(x, size, is_channels_last(x) or is_channels_last(weight))


@shape_rule("corr2d_input_grad")
def _(
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    window: Window,
    tf32: bool = False,
) -> Tensor:
    op = "corr2d_input_grad"
    _check_window(op, window)
    _check_grad(op, g, y, "weight", weight)
    size = (g.size(0), weight.size(1) * window[-1], height, width)
    _check_sizes(op, size, weight.shape, window)
    outputs = _output_size((height, width), weight.shape[2:], window)
    check_size(op, "g", g, (g.size(0), weight.size(0), *outputs))
    return empty(g, size, is_channels_last(g) or is_channels_last(weight))


@shape_rule("corr2d_weight_grad")
def _(
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    height: int,
    width: int,
    window: Window,
    tf32: bool = False,
) -> Tensor:
    op = "corr2d_weight_grad"
    _check_window(op, window)
    _check_grad(op, g, y, "x", x)
    size = (g.size(1), x.size(1) // window[-1], height, width)
    _check_sizes(op, x.shape, size, window)
    outputs = _output_size(x.shape[2:], (height, width), window)
    check_size(op, "g", g, (x.size(0), g.size(1), *outputs))
    return g.new_empty(size)
