"""Models by others, of the `transformers` library, before and after `d2lops.convert`.

Small ones of what has been published, with random weights. A training step, as in `network.py`, and
a forward pass that evaluates, where a BatchNorm between a convolution and its ReLU may be folded.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import d2lops
from benchmarks import device, network
from benchmarks.case import FORWARD, Arguments, Case, Comparison, Work
from benchmarks.network import CLASSES, Step, TrainingStep


def cases() -> list[Case]:
    """Batches small enough for about half a second's step."""
    return [
        *_cases("ResNet-18", resnet, batch=4, size=128, quick=True),
        *_cases("RegNetY-200MF", regnet, batch=8, size=128),
        *_cases("MobileNetV2", mobilenet, batch=8, size=128),
        *_cases("ConvNeXt-Atto", convnext, batch=8, size=128),
    ]


def cuda_cases() -> list[Case]:
    bfloat16 = {"dtype": torch.bfloat16, "channels_last": True}
    return [
        *_cases("ResNet-18", resnet, batch=64, size=224, quick=True, **bfloat16),
        *_cases("MobileNetV2", mobilenet, batch=64, size=224, **bfloat16),
    ]


# The models. `transformers` takes seconds to import: with the first of them.


def resnet() -> torch.nn.Module:
    return _model(
        "ResNet", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )


def regnet() -> torch.nn.Module:
    return _model("RegNet", hidden_sizes=[24, 56, 152, 368], depths=[1, 1, 4, 7], groups_width=8)


def mobilenet() -> torch.nn.Module:
    return _model("MobileNetV2")


def convnext() -> torch.nn.Module:
    return _model("ConvNext", hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2])


def _model(name: str, **arguments: Any) -> torch.nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(num_labels=CLASSES, **arguments)
    return Logits(getattr(transformers, f"{name}ForImageClassification")(config))


class Logits(torch.nn.Module):
    """A model of `transformers` that gives the tensor alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


# The cases.


class Twins(network.Twins):
    """A model, and its converted copy."""

    @functools.cached_property
    def theirs(self) -> Step:
        return Step(self.build().to(device.name, self.dtype, memory_format=self.layout))

    @functools.cached_property
    def ours(self) -> Step:
        model = copy.deepcopy(self.theirs.network)
        d2lops.convert(model)
        return Step(model)

    def forward_counts(self) -> FlopCounterMode:
        model = copy.deepcopy(self.theirs.network).to("meta")
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(self.images, dtype=self.dtype, device="meta"))
        return counter

    def flops(self) -> int:
        """Thrice those of forward, less one for the first layer: the images get no gradient.

        Backward itself is not counted: `FlopCounterMode` multiplies it by the number of groups.
        """
        layers = self.theirs.network.named_modules()
        first = next(name for name, layer in layers if isinstance(layer, torch.nn.Conv2d))
        counter = self.forward_counts()
        of_first = counter.get_flop_counts()[f"Logits.{first}"]
        return 3 * counter.get_total_flops() - sum(of_first.values())


@dataclass(frozen=True, kw_only=True)
class Evaluation(Case):
    """A case whose sides are the forwards of twins that evaluate; nothing waits for backward."""

    modes: ClassVar[tuple[str, ...]] = (FORWARD,)

    twins: Twins

    @property
    def python_counts(self) -> bool:
        return True

    def work(self, mode: str) -> Work:
        return Work(bytes=0, flops=self.twins.forward_counts().get_total_flops())

    def compiled(self) -> Callable[..., Tensor]:
        model = torch.compile(self.twins.theirs.network, dynamic=False)
        return lambda images: _evaluated(model, images)

    def comparison(self, mode: str) -> Comparison:
        model = copy.deepcopy(self.twins.theirs.network).double()
        arguments = Arguments(self.inputs())
        return Comparison(
            self.ours, self.theirs, lambda output: functools.partial(_evaluated, model), arguments
        )


def _evaluated(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def _cases(
    name: str,
    build: Callable[[], torch.nn.Module],
    batch: int,
    size: int,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    quick: bool = False,
) -> list[Case]:
    images = (batch, 3, size, size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    trained = Twins(build, False, images, dtype, layout)
    evaluated = Twins(lambda: build().eval(), False, images, dtype, layout)
    name = f"{name} {'×'.join(map(str, images))}"
    common: dict[str, Any] = {
        "operator": "converted",
        "family": "converted",
        "shapes": (images,),
        "forward": Work(0),
        "backward": Work(0),
        "dtype": dtype,
        "channels_last": channels_last,
    }
    return [
        TrainingStep(
            name=name,
            ours=lambda *batch: trained.ours(*batch),
            theirs=lambda *batch: trained.theirs(*batch),
            twins=trained,
            **common,
        ),
        Evaluation(
            name=f"{name} evaluates",
            ours=lambda images: _evaluated(evaluated.ours.network, images),
            theirs=lambda images: _evaluated(evaluated.theirs.network, images),
            twins=evaluated,
            quick=quick,  # compiled in half of the time that a training step takes
            **common,
        ),
    ]
