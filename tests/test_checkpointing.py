"""Activation checkpointing: what backward needs is computed again, or fetched from elsewhere."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from tests.device import normal, raw
from tests.every_layer import BOOK, IMAGES, book_network, every_layer

reentrant = pytest.mark.parametrize("use_reentrant", (True, False))


def trained(network: Module, images: Tensor, call: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The output for seed 0, and the gradients that `backward` leaves: all that reentrant knows."""
    images = images.clone().requires_grad_()
    network.zero_grad()
    torch.manual_seed(0)
    output = call(images)
    torch.manual_seed(1)  # what is drawn in between must not matter
    output.square().sum().backward()
    return [output.detach(), images.grad, *(p.grad for p in network.parameters())]


def assert_changes_nothing(network: Module, images: Tensor, call: Callable) -> None:
    """Not a bit: with another dropout mask, not one gradient would be the same."""
    expected = trained(network, images, network)
    assert all(map(torch.equal, trained(network, images, call), expected))


@reentrant
def test_of_every_layer(use_reentrant: bool) -> None:
    network = every_layer()
    assert_changes_nothing(
        network, normal(3, *IMAGES), partial(checkpoint, network, use_reentrant=use_reentrant)
    )


@reentrant
def test_by_segments(use_reentrant: bool) -> None:
    network = every_layer()
    assert_changes_nothing(
        network,
        normal(3, *IMAGES),
        lambda x: checkpoint_sequential(network, 3, x, use_reentrant=use_reentrant),
    )


@pytest.mark.parametrize("name", BOOK)
def test_of_the_books_networks(name: str) -> None:
    network, images = book_network(name)
    assert_changes_nothing(network, images, partial(checkpoint, network, use_reentrant=False))


class Calls(TorchDispatchMode):
    """Counts the operators that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(
        self, function: object, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.counts[function] += 1
        return function(*args, **(kwargs or {}))


def test_some_operators_may_be_kept() -> None:
    """Convolutions are saved, the rest is computed again."""
    network, images, calls = every_layer(), normal(3, *IMAGES), Calls()

    def policy(context: object, operator: object, *_: object, **__: object) -> CheckpointPolicy:
        kept = operator is raw.corr2d.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def call(x: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(network, x, use_reentrant=False, context_fn=contexts)

    assert_changes_nothing(network, images, call)
    with calls:
        trained(network, images, call)
    assert calls.counts[raw.corr2d.default] == 2  # there are two layers
    assert calls.counts[raw.dropout.default] == 3  # forward, again, and backward
    assert calls.counts[raw.max_pool2d.default] == 2  # forward and again


def test_in_a_compiled_graph() -> None:
    torch._dynamo.reset()
    network = every_layer()
    compiled = torch.compile(
        lambda x: checkpoint(network, x, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    assert_changes_nothing(network, normal(3, *IMAGES), compiled)


def test_on_the_cpu() -> None:
    """As torch offers it, to spare a GPU's memory."""
    network = every_layer()

    def call(x: Tensor) -> Tensor:
        with save_on_cpu():
            return network(x)

    assert_changes_nothing(network, normal(3, *IMAGES), call)
