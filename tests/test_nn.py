"""Layers: torch's in all but the kernels they call."""

import copy
import doctest
import importlib
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import d2lops
from d2lops import nn
from tests.device import cpu_only, normal
from tests.every_layer import every_layer

IMAGE = normal(2, 4, 9, 11)
ROWS = normal(3, 5, 11)

# How to make a layer, from torch.nn or from d2lops.nn, and an input for it.
LAYERS: list[tuple[str, Callable, Tensor]] = [
    ("Conv2d", lambda nn: nn.Conv2d(4, 6, 3), IMAGE),
    ("Conv2d", lambda nn: nn.Conv2d(4, 6, (3, 2), 2, (1, 0), (1, 2), 2, False), IMAGE),
    ("Conv2d", lambda nn: nn.Conv2d(4, 6, 3, padding="valid"), IMAGE[0]),
    ("MaxPool2d", lambda nn: nn.MaxPool2d(2), IMAGE),
    ("MaxPool2d", lambda nn: nn.MaxPool2d((3, 2), (1, 2), (1, 0), (1, 2), ceil_mode=True), IMAGE),
    ("AvgPool2d", lambda nn: nn.AvgPool2d(2), IMAGE[0]),
    ("AvgPool2d", lambda nn: nn.AvgPool2d(3, 2, 1, True, False), IMAGE),
    ("AvgPool2d", lambda nn: nn.AvgPool2d((3, 2), divisor_override=5), IMAGE),
    ("AdaptiveMaxPool2d", lambda nn: nn.AdaptiveMaxPool2d((3, None)), IMAGE),
    ("AdaptiveAvgPool2d", lambda nn: nn.AdaptiveAvgPool2d((2, 3)), IMAGE),
    ("AdaptiveAvgPool2d", lambda nn: nn.AdaptiveAvgPool2d(1), IMAGE[0]),
    ("Dropout", lambda nn: nn.Dropout(0.2), IMAGE),
    ("Linear", lambda nn: nn.Linear(11, 7), ROWS),
    ("Linear", lambda nn: nn.Linear(11, 7, bias=False), ROWS[0, 0]),
    ("LazyConv2d", lambda nn: nn.LazyConv2d(6, 3, 2, 1, 1, 2), IMAGE),
    ("LazyConv2d", lambda nn: nn.LazyConv2d(6, (3, 2), bias=False), IMAGE[0]),
    ("LazyLinear", lambda nn: nn.LazyLinear(7), ROWS),
    ("LazyLinear", lambda nn: nn.LazyLinear(7, bias=False), ROWS),
]
FUSED: list[tuple[str, Callable, Callable, Tensor]] = [
    (
        "ConvReLU2d",
        lambda: nn.ConvReLU2d(4, 6, 3, padding=1),
        lambda: torch.nn.Conv2d(4, 6, 3, padding=1),
        IMAGE,
    ),
    (
        "LazyConvReLU2d",
        lambda: nn.LazyConvReLU2d(6, 3, padding=1),
        lambda: torch.nn.LazyConv2d(6, 3, padding=1),
        IMAGE,
    ),
    ("LinearReLU", lambda: nn.LinearReLU(11, 7), lambda: torch.nn.Linear(11, 7), ROWS),
    ("LazyLinearReLU", lambda: nn.LazyLinearReLU(7), lambda: torch.nn.LazyLinear(7), ROWS),
]
layers = pytest.mark.parametrize(
    "name, make, x", LAYERS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(LAYERS)]
)
fused = pytest.mark.parametrize("name, make, make_linear, x", FUSED, ids=[row[0] for row in FUSED])


def own_layers() -> dict[str, type]:
    return {
        name: layer
        for name, layer in vars(nn).items()
        if inspect.isclass(layer) and layer.__module__ == "d2lops.nn"
    }


def seeded(make: Callable, *arguments: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return make(*arguments)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Layers hand numbers over; how exact a kernel is, its own tests tell."""
    torch.testing.assert_close(ours, theirs)


def saved_and_loaded(module: torch.nn.Module) -> torch.nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


class TestEveryLayer:
    @layers
    def test_is_torchs_layer(self, name: str, make: Callable, x: Tensor) -> None:
        ours, theirs = seeded(make, nn), seeded(make, torch.nn)
        assert type(ours) is getattr(nn, name) and isinstance(ours, type(theirs))
        assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
        assert repr(ours) == repr(theirs)
        assert ours.__dict__.keys() == theirs.__dict__.keys()

    @layers
    def test_same_seed_same_parameters_and_results(
        self, name: str, make: Callable, x: Tensor
    ) -> None:
        ours, theirs = seeded(make, nn).eval(), seeded(make, torch.nn).eval()
        torch.manual_seed(2)  # lazy layers draw their parameters now
        expected = theirs(x)
        torch.manual_seed(2)
        assert_close(ours(x), expected)
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key

    @layers
    def test_gradients(self, name: str, make: Callable, x: Tensor) -> None:
        ours, theirs = make(nn).eval(), make(torch.nn).eval()
        ours(x), theirs(x)
        ours.load_state_dict(theirs.state_dict())
        gradients = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            wanted = [leaf, *layer.parameters()]
            gradients.append(torch.autograd.grad(layer(leaf).square().sum(), wanted))
        for our, their in zip(*gradients, strict=True):
            assert_close(our, their)

    @layers
    def test_state_dict_goes_back_and_forth(self, name: str, make: Callable, x: Tensor) -> None:
        ours, theirs = make(nn).eval(), make(torch.nn).eval()
        ours(x), theirs(x)
        ours.load_state_dict(theirs.state_dict())
        assert_close(ours(x), theirs(x))
        other = make(torch.nn).eval()  # a lazy layer that has seen no input yet
        other.load_state_dict(ours.state_dict())
        assert_close(other(x), ours(x))

    @layers
    @pytest.mark.parametrize(
        "copied", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded)
    )
    def test_copies(self, name: str, make: Callable, x: Tensor, copied: Callable) -> None:
        layer = make(nn).eval()
        if name.startswith("Lazy"):
            blank = copied(layer)
            assert type(blank) is type(layer)
            blank(x)
            assert type(blank) is type(layer).cls_to_become
        layer(x)
        twin = copied(layer)
        assert type(twin) is type(layer) and repr(twin) == repr(layer)
        assert torch.equal(twin(x), layer(x))

    @layers
    def test_a_torch_layer_becomes_ours_by_its_class_alone(
        self, name: str, make: Callable, x: Tensor
    ) -> None:
        layer = make(torch.nn).eval()
        expected = layer(x)
        layer.__class__ = getattr(nn, type(layer).__name__)
        assert_close(layer(x), expected)

    @layers
    def test_dtype_and_device(self, name: str, make: Callable, x: Tensor) -> None:
        class Doubled:
            """torch.nn or d2lops.nn, with dtype=torch.float64 given to every layer."""

            def __init__(self, module: object) -> None:
                self.module = module

            def __getattr__(self, name: str) -> Callable:
                layer = getattr(self.module, name)
                if "dtype" not in inspect.signature(layer).parameters:
                    return layer
                return lambda *a, **k: layer(*a, **k, dtype=torch.float64, device=x.device)

        ours, theirs = make(Doubled(nn)).eval(), make(Doubled(torch.nn)).eval()
        ours(x.double()), theirs(x.double())
        ours.load_state_dict(theirs.state_dict())
        assert all(p.dtype == torch.float64 for p in ours.parameters())
        assert_close(ours(x.double()), theirs(x.double()))

    @layers
    def test_meta_tensors_have_shapes(self, name: str, make: Callable, x: Tensor) -> None:
        expected = make(torch.nn)(x)
        with torch.device("meta"):
            layer = make(nn)
        y = layer(x.to("meta"))
        assert y.device.type == "meta" and y.shape == expected.shape

    def test_none_is_left_out(self) -> None:
        tested = {name for name, *_ in LAYERS} | {name for name, *_ in FUSED}
        assert tested == own_layers().keys()
        in_network = {type(layer).__name__ for layer in every_layer()}
        assert in_network >= {name for name in own_layers() if not name.startswith("Lazy")}


class TestFusedLayers:
    @fused
    def test_is_the_linear_layer_and_a_relu(
        self, name: str, make: Callable, make_linear: Callable, x: Tensor
    ) -> None:
        ours, linear = seeded(make), seeded(make_linear)
        assert type(ours) is getattr(nn, name)
        torch.manual_seed(2)
        expected = torch.nn.functional.relu(linear(x))
        torch.manual_seed(2)
        y = ours(x)
        assert (expected == 0).any() and (expected > 0).any()
        assert_close(y, expected)
        assert type(ours).__name__ == name.removeprefix("Lazy")
        assert repr(ours).partition("(")[2] == repr(linear).partition("(")[2]
        assert ours.state_dict().keys() == linear.state_dict().keys()
        gradients = [
            torch.autograd.grad(y.square().sum(), ours.parameters()),
            torch.autograd.grad(expected.square().sum(), linear.parameters()),
        ]
        for our, their in zip(*gradients, strict=True):
            assert_close(our, their)

    @fused
    def test_copies(self, name: str, make: Callable, make_linear: Callable, x: Tensor) -> None:
        for copied in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded):
            layer = make()
            assert type(copied(layer)) is type(layer)
            y = layer(x)
            assert torch.equal(copied(layer)(x), y)

    def test_classes(self) -> None:
        assert issubclass(nn.ConvReLU2d, nn.Conv2d)
        assert issubclass(nn.LinearReLU, nn.Linear)
        assert issubclass(nn.LazyConvReLU2d, (nn.LazyConv2d, nn.ConvReLU2d))
        assert issubclass(nn.LazyLinearReLU, (nn.LazyLinear, nn.LinearReLU))


class TestPadding:
    MODES = ("zeros", "reflect", "replicate", "circular")

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("padding", (0, 1, (2, 1), "valid", "same"))
    @pytest.mark.parametrize("kernel", (3, (2, 5), (4, 1)))
    @pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's copies
    def test_every_mode(self, mode: str, padding: object, kernel: object) -> None:
        for x in (IMAGE, IMAGE[0]):
            ours, theirs = (
                seeded(lambda nn: nn.Conv2d(4, 6, kernel, padding=padding, padding_mode=mode), nn)
                for nn in (d2lops.nn, torch.nn)
            )
            assert_close(ours(x), theirs(x))

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("layer", (nn.Conv2d, nn.ConvReLU2d))
    def test_four_numbers(self, mode: str, layer: type) -> None:
        top, bottom, left, right = padding = (1, 2, 0, 3)
        ours = layer(4, 6, 3, stride=2, padding=padding, padding_mode=mode)
        assert "padding=(1, 2, 0, 3)" in repr(ours)
        padded = torch.nn.functional.pad(
            IMAGE, (left, right, top, bottom), "constant" if mode == "zeros" else mode
        )
        expected = torch.nn.functional.conv2d(padded, ours.weight, ours.bias, stride=2)
        if layer is nn.ConvReLU2d:
            expected = expected.relu()
        assert_close(ours(IMAGE), expected)
        assert torch.equal(copy.deepcopy(ours)(IMAGE), ours(IMAGE))

    def test_four_numbers_lazy(self) -> None:
        layer = nn.LazyConv2d(6, 3, padding=(1, 2, 0, 3))
        assert layer(IMAGE).shape == (2, 6, 9 + 3 - 2, 11 + 3 - 2)

    @pytest.mark.parametrize("layer", (nn.Conv2d, nn.ConvReLU2d))
    def test_same_with_an_even_kernel_makes_no_copy(self, layer: type) -> None:
        """Nothing but input, weight, bias and the ReLU's output is kept for backward."""
        ours = layer(4, 6, (4, 2), padding="same")
        shapes = []

        def pack(x: Tensor) -> Tensor:
            shapes.append(x.shape)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = ours(IMAGE)
        assert {*shapes} <= {IMAGE.shape, ours.weight.shape, ours.bias.shape, y.shape}

    def test_other_numbers_of_numbers_are_errors(self) -> None:
        for padding in ((1, 2, 3), (1, 2, 3, 4, 5)):
            with pytest.raises(RuntimeError, match="padding"):
                nn.Conv2d(4, 6, 3, padding=padding)(IMAGE)

    def test_weight_may_be_replaced_on_the_way(self) -> None:
        """Subclasses that reparametrise the weight call `_conv_forward`, as they do with torch."""
        layer = nn.Conv2d(4, 6, 3)
        y = layer._conv_forward(IMAGE, 2 * layer.weight, None)
        assert_close(y, torch.nn.functional.conv2d(IMAGE, 2 * layer.weight))


class TestPooling:
    def test_indices(self) -> None:
        for make in (
            lambda nn: nn.MaxPool2d(3, 2, 1, return_indices=True),
            lambda nn: nn.AdaptiveMaxPool2d((3, 4), return_indices=True),
        ):
            for ours, theirs in zip(make(nn)(IMAGE), make(torch.nn)(IMAGE), strict=True):
                assert torch.equal(ours, theirs)
        pooled, indices = nn.MaxPool2d(2, return_indices=True)(IMAGE)
        unpooled = nn.MaxUnpool2d(2)(pooled, indices, output_size=IMAGE.shape)
        assert torch.equal(unpooled, torch.where(unpooled != 0, IMAGE, 0))
        assert (unpooled != 0).sum() == pooled.numel()


class TestDropout:
    def test_training_and_evaluation(self) -> None:
        layer = nn.Dropout(0.5)
        x = torch.ones(1000)
        torch.manual_seed(0)
        y = layer(x)
        torch.manual_seed(0)
        assert torch.equal(y, nn.functional.dropout(x, 0.5))
        assert {*y.tolist()} == {0.0, 2.0}
        assert layer.eval()(x) is x

    def test_inplace(self) -> None:
        x = torch.ones(1000)
        assert nn.Dropout(0.5, inplace=True)(x) is x
        assert {*x.tolist()} == {0.0, 2.0}

    @pytest.mark.parametrize("p", (-0.1, 1.5))
    def test_probability(self, p: float) -> None:
        with pytest.raises(ValueError, match="between 0 and 1"):
            nn.Dropout(p)


class TestModule:
    def test_other_names_are_torchs(self) -> None:
        assert nn.Sequential is torch.nn.Sequential
        assert nn.ReLU is torch.nn.ReLU
        assert nn.init is torch.nn.init
        assert nn.utils is torch.nn.utils
        assert nn.Parameter is torch.nn.Parameter

    def test_functional_is_ours(self) -> None:
        assert nn.functional is d2lops.functional
        assert nn.functional.dropout is not torch.nn.functional.dropout
        assert nn.functional.gelu is torch.nn.functional.gelu

    def test_missing_names_are_errors(self) -> None:
        with pytest.raises(AttributeError, match="NoSuchLayer"):
            _ = nn.NoSuchLayer

    def test_functional_can_be_imported_by_its_full_name(self) -> None:
        assert importlib.import_module("d2lops.nn.functional") is d2lops.functional

    def test_is_no_package_of_other_modules(self) -> None:
        """torch.nn is one: with its path handed on, this would load torch's modules again."""
        with pytest.raises(ModuleNotFoundError, match="not a package"):
            importlib.import_module("d2lops.nn.modules")

    def test_dir_can_be_had(self) -> None:
        assert {"Conv2d", "Sequential", "LinearReLU", "functional"} <= {*dir(nn)}
        assert all(hasattr(nn, name) for name in dir(nn))

    def test_star_import_is_torchs_with_our_layers(self) -> None:
        ours, theirs = {}, {}
        exec("from d2lops.nn import *", ours)
        exec("from torch.nn import *", theirs)
        assert theirs.keys() <= ours.keys()
        for name, layer in own_layers().items():
            assert ours[name] is layer
        assert ours["functional"] is d2lops.functional
        assert ours["Sequential"] is torch.nn.Sequential

    def test_a_network_of_the_book(self) -> None:
        def net(nn: object) -> torch.nn.Module:  # LeNet, D2L 7.6, with the lazy layers of the book
            return nn.Sequential(
                nn.LazyConv2d(6, kernel_size=5, padding=2),
                nn.Sigmoid(),
                nn.AvgPool2d(kernel_size=2, stride=2),
                nn.LazyConv2d(16, kernel_size=5),
                nn.Sigmoid(),
                nn.AvgPool2d(kernel_size=2, stride=2),
                nn.Flatten(),
                nn.LazyLinear(120),
                nn.Sigmoid(),
                nn.LazyLinear(84),
                nn.Sigmoid(),
                nn.LazyLinear(10),
            )

        x = torch.randn(2, 1, 28, 28)
        ours, theirs = net(nn), net(torch.nn)
        ours(x), theirs(x)
        assert repr(ours) == repr(theirs)
        ours.load_state_dict(theirs.state_dict())
        assert_close(ours(x), theirs(x))

    def test_compiled_in_one_graph(self) -> None:
        """Every layer at once: none breaks the graph, forward or backward."""
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=(1, 0, 2, 1)),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.ConvReLU2d(6, 8, 2, padding="same", padding_mode="reflect"),
            nn.AvgPool2d(3, 1, 1),
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.AdaptiveAvgPool2d(2),
            nn.Dropout(0.1).eval(),
            nn.Flatten(),
            nn.LinearReLU(32, 16),
            nn.Linear(16, 5),
        )
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        gradients = [
            torch.autograd.grad(module(IMAGE).square().sum(), net.parameters())
            for module in (compiled, net)
        ]
        for our, their in zip(*gradients, strict=True):
            assert_close(our, their)

    @cpu_only
    @pytest.mark.parametrize(
        "module",
        (
            "d2lops",
            "d2lops.backends",
            "d2lops.convert",
            "d2lops.functional",
            "d2lops.info",
            "d2lops.nn",
            "d2lops.report",
        ),
    )
    def test_examples_in_docstrings(self, module: str) -> None:
        result = doctest.testmod(importlib.import_module(module))
        assert result.failed == 0

    @cpu_only
    def test_every_public_name_has_an_example(self) -> None:
        finder = doctest.DocTestFinder(recurse=False)
        public = own_layers()
        public |= {name: getattr(d2lops, name) for name in ("backend", "convert", "revert")}
        public |= {name: getattr(d2lops.functional, name) for name in d2lops.functional.__all__}
        for name, thing in public.items():
            (test,) = finder.find(thing, name)
            assert test.examples, name
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0, name
