"""Whole networks: a training step (forward, loss, backward, SGD) of what the book builds.

The same code builds a network from `torch.nn` and from `d2lops.nn`, with the same weights: what one
gains who changes the import, and nothing else. Rows marked "fused" have a layer and its ReLU as one
layer on our side, which takes a change of the network's code too.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import d2lops.nn
from benchmarks import device
from benchmarks.case import STEP, Arguments, Case, Comparison, Work
from examples import networks
from examples.lenet import lenet

CLASSES = 10


def cases() -> list[Case]:
    """Images as large as in the book, in batches small enough for about a second's step at most."""
    vgg11_narrow = functools.partial(networks.vgg11, narrower=4)
    return [
        _case("LeNet", lenet, batch=256, size=28, quick=True),
        _case("dropout MLP", networks.dropout_mlp, batch=256, size=28, quick=True),
        _case("dropout MLP", networks.dropout_mlp, batch=256, size=28, fused=True),
        _case("AlexNet", networks.alexnet, batch=16, size=224),
        _case("AlexNet", networks.alexnet, batch=16, size=224, fused=True),
        _case("VGG-11", networks.vgg11, batch=2, size=224),
        _case("VGG-11, channels / 4", vgg11_narrow, batch=16, size=224),
        _case("VGG-11, channels / 4", vgg11_narrow, batch=16, size=224, fused=True),
        _case("NiN", networks.nin, batch=16, size=224),
        _case("NiN", networks.nin, batch=16, size=224, fused=True),
        _case("GoogLeNet", networks.googlenet, batch=16, size=96),
        _case("GoogLeNet", networks.googlenet, batch=16, size=96, fused=True),
    ]


def cuda_cases() -> list[Case]:
    bfloat16 = {"dtype": torch.bfloat16, "channels_last": True}
    return [
        _case("LeNet", lenet, batch=256, size=28, quick=True),
        _case("AlexNet", networks.alexnet, batch=128, size=224, quick=True, **bfloat16),
        _case("AlexNet", networks.alexnet, batch=128, size=224, fused=True, **bfloat16),
        _case("VGG-11", networks.vgg11, batch=64, size=224, fused=True, **bfloat16),
    ]


def _case(
    name: str,
    build: Callable[..., torch.nn.Module],
    batch: int,
    size: int,
    fused: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    quick: bool = False,
) -> Case:
    images = (batch, 1, size, size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    twins = Twins(build, fused, images, dtype, layout)
    return TrainingStep(
        operator="network",
        family="network" + ", fused layers" * fused,
        name=f"{name} {'×'.join(map(str, images))}" + " fused" * fused,
        shapes=(images,),
        ours=lambda *batch: twins.ours(*batch),
        theirs=lambda *batch: twins.theirs(*batch),
        twins=twins,
        forward=Work(0),
        backward=Work(0),
        dtype=dtype,
        channels_last=channels_last,
        quick=quick,
    )


class Step:
    """A network and its optimizer; called, it trains the network and gives the loss before."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class Twins:
    """The network in d2lops and in torch, with the same weights, built when first asked for."""

    def __init__(
        self,
        build: Callable[..., torch.nn.Module],
        fused: bool,
        images: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.build, self.fused, self.images = build, fused, images
        self.dtype, self.layout = dtype, layout

    @functools.cached_property
    def theirs(self) -> Step:
        return Step(self._built(torch.nn))

    @functools.cached_property
    def ours(self) -> Step:
        network = self._built(d2lops.nn, **{"fused": True} if self.fused else {})
        network.load_state_dict(self.theirs.network.state_dict())
        return Step(network)

    def _built(self, nn: ModuleType, **fused: bool) -> torch.nn.Module:
        network = self.build(nn, **fused)
        network(torch.zeros(1, *self.images[1:]))  # lazy layers learn their sizes
        return network.to(device.name, self.dtype, memory_format=self.layout)

    def flops(self) -> int:
        """Of products, forward and backward; the images get no gradient."""
        network = copy.deepcopy(self.theirs.network).to("meta")
        with FlopCounterMode(display=False) as counter:
            images = torch.zeros(self.images, dtype=self.dtype, device="meta")
            network(images).sum().backward()
        return counter.get_total_flops()


@dataclass(frozen=True, kw_only=True)
class TrainingStep(Case):
    """A case whose sides are `Step`s: they change their own weights, and draw masks."""

    modes: ClassVar[tuple[str, ...]] = (STEP,)

    twins: Twins

    @property
    def python_counts(self) -> bool:
        return True

    def work(self, mode: str) -> Work:
        return Work(bytes=0, flops=self.twins.flops())

    def arguments(self, mode: str) -> Arguments:
        labels = torch.randint(CLASSES, self.shapes[0][:1], device=device.name)
        return Arguments((*self.inputs(), labels))

    def compiled(self) -> Step:
        """Forward and backward are compiled; the optimizer's few calls are not."""
        network = copy.deepcopy(self.twins.theirs.network)
        return Step(torch.compile(network, dynamic=False))

    def forwards(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        def forward(network: torch.nn.Module) -> Callable[..., Tensor]:
            return lambda images, labels: network(images)

        return forward(self.twins.ours.network), forward(self.twins.theirs.network)

    def comparison(self, mode: str) -> Comparison:
        """Of outputs without dropout, for the weights that torch's side has learned."""
        theirs = copy.deepcopy(self.twins.theirs.network).eval()
        ours = copy.deepcopy(self.twins.ours.network).eval()
        ours.load_state_dict(theirs.state_dict())
        exact = copy.deepcopy(theirs).double()
        return Comparison(ours, theirs, lambda output: exact, Arguments(self.inputs()))
