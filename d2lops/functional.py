"""`torch.nn.functional`, with d2lops operators where there is one.

``from d2lops import functional as F`` in place of ``import torch.nn.functional as F`` is all that a
script needs: names that d2lops does not have are handed on from torch.
"""

import torch.fx
import torch.nn.functional as _torch

from d2lops.ops.corr2d import conv2d, conv_relu2d, corr2d
from d2lops.ops.dropout import dropout
from d2lops.ops.linear_relu import linear, linear_relu
from d2lops.ops.pool2d import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    max_pool2d,
    pool2d,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "conv2d",
    "conv_relu2d",
    "corr2d",
    "dropout",
    "linear",
    "linear_relu",
    "max_pool2d",
    "pool2d",
]
for _name in __all__:  # for torch.fx, calls of torch's own kind: it does not look inside
    torch.fx.wrap(_name)


def __getattr__(name: str) -> object:
    return getattr(_torch, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})
