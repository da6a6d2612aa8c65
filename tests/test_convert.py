"""convert: the same model, in all but the kernels it calls; revert: the same model."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import d2lops
from d2lops.convert import OURS
from examples.networks import alexnet, dropout_mlp, googlenet, nin, vgg11
from tests.converted import IMAGE, assert_same, calls, converted, reasons
from tests.device import cpu_only, normal
from tests.test_nn import LAYERS


class TestSwap:
    @pytest.mark.parametrize("name, make, x", LAYERS)
    def test_every_layer(self, name: str, make: Callable, x: Tensor) -> None:
        layer = make(nn).eval()
        report = d2lops.convert(layer)
        assert type(layer) is getattr(d2lops.nn, name)
        assert [(row.name, row.was, row.now) for row in report.rows] == [("", name, "d2lops")]
        layer(x)
        d2lops.revert(layer)
        assert type(layer) is getattr(nn, name.removeprefix("Lazy"))

    def test_none_is_left_out(self) -> None:
        assert {layer.__name__ for layer in OURS} == {name for name, *_ in LAYERS}

    def test_what_a_model_is_to_others_stays(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(480, 5)).double()
        model[2].eval()
        model[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        seen = []
        model[0].register_forward_hook(lambda *_: seen.append("forward"))
        model[2].register_full_backward_hook(lambda *_: seen.append("backward"))
        parts, tensors = [*model.modules()], [*model.parameters()]
        keys, text = [*model.state_dict()], repr(model)
        d2lops.convert(model)
        model(IMAGE.double()).sum().backward()
        assert seen == ["forward", "backward"]
        assert all(a is b for a, b in zip(parts, model.modules(), strict=True))
        assert all(a is b for a, b in zip(tensors, model.parameters(), strict=True))
        assert (keys, text) == ([*model.state_dict()], repr(model))
        assert [m.training for m in model.modules()] == [True, True, True, False]
        before = model[2].weight.clone()
        optimizer.step()
        assert not torch.equal(before, model[2].weight)

    def test_ties_stay(self) -> None:
        layer = nn.Linear(5, 5)
        model = nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU(), nn.Linear(5, 5))
        model[4].weight = layer.weight
        report = d2lops.convert(model)
        assert model[0] is model[2] and model[4].weight is layer.weight
        assert [row.name for row in report.rows] == ["0", "4"]

    def test_lazy_models_stay_lazy(self) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        twin = copy.deepcopy(model)
        d2lops.convert(model)
        assert model[0].has_uninitialized_params()
        for net in (model, twin):
            torch.manual_seed(0)
            net(IMAGE)
        assert_same(model, twin, IMAGE)
        assert calls(model, IMAGE) == ["corr2d+relu", "linear"]
        d2lops.revert(model)
        assert type(model[3]) is nn.Linear

    def test_layers_of_d2lops_stay_so(self) -> None:
        model = nn.Sequential(d2lops.nn.Linear(4, 4), nn.Linear(4, 4), d2lops.nn.LinearReLU(4, 4))
        report = d2lops.convert(model)
        assert [row.note for row in report.rows] == ["was so before", "", "was so before"]
        d2lops.revert(model)
        ours = (d2lops.nn.Linear, nn.Linear, d2lops.nn.LinearReLU)
        assert tuple(map(type, model)) == ours

    def test_twice_is_once(self) -> None:
        model = nn.Sequential(nn.Linear(14, 4), nn.ReLU())
        d2lops.convert(model)
        report = d2lops.convert(model)
        assert [row.note for row in report.rows] == ["one with 1"]
        assert calls(model, IMAGE) == ["linear_relu"]
        d2lops.revert(model)
        assert type(model) is nn.Sequential and type(model[0]) is nn.Linear

    @pytest.mark.parametrize("fuse", (True, False))
    @pytest.mark.parametrize(
        "network, size",
        ((dropout_mlp, 28), (alexnet, 96), (vgg11, 32), (nin, 96), (googlenet, 64)),
        ids=lambda value: getattr(value, "__name__", None),
    )
    @cpu_only
    def test_networks_of_the_book(self, network: Callable, size: int, fuse: bool) -> None:
        model, x = network(nn).eval(), normal(2, 1, size, size)
        model(x)
        converted(model, x, fuse=fuse)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TestLeftAlone:
    def assert_left(self, layer: nn.Module, reason: str) -> None:
        model = nn.Sequential(layer, nn.Linear(14, 3))
        kind = type(model[0])
        found = reasons(model)
        assert reason in found["0"] and "1" not in found
        assert type(model[0]) is kind
        d2lops.revert(model)
        assert type(model[0]) is kind and type(model[1]) is nn.Linear

    def test_subclasses(self) -> None:
        self.assert_left(Doubled(14, 14), "subclass")

    def test_parametrized(self) -> None:
        self.assert_left(parametrizations.weight_norm(nn.Linear(14, 14)), "parametrized")

    @cpu_only
    def test_quantized(self) -> None:
        model = nn.Sequential(nn.Linear(14, 14), nn.Conv2d(3, 3, 1))
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        kind = type(quantized[0])
        report = d2lops.convert(quantized)
        assert [row.name for row in report.rows] == ["1"] and type(quantized[0]) is kind

    def test_compiled(self) -> None:
        inside = nn.Sequential(nn.Linear(14, 14))
        self.assert_left(torch.compile(inside), "compiled")
        assert type(inside[0]) is nn.Linear
        in_place = nn.Linear(14, 14)
        in_place.compile()
        self.assert_left(in_place, "compiled")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scripted(self) -> None:
        self.assert_left(torch.jit.script(nn.Linear(14, 14)), "compiled")

    def test_a_forward_of_its_own(self) -> None:
        layer = nn.Linear(14, 14)
        layer.forward = lambda x: x
        self.assert_left(layer, "forward of its own")

    def test_dtypes_without_kernels(self) -> None:
        self.assert_left(nn.Linear(14, 14, dtype=torch.complex64), "complex64")

    def test_parameters_of_other_kinds(self) -> None:
        class Packed(nn.Parameter):
            pass

        layer = nn.Linear(14, 14)
        layer.weight = Packed(layer.weight.data)
        self.assert_left(layer, "Packed")


class TestErrors:
    @pytest.mark.parametrize("function", (d2lops.convert, d2lops.revert))
    def test_no_module(self, function: Callable) -> None:
        with pytest.raises(TypeError, match=r"'model' must be torch\.nn\.Module, not list"):
            function([nn.Linear(2, 3)])

    def test_inputs_that_the_model_rejects(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(5, 2))
        kinds = [type(module) for module in model.modules()]
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match="the model raises RuntimeError for the inputs"):
            d2lops.convert(model, tune=IMAGE)
        assert kinds == [type(module) for module in model.modules()]
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_models_that_cannot_be_copied(self) -> None:
        model = nn.Sequential(nn.LazyBatchNorm2d(), nn.Conv2d(3, 4, 3))
        with pytest.raises(RuntimeError, match="must be copied"):
            d2lops.convert(model, tune=IMAGE)
        assert type(model[1]) is nn.Conv2d

    def test_reports_on_other_models(self, tmp_path) -> None:
        report = d2lops.convert(nn.Sequential(nn.Linear(2, 3)))
        with pytest.raises(ValueError, match="'0', which Linear does not have"):
            d2lops.convert(nn.Linear(2, 3), tune=report)
        (tmp_path / "report").write_text("[]")
        with pytest.raises(ValueError, match="holds no report"):
            d2lops.convert(nn.Linear(2, 3), tune=tmp_path / "report")
        with pytest.raises(FileNotFoundError):
            d2lops.convert(nn.Linear(2, 3), tune=tmp_path / "none")


class Small(nn.Module):
    """A network as people write them, all of which can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(240, 16), nn.ReLU())
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(F.max_pool2d(F.relu(self.conv(self.stem(x))), 2)))


@pytest.fixture
def twins() -> tuple[nn.Module, nn.Module]:
    """Small, evaluating, converted and not."""
    torch.manual_seed(0)
    model = Small().eval()
    twin = copy.deepcopy(model)
    d2lops.convert(model)
    expected = ["corr2d+relu", "corr2d+relu", "max_pool2d", "linear_relu", "linear"]
    assert calls(model, IMAGE) == expected
    return model, twin


class TestTools:
    """What torch has for models has no less for converted ones."""

    def test_gradients_of_each_sample(self, twins: tuple[nn.Module, nn.Module]) -> None:
        images, found = normal(4, 3, 12, 14), []
        for net in twins:
            parameters = dict(net.named_parameters())

            def loss(parameters: dict, image: Tensor, net: nn.Module = net) -> Tensor:
                y = torch.func.functional_call(net, parameters, (image[None],))
                return y.square().sum()

            found.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images))
        for name, theirs in found[1].items():
            assert theirs.shape[0] == 4
            torch.testing.assert_close(found[0][name], theirs)

    def test_autocast(self, twins: tuple[nn.Module, nn.Module]) -> None:
        device = IMAGE.device.type
        with torch.autocast(device, torch.bfloat16):
            ours, theirs = (net(IMAGE) for net in twins)
        assert ours.dtype is theirs.dtype is torch.bfloat16
        exact = twins[1].double()(IMAGE.double())
        their_error = (theirs - exact).abs().max()
        rounding = torch.finfo(torch.bfloat16).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * their_error + rounding

    def test_export(self, twins: tuple[nn.Module, nn.Module]) -> None:
        batch = {0: torch.export.Dim("batch", min=2, max=64)}
        exported = torch.export.export(twins[0], (IMAGE,), dynamic_shapes=(batch,))
        x = normal(5, 3, 12, 14)
        torch.testing.assert_close(exported.module()(x), twins[1](x))

    def test_checkpoints(self, twins: tuple[nn.Module, nn.Module]) -> None:
        net = twins[0].train()
        found = []
        for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
            torch.manual_seed(0)
            leaf = IMAGE.clone().requires_grad_()
            wanted = [leaf, *net.parameters()]
            found.append(torch.autograd.grad(run(leaf).square().sum(), wanted))
        assert all(map(torch.equal, *found))

    def test_flops(self, twins: tuple[nn.Module, nn.Module]) -> None:
        counts = []
        for net in twins:
            with FlopCounterMode(display=False) as counter:
                net(IMAGE).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0

    def test_channels_last(self, twins: tuple[nn.Module, nn.Module]) -> None:
        for net in twins:
            net.to(memory_format=torch.channels_last)
        x = IMAGE.contiguous(memory_format=torch.channels_last)
        assert twins[0].stem(x).is_contiguous(memory_format=torch.channels_last)
        assert_same(*twins, x)

    def test_meta(self, twins: tuple[nn.Module, nn.Module]) -> None:
        assert twins[0].to("meta")(IMAGE.to("meta")).shape == (2, 5)
