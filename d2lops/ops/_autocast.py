"""`torch.autocast`, by the rules that it has for convolutions and linear layers.

Pooling and dropout have none there: they compute in the dtype that they are given.
"""

from typing import Any

import torch
from torch import Tensor

enabled = torch._C._is_any_autocast_enabled  # itself: every call asks


def cast(*arguments: Any) -> tuple:
    """The arguments, those that autocast means in its dtype; gradients come back in their own."""
    return tuple([_to_lower_precision(x) if isinstance(x, Tensor) else x for x in arguments])


def _to_lower_precision(x: Tensor) -> Tensor:
    """Floating-point numbers of no more than 32 bits, where autocast is on for their device."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return x
    if not x.is_floating_point() or x.dtype is torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))
