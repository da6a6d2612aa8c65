"""What every operator's autograd.Function shares."""

from typing import Any

import torch
from torch.autograd import forward_ad


class Function(torch.autograd.Function):
    """`torch.autograd.Function` in the form that functorch needs (`setup_context`), called cheaply.

    What a node of the graph costs is more than a small layer's kernel takes, so there is one only
    where a derivative may be asked for: not in inference, nor in a backward that is not itself
    differentiated. And `torch.autograd.Function.apply` binds the arguments to forward's signature,
    for defaults that the Functions here do not have; only functorch needs what else it does.

    A batch of calls is what `forward` and `backward` make of batched tensors: raw operators have
    batching rules.
    """

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        if _wants_grad(args):
            return super(torch.autograd.Function, cls).apply(*args)
        return cls.forward(*args)


def _wants_grad(args: tuple) -> bool:
    """Whether a derivative of a function of `args` may be asked for."""
    if torch.is_grad_enabled():
        for arg in args:
            if getattr(arg, "requires_grad", False):  # half the time of asking for its type first
                return True
    return forward_ad._current_level >= 0
