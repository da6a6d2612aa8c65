"""`torch.nn`, with d2lops layers where there is one.

``from d2lops import nn`` in place of ``from torch import nn`` is all that a script needs. Each
layer is a subclass of torch's where torch has one: same constructor, repr, initialisation,
state_dict and pickling, so that checkpoints go back and forth. Names that d2lops does not have are
handed on from torch.

A layer holds its parameters and calls one function of `d2lops.functional`, whose docstring tells
shapes, dtypes and errors.
"""

import sys

import torch
from torch import Tensor

from d2lops import functional

# For ``import d2lops.nn.functional as F``, what a replacement of names makes of torch's: this
# module is no package, in which Python would look for it.
sys.modules[f"{__name__}.functional"] = functional

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "ConvReLU2d",
    "Dropout",
    "LazyConv2d",
    "LazyConvReLU2d",
    "LazyLinear",
    "LazyLinearReLU",
    "Linear",
    "LinearReLU",
    "MaxPool2d",
    "functional",
]
# ``from d2lops.nn import *`` gives what ``from torch.nn import *`` gives, these layers among it.
__all__ += sorted({name for name in dir(torch.nn) if not name.startswith("_")} - {*__all__})


class Conv2d(torch.nn.Conv2d):
    """`torch.nn.Conv2d` on `d2lops.functional.conv2d` (D2L 7.2 to 7.4).

    What is added: `padding` may be four numbers, (top, bottom, left, right), and ``padding='same'``
    makes no padded copy of the input for kernels of even size.

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.Conv2d(3, 8, kernel_size=5, stride=2)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 14, 14])
        >>> nn.Conv2d(3, 8, kernel_size=4, padding=(1, 2, 1, 2))(torch.randn(3, 32, 32)).shape
        torch.Size([8, 32, 32])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        return functional.conv2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups
        )

    def _pad(self, input: Tensor) -> tuple[Tensor, str | tuple[int, ...] | int]:
        """Pads as the mode says, and tells what is left to the kernel, which pads with zeros."""
        if self.padding_mode == "zeros":
            return input, self.padding
        border = self._reversed_padding_repeated_twice
        if len(border) == 8:  # torch has doubled what were four numbers already
            top, bottom, left, right = self.padding
            border = (left, right, top, bottom)
        return torch.nn.functional.pad(input, border, self.padding_mode), 0


class ConvReLU2d(Conv2d):
    """`Conv2d` and a ReLU in one kernel, on `d2lops.functional.conv_relu2d` (D2L 7.2, 5.1).

    Same parameters, names and results as ``Sequential(Conv2d(...), ReLU())``, without its
    intermediate.

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> bool((nn.ConvReLU2d(3, 8, kernel_size=3)(torch.randn(2, 3, 9, 9)) >= 0).all())
        True
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = self._pad(input)
        return functional.conv_relu2d(
            input, weight, bias, self.stride, padding, self.dilation, self.groups
        )


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):
    """`Conv2d` that takes `in_channels` from its first input, as `torch.nn.LazyConv2d` (D2L 6.4).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> layer = nn.LazyConv2d(8, kernel_size=3)
        >>> _ = layer(torch.randn(2, 3, 9, 9))
        >>> layer
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """

    cls_to_become = Conv2d


class LazyConvReLU2d(LazyConv2d, ConvReLU2d):
    """`ConvReLU2d` that takes `in_channels` from its first input (D2L 6.4).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> layer = nn.LazyConvReLU2d(8, kernel_size=3)
        >>> _ = layer(torch.randn(2, 3, 9, 9))
        >>> layer
        ConvReLU2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """

    cls_to_become = ConvReLU2d


class MaxPool2d(torch.nn.MaxPool2d):
    """`torch.nn.MaxPool2d` on `d2lops.functional.max_pool2d` (D2L 7.5).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.MaxPool2d(kernel_size=2)(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 5.,  7.],
                 [13., 15.]]])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """`torch.nn.AvgPool2d` on `d2lops.functional.avg_pool2d` (D2L 7.5).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.AvgPool2d(kernel_size=2)(torch.arange(16.0).reshape(1, 4, 4))
        tensor([[[ 2.5000,  4.5000],
                 [10.5000, 12.5000]]])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d` on `d2lops.functional.adaptive_max_pool2d` (D2L 7.5).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.AdaptiveMaxPool2d(2)(torch.arange(9.0).reshape(1, 3, 3))
        tensor([[[4., 5.],
                 [7., 8.]]])
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return functional.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` on `d2lops.functional.adaptive_avg_pool2d` (D2L 8.3).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.AdaptiveAvgPool2d(1)(torch.arange(9.0).reshape(1, 3, 3))
        tensor([[[4.]]])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(input, self.output_size)


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout` on `d2lops.functional.dropout` (D2L 5.6).

    Example:
        >>> from d2lops import nn
        >>> nn.Dropout(p=0.2)
        Dropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(input, self.p, self.training, self.inplace)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` on `d2lops.functional.linear` (D2L 3.1, 5.1).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> nn.Linear(16, 10)(torch.randn(2, 7, 16)).shape
        torch.Size([2, 7, 10])
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class LinearReLU(Linear):
    """`Linear` and a ReLU in one kernel, on `d2lops.functional.linear_relu` (D2L 5.1).

    Same parameters, names and results as ``Sequential(Linear(...), ReLU())``, without its
    intermediate.

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> bool((nn.LinearReLU(16, 10)(torch.randn(2, 16)) >= 0).all())
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear_relu(input, self.weight, self.bias)


class LazyLinear(torch.nn.LazyLinear, Linear):
    """`Linear` that takes `in_features` from its first input, as `torch.nn.LazyLinear` (D2L 6.4).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> layer = nn.LazyLinear(10)
        >>> _ = layer(torch.randn(2, 16))
        >>> layer
        Linear(in_features=16, out_features=10, bias=True)
    """

    cls_to_become = Linear


class LazyLinearReLU(LazyLinear, LinearReLU):
    """`LinearReLU` that takes `in_features` from its first input (D2L 6.4).

    Example:
        >>> import torch
        >>> from d2lops import nn
        >>> layer = nn.LazyLinearReLU(10)
        >>> _ = layer(torch.randn(2, 16))
        >>> layer
        LinearReLU(in_features=16, out_features=10, bias=True)
    """

    cls_to_become = LinearReLU


def __getattr__(name: str) -> object:
    if name.startswith(
        "__"
    ):  # torch.nn is a package; this module must not seem one by its __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torch.nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
