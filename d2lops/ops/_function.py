"""What every operator's autograd.Function shares."""

from typing import Any

import torch
from torch.autograd import forward_ad


class Function(torch.autograd.Function):
    """`torch.autograd.Function` in the form that functorch needs (`setup_context`), called cheaply.

    `torch.autograd.Function.apply` binds the arguments to forward's signature on every call, for
    defaults that the Functions here do not have, which costs more than a small layer's kernel. Only
    under a functorch transform does it do more, so only there is it called.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)


def wants_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether a derivative may be asked for: if not, the raw operator does, without a Function."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
