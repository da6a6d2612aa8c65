"""convert: the same model, in all but the kernels it calls; revert: the same model."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import d2lops
from examples.networks import alexnet, dropout_mlp, googlenet, nin, vgg11
from tests.device import cpu_only, normal, raw
from tests.test_nn import LAYERS

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
        from d2lops.convert import OURS

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


# Forwards, and what they call of d2lops once converted, in training and in evaluation.


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
        )
        self.second = nn.Conv2d(3, 3, 1, bias=False)
        self.linear = nn.Linear(14, 5)
        self.down, self.p = None, 0.0
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.norm.weight)
        nn.init.uniform_(self.norm.bias)


class Block(Module):
    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        out = self.relu(self.norm(self.conv(x)))
        out = self.second(out)
        out += identity
        return self.relu(out)


class Functions(Module):
    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 3, 1, 1)
        x = F.adaptive_avg_pool2d(F.avg_pool2d(x, kernel_size=2), (6, 14))
        x = torch.relu(F.conv2d(x, self.second.weight))
        return F.dropout(F.linear(x, self.linear.weight, self.linear.bias).relu(), self.p)


class Branches(Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x).relu_() for conv in (self.conv, self.second)], dim=1)


class TwoConsumers(Module):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y) + y


class InPlace(Module):
    """The ReLU's result is not used, but what it did is."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        F.relu_(y)
        return self.second(y)


class Overwritten(Module):
    """The convolution's input is another one by the time of the ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.conv(x)
        x += 1
        return self.relu(y) + x


class Views(Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        row = x[:, :, :1]
        x += 1
        return self.relu(self.conv(x)) + row


class Twice(Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.relu(self.conv(x)) + self.conv(x)))


class Flags(Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y = self.relu(self.conv(x))
        return y + 1 if self.training else scale * self.helper(y)

    def helper(self, y: Tensor) -> Tensor:
        return self.relu(self.linear(y)) if self.p < 0.5 else y


class Untraceable(Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        return F.max_pool2d(self.relu(self.conv(x)), 2)


POOLS = ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"]
FORWARDS: list[tuple[type[Module], list[str], list[str]]] = [
    (Block, ["corr2d", "corr2d"], ["corr2d+relu", "corr2d"]),
    (Functions, *[["corr2d+relu", *POOLS, "corr2d+relu", "linear_relu"]] * 2),
    (Branches, *[["corr2d+relu"] * 2] * 2),
    (TwoConsumers, ["corr2d"], ["corr2d"]),
    (InPlace, *[["corr2d", "corr2d"]] * 2),
    (Views, *[["corr2d+relu"]] * 2),
    (Twice, *[["corr2d+relu", "corr2d", "corr2d+relu"]] * 2),
    (Flags, ["corr2d+relu"], ["corr2d+relu", "linear_relu"]),
    (Untraceable, ["corr2d"], ["corr2d"]),
]


class TestFusion:
    @pytest.mark.parametrize(
        "kind, training, evaluating", FORWARDS, ids=lambda x: getattr(x, "__name__", "")
    )
    def test_forwards(self, kind: type, training: list[str], evaluating: list[str]) -> None:
        for mode, expected in ((True, training), (False, evaluating)):
            model = converted(kind().train(mode), IMAGE)
            assert calls(model, IMAGE) == expected
            model.train(not mode)  # is told apart on the way, not once and for all
            assert calls(model, IMAGE) == (evaluating if mode else training)

    def test_order_of_what_writes(self) -> None:
        model = Overwritten()
        with torch.no_grad():
            expected = model(IMAGE)
            d2lops.convert(model)
            torch.testing.assert_close(model(IMAGE), expected)
        assert calls(model, IMAGE) == ["corr2d+relu"]

    def test_what_is_not_fused_is_told(self) -> None:
        assert "depends on the numbers" in reasons(Untraceable())[""]

    def test_a_relu_by_name_alone(self) -> None:
        model = Block()
        model.relu = nn.LeakyReLU()
        rows = {row.name: row.note for row in d2lops.convert(model).rows}
        assert rows["conv"] == "" and calls(model.eval(), IMAGE) == ["corr2d", "corr2d"]

    def test_functions_of_what_has_no_kernels(self) -> None:
        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3, 14, dtype=torch.complex64))

            def forward(self, x: Tensor) -> Tensor:
                return F.linear(x, self.weight)

        model, x = Product(), IMAGE.to(torch.complex64)
        expected = model(x)
        assert d2lops.convert(model).rows == [] and torch.equal(model(x), expected)

    def test_fuse_may_be_declined(self) -> None:
        model = Functions()
        d2lops.convert(model, fuse=False)
        assert type(model) is Functions and calls(model, IMAGE) == ["corr2d"]

    def test_names_stay(self) -> None:
        model = Block()
        text = repr(model)
        d2lops.convert(model)
        assert repr(model) == text and isinstance(model, Block)
        assert type(model).__qualname__ == "Block" and type(model).__module__ == __name__

    def test_report(self) -> None:
        model = nn.ModuleDict({"block": Block(), "functions": Functions()})
        rows = {row.name: (row.was, row.now, row.note) for row in d2lops.convert(model).rows}
        assert rows["block.conv"] == ("Conv2d", "d2lops", "one with norm, relu")
        assert rows["block.second"] == ("Conv2d", "d2lops", "")
        assert rows["functions:max_pool2d"] == ("max_pool2d", "d2lops", "")
        assert rows["functions:conv2d"] == ("conv2d", "d2lops", "one with a call of relu")

    @pytest.mark.parametrize("part", ("conv", "norm", "relu"))
    def test_hooks_see_what_they_saw(self, part: str) -> None:
        model, seen = Block().eval(), []
        d2lops.convert(model)
        handle = getattr(model, part).register_forward_hook(lambda m, x, y: seen.append(y.clone()))
        assert calls(model, IMAGE) == ["corr2d", "corr2d"]
        y = model.conv(IMAGE)
        expected = {"conv": y, "norm": model.norm(y), "relu": model.norm(y).relu()}[part]
        torch.testing.assert_close(seen[0], expected)
        handle.remove()
        assert calls(model, IMAGE) == ["corr2d+relu", "corr2d"]

    def test_batch_norms_that_do_not_evaluate(self) -> None:
        model = Block().eval()
        d2lops.convert(model)
        model.norm.train()
        assert calls(model, IMAGE) == ["corr2d", "corr2d"]
        model.norm = nn.BatchNorm2d(3, track_running_stats=False).eval()
        assert calls(model, IMAGE) == ["corr2d", "corr2d"]

    @pytest.mark.parametrize("affine", (True, False))
    @pytest.mark.parametrize("bias", (True, False))
    @pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
    def test_batch_norms(self, affine: bool, bias: bool, dtype: torch.dtype) -> None:
        norm = nn.BatchNorm2d(5, affine=affine)
        norm.running_mean.copy_(normal(5))
        norm.running_var.copy_(normal(5).square() + 0.1)
        model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), norm, nn.ReLU()).to(dtype).eval()
        exact = copy.deepcopy(model).double()(IMAGE.to(dtype).double())
        their_error = (model(IMAGE.to(dtype)) - exact).abs().max()
        d2lops.convert(model)
        assert calls(model, IMAGE.to(dtype)) == ["corr2d+relu"]
        rounding = torch.finfo(dtype).eps * exact.abs().max()
        assert (model(IMAGE.to(dtype)) - exact).abs().max() <= 2 * their_error + rounding

    def test_what_changes_later_is_seen(self) -> None:
        model, twin = Flags().eval(), None
        d2lops.convert(model)
        model.p = 1.0
        assert calls(model, IMAGE) == ["corr2d"]
        model.p = 0.0
        assert calls(model, IMAGE) == ["corr2d+relu", "linear_relu"]
        model = Block()
        d2lops.convert(model)
        for change in (
            lambda m: setattr(m, "relu", nn.Tanh()),
            lambda m: setattr(m, "down", nn.Conv2d(3, 3, 1)),
            lambda m: setattr(m, "conv", nn.Identity()),
        ):
            change(model)
            twin = copy.deepcopy(model)
            d2lops.revert(twin)
            assert_same(model, twin, IMAGE)
        chain = nn.Sequential(nn.Linear(14, 4), nn.ReLU())
        d2lops.convert(chain)
        chain.append(nn.Linear(4, 2))
        assert chain(IMAGE).shape[-1] == 2
        chain[1] = nn.Tanh()
        assert calls(chain, IMAGE) == ["linear"]

    def test_other_arguments(self) -> None:
        model, twin = Flags().eval(), Flags().eval()
        twin.load_state_dict(model.state_dict())
        d2lops.convert(model)
        for arguments, named in (
            ((IMAGE, 3.0), {}),
            ((IMAGE,), {"scale": 0.5}),
            ((), {"x": IMAGE}),
        ):
            torch.testing.assert_close(model(*arguments, **named), twin(*arguments, **named))

    @pytest.mark.parametrize(
        "copied",
        (
            copy.deepcopy,
            lambda m: pickle.loads(pickle.dumps(m)),
            lambda m: torch.load(_saved(m), weights_only=False),
            lambda m: m._replicate_for_data_parallel(),
        ),
        ids=("deepcopy", "pickle", "save", "replica"),
    )
    def test_copies(self, copied: Callable) -> None:
        model = Functions().eval()
        d2lops.convert(model)
        expected = model(IMAGE)
        twin = copied(model)
        assert type(twin) is type(model) and calls(twin, IMAGE) == calls(model, IMAGE)
        twin.second = copy.deepcopy(model.second)
        twin.second.weight = nn.Parameter(-model.second.weight)  # its own, not the model's
        assert torch.equal(model(IMAGE), expected) and not torch.equal(twin(IMAGE), expected)
        if "second" in dict(twin.named_children()):
            d2lops.revert(twin)
            assert type(twin) is Functions

    def test_compiled_in_one_graph(self) -> None:
        model = nn.Sequential(Block(), Functions()).eval()
        twin = copy.deepcopy(model)
        d2lops.convert(model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(compiled, twin, IMAGE)
        names = []
        for net in (compiled, model):
            with torch.no_grad():
                net(IMAGE)  # compiles
            with torch.no_grad(), torch.profiler.profile() as profile:
                net(IMAGE)
            names.append(
                [e.name for e in profile.events() if e.name.startswith(("d2lops", "aten::relu"))]
            )
        assert names[0] == names[1]

    def test_traced_by_torch_fx(self) -> None:
        model = nn.Sequential(Block(), Functions()).eval()
        d2lops.convert(model)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(IMAGE), model(IMAGE))
        assert d2lops.functional.conv2d in {node.target for node in traced.graph.nodes}

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.booleans())
    def test_any_chain(self, kinds: list[int], training: bool) -> None:
        shared = nn.ReLU()
        makers = (
            lambda: nn.Conv2d(3, 3, 3, padding=1),
            lambda: nn.Conv2d(3, 3, (1, 2), padding="same", groups=3),
            lambda: nn.BatchNorm2d(3),
            nn.ReLU,
            lambda: shared,
            lambda: nn.Linear(14, 14),
            lambda: nn.MaxPool2d(3, 1, 1),
            lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()),
            lambda: nn.Dropout(0.0),
        )
        torch.manual_seed(0)
        model = nn.Sequential(nn.Tanh(), *(makers[kind]() for kind in kinds)).double()
        converted(model.train(training), IMAGE.double())


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


def _saved(model: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return buffer
