"""The shape rules of pooling: what raw operators return, and what they refuse.

A shape rule takes the arguments of a raw operator and makes its outputs: sizes, dtypes and strides,
but no numbers. Tensors without data, the compiler's and those on the meta device, are put through
it. In Triton it is also the first step of an operator: it checks the arguments, and the kernels
fill the outputs that it made. The C++ operators check for themselves, in csrc/bindings/pool2d.cpp.

Raw operators can be called without the public functions. So rules check what those see to, and what
the adjoints may be given at all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2lops.backends import shape_rule
from d2lops.ops._checks import LIMIT, batched, check_least, check_size, check_tensor
from d2lops.ops._layout import empty, is_channels_last

# Checks that the public functions explain their failures with, too.


def image(op: str, input: object) -> Tensor:
    """`input` as (N, C, H, W), of which only N may be zero; C too, for the adaptive average."""
    check_tensor(op, "input", input)
    x = batched(op, input)
    _, channels, height, width = x.shape
    if height == 0 or width == 0 or (channels == 0 and op != "adaptive_avg_pool2d"):
        raise RuntimeError(
            f"{op}(): input must not be empty but for its batch, but has size {list(input.shape)}"
        )
    return x


def check_window(op: str, x: Tensor, window: Sequence[int], ceil_mode: bool) -> None:
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


def check_divisor(divisor: object) -> None:
    if not isinstance(divisor, int) or isinstance(divisor, bool):
        raise TypeError(
            f"avg_pool2d(): argument 'divisor_override' must be int, not {type(divisor).__name__}"
        )
    if divisor == 0:
        raise RuntimeError("avg_pool2d(): divisor_override must not be zero, but got 0")
    if abs(divisor) >= 2**63:
        raise ValueError(f"avg_pool2d(): divisor_override must fit in 64 bits, but got {divisor}")


# Sizes and dtypes. Without branches on an image's size: the compiler would make a graph for each.


def _pooled_size(size: Sequence[int], window: Sequence[int], ceil_mode: bool) -> list[int]:
    pooled = list(size[:2])
    for axis in (0, 1):
        kernel, stride = window[axis], window[2 + axis]
        before, after = window[4 + 2 * axis], window[5 + 2 * axis]
        dilation = window[8 + axis] if len(window) > 8 else 1
        inputs = size[2 + axis]
        room = inputs + before + after - (kernel - 1) * dilation - 1
        windows = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode:  # none may begin in the padding behind the image
            windows = torch.sym_min(windows, (inputs + before - 1) // stride + 1)
        pooled.append(windows)
    return pooled


def _adaptive_taps(inputs: int, outputs: int) -> int:
    """No adaptive window is longer, as csrc/common/window.h has it."""
    if outputs == 0:
        return 0
    return inputs // outputs + 2 * torch.sym_min(inputs % outputs, 1)


def _argmax_dtype(taps: int) -> torch.dtype:
    return torch.uint8 if taps <= 255 else torch.int32


def _taps(inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """No adaptive window has more."""
    return _adaptive_taps(inputs[0], outputs[0]) * _adaptive_taps(inputs[1], outputs[1])


# Checks of what only raw operators are given.


def _raw_image(op: str, x: Tensor) -> Tensor:
    image(op, x)
    if x.dim() != 4:
        raise RuntimeError(f"{op}(): x must have 4 dimensions, but has {x.dim()}")
    return x


def _check_numbers(op: str, window: Sequence[int], dilated: bool = True) -> None:
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
    if y.dim() != 4 or any(
        not low <= n <= high for low, n, high in zip(floor, y.shape, ceil, strict=True)
    ):
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


# The rules.


@shape_rule("max_pool2d")
def _(x, window, ceil_mode):
    op = "max_pool2d"
    _check_numbers(op, window)
    check_window(op, _raw_image(op, x), window, ceil_mode)
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
    _check_numbers(op, window)
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
    _check_numbers(op, window)
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
    _check_numbers(op, window)
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
    _check_numbers(op, window, dilated=False)
    check_window(op, _raw_image(op, x), window, ceil_mode)
    check_divisor(1 if divisor is None else divisor)
    return empty(x, _pooled_size(x.shape, window, ceil_mode), is_channels_last(x))


@shape_rule("avg_pool2d_adjoint")
def _(g, height, width, window, count_include_pad, divisor):
    op = "avg_pool2d_adjoint"
    _check_numbers(op, window, dilated=False)
    _check_gradient(op, g, height, width)
    _check_output(op, "g", g, [*g.shape[:2], height, width], window)
    check_divisor(1 if divisor is None else divisor)
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
