"""The windows of pooling, as ``csrc/common/window.h`` has them: which inputs an output sees, and
which outputs see an input. For launchers, and in kernels for many at once.

    sliding:   output o sees inputs o stride - padding + tap dilation, 0 <= tap < kernel
    adaptive:  output o sees inputs floor(o inputs / outputs) ... ceil((o + 1) inputs / outputs) - 1
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

MOST_UNROLLED = 25  # taps, of windows that kernels are compiled for


@triton.jit
def origin_of(output, inputs, outputs, stride, padding, ADAPTIVE: tl.constexpr):
    """The input at a window's first tap, which may be in the padding."""
    if ADAPTIVE:
        return output * inputs // outputs
    else:
        return output * stride - padding


@triton.jit
def inputs_of(
    output, inputs, outputs, kernel, stride, padding, dilation,
    ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """A window's first input, how many there are, `dilation` apart, and the first one's tap."""
    origin = origin_of(output, inputs, outputs, stride, padding, ADAPTIVE)
    if ADAPTIVE:
        return origin, tl.cdiv((output + 1) * inputs, outputs) - origin, 0 * origin
    else:
        tap = tl.cdiv(tl.maximum(-origin, 0), dilation)
        end = tl.minimum(kernel, tl.cdiv(tl.maximum(inputs - origin, 0), dilation))
        return origin + tap * dilation, end - tap, tap


@triton.jit
def window_over(
    input, number, inputs, outputs, kernel, stride, padding, dilation, most,
    ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """The window with a number from 0 to most - 1 among those that may cover an input: which one
    it is, which of its taps the input is, and whether it covers it."""
    if ADAPTIVE:
        window = input * outputs // inputs + number
        covers = window < tl.cdiv((input + 1) * outputs, inputs)
        return window, input - window * inputs // outputs, covers
    else:
        padded = input + padding
        window = padded // stride - (most - 1) + number
        distance = padded - window * stride
        tap = distance // dilation
        covers = (window >= 0) & (window < outputs) & (tap < kernel) & (distance % dilation == 0)
        return window, tap, covers


@triton.jit
def extent(
    output, inputs, outputs, kernel, stride, padding, padding_after,
    COUNT_INCLUDE_PAD: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """What an average divides by: the window without what sticks out beyond the padding, or beyond
    the input. At least 1, which matters to windows that see nothing."""
    origin = origin_of(output, inputs, outputs, stride, padding, ADAPTIVE)
    if ADAPTIVE:
        seen = tl.cdiv((output + 1) * inputs, outputs) - origin
    elif COUNT_INCLUDE_PAD:
        seen = tl.minimum(origin + kernel, inputs + padding_after) - origin
    else:
        seen = tl.minimum(origin + kernel, inputs) - tl.maximum(origin, 0)
    return tl.maximum(seen, 1)


class Axis(NamedTuple):
    """Windows along one axis."""

    inputs: int
    outputs: int
    kernel: int  # of adaptive windows, the most taps that one has
    stride: int = 0
    before: int = 0  # padding
    after: int = 0
    dilation: int = 1

    def most_over(self, adaptive: bool) -> int:
        """No more windows may cover an input."""
        if adaptive:
            return self.outputs // self.inputs + (0 if self.outputs % self.inputs == 0 else 2)
        return (self.kernel - 1) * self.dilation // self.stride + 1

    def inside(self, padded: bool = False) -> bool:
        """Whether no window sticks out of the input, or of the padded input."""
        end = (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
        if padded:
            return end - self.before <= self.inputs + self.after
        return self.before == 0 and end <= self.inputs


class Windows(NamedTuple):
    """Of a plane. An average's sum is divided by `divisor`, unless that is 0."""

    rows: Axis
    columns: Axis
    adaptive: bool = False
    divisor: int = 0
    count_include_pad: bool = True

    def sizes(self) -> tuple[int, ...]:
        return self.rows.inputs, self.columns.inputs, self.rows.outputs, self.columns.outputs

    def taps(self) -> int:
        return self.rows.kernel * self.columns.kernel

    def numbers(self) -> tuple[int, ...]:
        """As raw operators have them: kernel, stride, padding, dilation."""
        r, c = self.rows, self.columns
        padding = (r.before, r.after, c.before, c.after)
        return (r.kernel, c.kernel, r.stride, c.stride, *padding, r.dilation, c.dilation)

    def are_one(self) -> bool:
        """Whether there is but one window, of the whole plane."""
        return all(
            not self.adaptive and axis.outputs == 1 and axis.kernel == axis.inputs and axis.inside()
            for axis in (self.rows, self.columns)
        )

    def small(self) -> bool:
        """Whether it pays to compile kernels for them."""
        dilated = self.rows.dilation > 1 or self.columns.dilation > 1
        return not self.adaptive and not dilated and self.taps() <= MOST_UNROLLED

    def cells(self) -> dict[str, int] | None:
        """Which windows cover cells of inputs as large as the stride; None if it does not pay to
        compile kernels for that."""
        constants = {}
        for name, axis in ("H", self.rows), ("W", self.columns):
            first = -((axis.kernel - 1 - axis.before) // axis.stride)
            constants[f"FIRST_{name}"] = first
            constants[f"COUNT_{name}"] = (axis.stride - 1 + axis.before) // axis.stride - first + 1
        seen = constants["COUNT_H"] * constants["COUNT_W"]
        stored = self.rows.stride * self.columns.stride
        return constants if max(seen, stored) <= 9 else None

    def constants(self) -> dict[str, Any]:
        names = ["KERNEL_H", "KERNEL_W", "STRIDE_H", "STRIDE_W", "TOP", "BOTTOM", "LEFT", "RIGHT"]
        return dict(zip(names, self.numbers(), strict=False))

    def averaging(self) -> dict[str, Any]:
        divisor = self.divisor
        padded = self.count_include_pad
        if divisor == 0 and self.small() and all(axis.inside(padded) for axis in self[:2]):
            divisor = self.taps()  # which need not be found out for each window
        return {"DIVISOR": divisor, "COUNT_INCLUDE_PAD": self.count_include_pad}

    def reach(self) -> int:
        """No number that tells of a position or a tap is larger."""
        if self.adaptive:
            return max((axis.outputs + 1) * (axis.inputs + 1) for axis in (self.rows, self.columns))
        return max(
            axis.inputs + axis.outputs * axis.stride + axis.kernel * axis.dilation
            for axis in (self.rows, self.columns)
        )


def between(height: int, width: int, rows: int, columns: int, window: Sequence[int]) -> Windows:
    """Windows that slide from inputs of one size to outputs of the other."""
    dilation = window[8:] or (1, 1)
    return Windows(
        Axis(height, rows, window[0], window[2], window[4], window[5], dilation[0]),
        Axis(width, columns, window[1], window[3], window[6], window[7], dilation[1]),
    )


def adaptive(height: int, width: int, rows: int, columns: int) -> Windows:
    """Windows that share an image out without a rest slide over it."""
    if rows == 0 or columns == 0:
        return Windows(Axis(height, rows, 0), Axis(width, columns, 0), True)
    exact = height % rows == 0 and width % columns == 0
    axes = []
    for inputs, outputs in (height, rows), (width, columns):
        size = inputs // outputs
        most = size if inputs % outputs == 0 else size + 2
        axes.append(Axis(inputs, outputs, most, size) if exact else Axis(inputs, outputs, most))
    return Windows(axes[0], axes[1], not exact)
