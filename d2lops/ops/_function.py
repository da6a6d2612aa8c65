"""What every operator's autograd.Function shares."""

import functools
import operator
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.autograd import forward_ad


class Function(torch.autograd.Function):
    """`torch.autograd.Function` in the form that functorch needs (`setup_context`), called cheaply.

    What a node of the graph costs is more than a small layer's kernel takes, so there is one only
    where a derivative may be asked for: not in inference, nor in a backward that is not itself
    differentiated. And `torch.autograd.Function.apply` binds the arguments to forward's signature,
    for defaults that the Functions here do not have; only functorch needs what else it does.

    A batch of calls is what `forward` and `backward` make of batched tensors: raw operators have
    batching rules.

    In forward mode, `tangent` is what torch calls `jvp`: it takes the inputs' tangents (None where
    there is none) to the output's, and finds the tensors that `setup_context` saved for backward.
    """

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            args = [_Whole(arg) if isinstance(arg, tuple) else arg for arg in args]
            return super(Function, _in_forward_mode(cls)).apply(*args)
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if getattr(arg, "requires_grad", False):  # half the time of asking for its type
                    return super(torch.autograd.Function, cls).apply(*args)
        return cls.forward(*args)


def total(*terms: Tensor | None) -> Tensor:
    """The sum of those terms of a tangent that there are."""
    return functools.reduce(operator.add, [term for term in terms if term is not None])


@functools.cache
def _in_forward_mode(function: type[Function]) -> type[Function]:
    """A subclass that has a `jvp`, and ahead of it saves what it needs.

    Not the class itself: the compiler looks into no autograd.Function that has one.
    """

    class InForwardMode(function):
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
            function.setup_context(_BothModes(ctx), inputs, output)
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            if all(g is None for g in gradients):
                return (None,) * len(ctx.needs_input_grad)
            return function.backward(ctx, *gradients)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            # Off here, by which forward modes around this one would lose the tangent's own tangent.
            with forward_ad._set_fwd_grad_enabled(True):
                return function.tangent(_BothModes(ctx), *tangents)

    return InForwardMode


class _Whole(tuple):
    """A tuple that is one argument to torch: vmap in forward mode counts an ordinary one's elements
    as arguments, but only one tangent for all of them.
    """


class _BothModes:
    """A context that saves for `jvp` what it saves for backward, and all that either may need."""

    def __init__(self, ctx: Any) -> None:
        object.__setattr__(self, "_ctx", ctx)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._ctx, name, value)

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        return (True,) * len(self._ctx.needs_input_grad)

    @property
    def saved_tensors(self) -> list[Tensor | None]:
        """As they are, without the tangents that `jvp` is told of apart."""
        return [x if x is None else _primal(x) for x in self._ctx.saved_tensors]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self._ctx.save_for_backward(*tensors)
        self._ctx.save_for_forward(*tensors)


def _primal(x: Tensor) -> Tensor:
    """`x` without its tangent. Of a batch, which vmap has no rule for, what it is made of."""
    if not functorch.is_batchedtensor(x):
        return forward_ad.unpack_dual(x).primal
    value, dim, level = (
        get(x)
        for get in (functorch.get_unwrapped, functorch.maybe_get_bdim, functorch.maybe_get_level)
    )
    return functorch._add_batch_dim(_primal(value), dim, level)
