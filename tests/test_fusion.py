"""Forwards that call d2lops: a layer and its ReLU as one, where that is the same."""

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

import d2lops
from tests.converted import IMAGE, assert_same, calls, converted, reasons
from tests.device import normal

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
        model = Flags().eval()
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


def _saved(model: nn.Module) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return buffer
