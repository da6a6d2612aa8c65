"""`torch.nn.functional`, with d2lops operators where there is one.

``from d2lops import functional as F`` in place of ``import torch.nn.functional as F`` is all that a
script needs: names that d2lops does not have are handed on from torch.
"""

import torch.nn.functional as _torch

from d2lops.ops.dropout import dropout

__all__ = ["dropout"]


def __getattr__(name: str) -> object:
    return getattr(_torch, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})
