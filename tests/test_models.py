"""Models by others, converted: what they were in all but the kernels.

Those of `transformers` are built from small configurations, with random weights; nothing is
fetched. Blocks are written here as they are in torchvision and in the papers. How many layers of
each become one with their ReLU is told, so that it shows if a forward can no longer be traced.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import d2lops
from d2lops.convert import OURS, THEIRS
from d2lops.fusion import Fused
from tests.accuracy import assert_as_accurate_as_torch, outputs_and_gradients
from tests.device import normal

pytestmark = pytest.mark.usefixtures("one_thread")


# The models. No masks are drawn: d2lops's are others than torch's.


def resnet() -> Module:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=5)
    return ResNetForImageClassification(config)


def resnet_of_basic_blocks() -> Module:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5
    )
    return ResNetForImageClassification(config)


def regnet() -> Module:
    config = RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, num_labels=5
    )
    return RegNetForImageClassification(config)


def convnext() -> Module:
    config = ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, layer_scale_init_value=1.0, num_labels=5
    )
    return ConvNextForImageClassification(config)


def mobilenet() -> Module:
    config = MobileNetV2Config(
        depth_multiplier=0.25,
        depth_divisible_by=4,
        min_depth=4,
        expand_ratio=2,
        output_stride=8,
        classifier_dropout_prob=0,
        finegrained_output=False,
        num_labels=5,
    )
    return MobileNetV2ForImageClassification(config)


class Residual(Module):
    """The sum is made in place, and one ReLU, in place as well, serves twice."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1 or inputs != channels:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, channels, 1, stride, bias=False),
                torch.nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def residual() -> Module:
    return torch.nn.Sequential(Residual(3, 6, stride=2), Residual(6, 6, stride=1))


class ConvNormReLU(Module):
    def __init__(self, inputs: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, channels, size, padding=size // 2, bias=False)
        self.bn = torch.nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(Module):
    """Its pooling is a function, and one branch ends in two."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = ConvNormReLU(3, 4, 1)
        self.wide = torch.nn.Sequential(ConvNormReLU(3, 2, 1), ConvNormReLU(2, 4, 3))
        self.end1 = ConvNormReLU(4, 2, 1)
        self.end2 = ConvNormReLU(4, 2, 3)
        self.pooled = ConvNormReLU(3, 4, 1)

    def _branches(self, x: Tensor) -> list[Tensor]:
        wide = self.wide(x)
        ends = torch.cat([self.end1(wide), self.end2(wide)], 1)
        return [self.narrow(x), ends, self.pooled(F.avg_pool2d(x, 3, stride=1, padding=1))]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self._branches(x), 1)


class LeNet(Module):
    """Layers are attributes; all else are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 6, 5)
        self.conv2 = torch.nn.Conv2d(6, 8, 5)
        self.fc1 = torch.nn.Linear(8 * 5 * 5, 12)
        self.fc2 = torch.nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), (2, 2))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class SqueezeExcitation(Module):
    """The classes of the activations are arguments."""

    def __init__(self, activation: type = torch.nn.ReLU, gate: type = torch.nn.Sigmoid) -> None:
        super().__init__()
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc1 = torch.nn.Conv2d(3, 2, 1)
        self.fc2 = torch.nn.Conv2d(2, 3, 1)
        self.activation = activation()
        self.gate = gate()

    def _scale(self, x: Tensor) -> Tensor:
        return self.gate(self.fc2(self.activation(self.fc1(self.avgpool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(x) * x


class DenseLayer(Module):
    """Takes a tensor or a list of them; normalises first. Ends in dropout that is off."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = torch.nn.BatchNorm2d(inputs)
        self.conv1 = torch.nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(2 * growth)
        self.conv2 = torch.nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.drop_rate = 0.0

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        features = [x] if isinstance(x, Tensor) else x
        bottleneck = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        new = self.conv2(F.relu(self.norm2(bottleneck)))
        return F.dropout(new, self.drop_rate, self.training) if self.drop_rate > 0 else new


class DenseBlock(torch.nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__({f"layer{i}": DenseLayer(3 + 2 * i, growth=2) for i in range(3)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class Expected(NamedTuple):
    """What a report should say: of layers and functions, how many are d2lops's; how many fused."""

    make: Callable[[], Module]
    converted: int
    fused: int


MODELS = [
    Expected(resnet, converted=15, fused=7),
    Expected(resnet_of_basic_blocks, converted=11, fused=4),
    Expected(regnet, converted=23, fused=10),
    Expected(convnext, converted=12, fused=0),  # its activation is GELU
    Expected(mobilenet, converted=55, fused=0),  # and here ReLU6
]
BLOCKS = [
    Expected(residual, converted=5, fused=2),
    Expected(Inception, converted=7, fused=6),
    Expected(LeNet, converted=6, fused=3),
    Expected(SqueezeExcitation, converted=3, fused=1),
    Expected(DenseBlock, converted=6, fused=0),  # isinstance: not traced
]


def with_each(rows: list[Expected]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "make", [row.make for row in rows], ids=[row.make.__name__ for row in rows]
    )


def built(make: Callable[[], Module], training: bool = False) -> Module:
    """With weights of norms and statistics unlike those of new ones, which change nothing."""
    torch.manual_seed(0)
    model = make().train(training)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(std=0.2)
    return model


def as_function(model: Module, layout: torch.memory_format) -> Callable[..., Tensor]:
    """The output for images and all parameters, as one vector; at each call, with new statistics.

    One vector, since how a rounding error is spread over the parameters is chance: it is the
    largest of all that the rule of accuracy.py is about.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def function(images: Tensor, parameters: Tensor) -> Tensor:
        pieces = parameters.split([shape.numel() for shape in shapes.values()])
        tensors = {
            name: _laid_out(piece.view(shape), layout)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
        for name, buffer in model.named_buffers():
            dtype = images.dtype if buffer.is_floating_point() else buffer.dtype
            tensors[name] = buffer.to(dtype, copy=True)
        result = functional_call(model, tensors, _laid_out(images, layout))
        return result if isinstance(result, Tensor) else result.logits

    return function


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout) if x.dim() == 4 else x


def inputs(model: Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    vector = torch.cat([p.detach().flatten() for p in model.parameters()])
    return normal(4, 3, 32, 32).to(dtype), vector.to(dtype)


def all_results(model: Module) -> list[Tensor]:
    function, tensors = as_function(model, torch.contiguous_format), inputs(model, torch.float32)
    return outputs_and_gradients(function, tensors, torch.ones_like(function(*tensors)))


def layer_types(model: Module) -> list[type]:
    return [type(module) for module in model.modules()]


@with_each(MODELS + BLOCKS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_output_and_all_gradients(
    make: Callable[[], Module],
    training: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    theirs, ours = built(make, training), built(make, training)
    d2lops.convert(ours)
    assert_as_accurate_as_torch(
        as_function(ours, layout), as_function(theirs, layout), *inputs(theirs, dtype)
    )


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels of a layer and its ReLU, as they are called."""
    called = []

    def counted(name: str, kernel: Callable) -> Callable:
        def function(*args: object, **kwargs: object) -> Tensor:
            called.append(name)
            return kernel(*args, **kwargs)

        return function

    for name in ("conv_relu2d", "linear_relu"):
        kernel = getattr(d2lops.functional, name)
        monkeypatch.setattr(d2lops.functional, name, counted(name, kernel))
    return called


@pytest.mark.parametrize("row", MODELS + BLOCKS, ids=lambda row: row.make.__name__)
def test_report_and_run_tell_of_the_same_kernels(row: Expected, fused_calls: list[str]) -> None:
    model = built(row.make)
    ours = [told for told in d2lops.convert(model).rows if told.now == "d2lops"]
    assert len(ours) == row.converted
    assert sum(told.note.startswith("one with") for told in ours) == row.fused
    assert not any(type(module) in OURS for module in model.modules())
    model(normal(16, 3, 32, 32))  # as many as make it worth to fold each norm
    assert len(fused_calls) == row.fused


@pytest.mark.parametrize("size, folded", [(6, False), (7, True)])
def test_norms_are_folded_where_weights_are_fewer_than_pixels(
    size: int, folded: bool, fused_calls: list[str]
) -> None:
    model = built(lambda: ConvNormReLU(4, 5, 3))
    images = normal(1, 4, size, size)
    expected = model(images)
    d2lops.convert(model)
    torch.testing.assert_close(model(images), expected)
    assert fused_calls == ["conv_relu2d"] * folded


@with_each(MODELS + BLOCKS)
def test_names_stay_and_revert_restores_every_bit(make: Callable[[], Module]) -> None:
    model = built(make)
    before, types = all_results(model), layer_types(model)
    names, tensors = model.state_dict().keys(), [*model.state_dict(keep_vars=True).values()]
    d2lops.convert(model)
    assert layer_types(model) != types
    assert model.state_dict().keys() == names
    now = model.state_dict(keep_vars=True).values()
    assert all(a is b for a, b in zip(now, tensors, strict=True))
    d2lops.revert(model)
    assert layer_types(model) == types
    assert all(torch.equal(a, b) for a, b in zip(all_results(model), before, strict=True))


@with_each(MODELS + BLOCKS)
def test_learns_the_same(make: Callable[[], Module]) -> None:
    """Parameters and running statistics, after steps in which either learns from the last."""
    states = []
    for convert in (False, True):
        model = built(make, training=True).double()
        if convert:
            d2lops.convert(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for step in range(3):
            result = model(normal(4, 3, 32, 32, seed=step).double())
            result = result if isinstance(result, Tensor) else result.logits
            result.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(model.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=1e-9, atol=1e-11)


@with_each(MODELS)
def test_copies_are_converted_too(make: Callable[[], Module]) -> None:
    model = built(make)
    d2lops.convert(model)
    copied = copy.deepcopy(model)
    assert layer_types(copied) == layer_types(model)
    assert all(
        torch.equal(a, b) for a, b in zip(all_results(copied), all_results(model), strict=True)
    )
    with torch.no_grad():
        next(copied.parameters()).zero_()
    d2lops.revert(copied)
    assert not any(
        type(module) in THEIRS or isinstance(module, Fused) for module in copied.modules()
    )
    assert any(type(module) in THEIRS for module in model.modules())
    assert next(model.parameters()).any()


@with_each(MODELS)
def test_what_is_saved_is_torchs_model(make: Callable[[], Module], tmp_path: Path) -> None:
    model = built(make)
    before = all_results(model)
    d2lops.convert(model)
    ours = all_results(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(all_results(loaded), before, strict=True))
    d2lops.convert(loaded)
    assert all(torch.equal(a, b) for a, b in zip(all_results(loaded), ours, strict=True))


def test_class_of_a_converted_model_makes_unconverted_ones() -> None:
    model = residual()
    d2lops.convert(model)
    assert isinstance(model[0], Fused)
    made = type(model[0])(3, 6, stride=2)
    made.load_state_dict(model[0].state_dict())
    assert not any(type(module) in THEIRS for module in made.modules())
    torch.testing.assert_close(made(normal(4, 3, 8, 8)), model[0](normal(4, 3, 8, 8)))
    d2lops.revert(made)
    assert type(made) is Residual


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_compiles_as_one_graph(training: bool) -> None:
    model = built(resnet, training)
    d2lops.convert(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = normal(4, 3, 32, 32)
    statistics = copy.deepcopy(dict(model.named_buffers()))
    results = []
    for forward in (model, compiled):
        model.load_state_dict(statistics, strict=False)
        logits = forward(images).logits
        results.append([logits, *torch.autograd.grad(logits.sum(), [*model.parameters()])])
        results[-1].extend(copy.deepcopy([*model.buffers()]))
    torch.testing.assert_close(*results)
