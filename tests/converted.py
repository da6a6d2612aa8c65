"""A model converted and not, side by side: for tests of what convert does."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import d2lops
from tests.device import normal, raw

IMAGE = normal(2, 3, 12, 14)


class Calls(TorchDispatchMode):
    """Names of the operators of this library that are called; with "+relu" where that is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == raw.name:
            name = operator._opname
            self.names.append(name + "+relu" * (name == "corr2d" and args[4]))
        return operator(*args, **(kwargs or {}))


def calls(model: nn.Module, *inputs: Tensor) -> list[str]:
    with Calls() as seen, torch.no_grad():
        model(*inputs)
    return seen.names


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    weights = torch.arange(y.numel(), device=y.device).cos().view_as(y).to(y.dtype)
    wanted = [leaf, *(p for p in model.parameters() if p.requires_grad)]
    found = torch.autograd.grad(y, wanted, weights, allow_unused=True)
    return [y.detach(), *(gradient for gradient in found if gradient is not None)]


def assert_same(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    for ours, theirs in zip(gradients(model, x), gradients(other, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def converted(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    """The model converted, proven to do what it did, and to be what it was once reverted."""
    original = copy.deepcopy(model)
    d2lops.convert(model, **options)
    assert_same(model, original, x)
    d2lops.revert(model)
    for was, now in zip(original.modules(), model.modules(), strict=True):
        assert type(was) is type(now) and was.__dict__.keys() == now.__dict__.keys()
    d2lops.convert(model, **options)
    return model


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: row.note for row in d2lops.convert(model).rows if row.now == "torch"}
