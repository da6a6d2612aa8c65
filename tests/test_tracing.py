"""Traces tell what a forward does; what they could not tell is refused, and said why."""

import contextlib
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu

from d2lops.tracing import Trace, UntraceableError
from tests.device import normal

SCALE = 2.0
IMAGE = normal(2, 3, 6, 6)


def helper(x: Tensor) -> Tensor:
    return relu(x) * math.sqrt(4)


class Net(nn.Module):
    """With a forward that is given; a class of its own, as those of users are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.act = nn.Conv2d(3, 3, 1), nn.ReLU(), torch.tanh
        self.blocks = nn.ModuleList([nn.Identity(), nn.Tanh()])
        self.chain = nn.Sequential(nn.Tanh(), nn.Identity())
        self.scale, self.none, self.cache = 3.0, None, {}
        self.register_buffer("shift", torch.ones(6))


def module(forward: Callable) -> Net:
    return type("Net", (Net,), {"forward": forward})()


def run(trace: Trace, net: nn.Module, *inputs: Tensor) -> Tensor:
    code = trace.graph.python_code("self")
    world = dict(code.globals)
    exec(code.src, world)
    return world["forward"](net, *inputs)


# What can be traced.


def plain(self, x):
    return F.relu(self.conv(x)) + self.shift


def loops(self, x):
    for block in self.blocks:
        x = block(x)
    for index in range(len(self.blocks)):
        x = self.blocks[index](x)
    return self.blocks[-1](self.chain[0](x))


def comprehensions(self, x):
    return torch.cat([layer(x) for layer in self.blocks], dim=2) + sum(
        x[:, :, :1] + i for i in range(3)
    )


def helpers(self, x):
    return helper(self.act(x))


def decides(self, x, twice=False):
    if self.none is not None or twice or not self.blocks or torch.jit.is_scripting():
        raise ValueError("never")
    return x * self.scale if self.scale > 1 else x


def in_place(self, x):
    x = x + 0
    view = x[0]
    x += 1
    x *= 2
    return view


def draws(self, x):
    torch.manual_seed(1)
    return x + torch.rand(6) + torch.rand_like(x)


def shapes(self, x):
    n, c, h, w = x.shape
    return torch.flatten(x, 1).view(n, c * h, w) + x.size(0)


def structures(self, x):
    results = {"a": x + 1, "b": (self.relu(x), x.mean())}
    return results["b"][0] + results["b"][1]


TRACED = (plain, loops, comprehensions, helpers, decides, in_place, draws, shapes, structures)

# What cannot, and why.


def depends_on_numbers(self, x):
    return x if x.sum() > 0 else -x


def depends_on_sizes(self, x):
    return x if x.shape[0] > 1 else -x


def depends_on_its_kind(self, x):
    return x if isinstance(x, Tensor) else x[0]


def depends_on_gradients(self, x):
    return x if torch.is_grad_enabled() else -x


def has_a_default_that_changes(self, x, seen=[]):  # noqa: B006 - which is the point
    seen.append(1)
    return x * len(seen)


def tries(self, x):
    try:
        return self.conv(x)
    except Exception:
        return x


def without_gradients(self, x):
    with torch.no_grad():
        return self.conv(x)


def sets(self, x):
    self.seen = x
    return x


def sets_of_a_tensor(self, x):
    x.requires_grad = True
    return x


def writes_elements(self, x):
    x[0] = 1
    return x


def sets_a_global(self, x):
    global SCALE
    SCALE = 3.0
    return x


def uses_a_global(self, x):
    return x * SCALE


def prints(self, x):
    print(x)
    return x


def keeps(self, x):
    self.cache["x"] = x
    return x


def imports(self, x):
    import random

    return x * random.random()


def compares_identities(self, x):
    y = self.relu(x)
    return x if y is x else -y


def becomes_text(self, x):
    return {f"{x}": x}


def takes_apart(self, x):
    for child in self.conv.children():
        x = child(x)
    return x


def takes_anything(self, *x):
    return x[0]


def hands_on_a_layer(self, x):
    return torch.utils.checkpoint.checkpoint(self.conv, x)


def calls_its_base(self, x):
    return super(Net, self).forward(x)


def decorated(function: Callable) -> Callable:
    def forward(self, x):
        return function(self, x)

    return forward


REFUSED = {
    depends_on_numbers: "numbers or the size",
    depends_on_sizes: "numbers or the size",
    depends_on_its_kind: "isinstance",
    depends_on_gradients: "numbers or the size",
    has_a_default_that_changes: "default",
    tries: "try",
    without_gradients: "with",
    sets: "sets self.seen",
    sets_of_a_tensor: "requires_grad",
    writes_elements: "item assignment",
    sets_a_global: "sets a global",
    uses_a_global: "SCALE",
    prints: "print",
    keeps: "self.cache",
    imports: "__import__",
    compares_identities: "`is`",
    becomes_text: "text",
    takes_apart: "uses set",
    takes_anything: "any number",
    hands_on_a_layer: "hands on self.conv",
    calls_its_base: "super",
    decorated(plain): "decorated",
}


class TestTrace:
    @pytest.mark.parametrize("forward", TRACED)
    def test_does_what_the_forward_does(self, forward: Callable) -> None:
        net = module(forward)
        trace = Trace(net, forward, training=True)
        torch.manual_seed(0)
        expected = net(IMAGE)
        torch.manual_seed(0)
        assert torch.equal(run(trace, net, IMAGE), expected)

    @pytest.mark.parametrize("forward", REFUSED, ids=lambda forward: forward.__name__)
    def test_refuses_what_it_would_not_see(self, forward: Callable) -> None:
        with pytest.raises(UntraceableError, match=REFUSED[forward]):
            Trace(module(forward), forward, training=True)

    def test_leaves_the_module_alone(self) -> None:
        for forward in (plain, *REFUSED):
            net = module(forward)
            before = dict(vars(net))
            with contextlib.suppress(UntraceableError):
                Trace(net, forward, training=True)
            assert vars(net) == before and net.cache == {} and SCALE == 2.0

    def test_what_it_has_read(self) -> None:
        trace = Trace(module(decides), decides, training=True)
        assert trace.constants == {"none": None, "scale": 3.0}
        assert trace.containers == {"", "blocks"}
        trace = Trace(module(helpers), helpers, training=True)
        assert trace.constants == {"act": torch.tanh}
        trace = Trace(module(plain), plain, training=True)
        assert trace.constants == {"shift": Tensor}

    def test_training_is_what_it_is_told(self) -> None:
        def forward(self, x):
            return x + 1 if self.training else x

        for training in (True, False):
            net = module(forward)
            result = run(Trace(net, forward, training), net.train(not training), IMAGE)
            assert torch.equal(result, IMAGE + training)

    def test_defaults_are_not_arguments(self) -> None:
        assert Trace(module(decides), decides, training=True).arguments == 1
