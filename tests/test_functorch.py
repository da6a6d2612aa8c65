"""The operators under `torch.func`: a batch of calls equals a loop of calls, however it is made.

In float64, so that whatever order sums are taken in, nothing but a mistake is seen.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils._python_dispatch import TorchDispatchMode

from d2lops import functional as F
from d2lops import nn
from tests.device import normal, raw

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 3
# Functions, and the sizes of what they are given.
CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda *t: F.conv2d(*t, padding=1), ((2, 3, 5, 4), (4, 3, 3, 2), (4,))),
    "conv2d, no bias": (lambda *t: F.conv2d(*t, stride=2), ((2, 3, 5, 4), (4, 3, 3, 2))),
    "conv2d, groups": (
        lambda *t: F.conv2d(*t, stride=2, padding=(1, 0, 2, 1), dilation=(1, 2), groups=2),
        ((2, 4, 5, 4), (6, 2, 2, 3), (6,)),
    ),
    "conv_relu2d": (lambda *t: F.conv_relu2d(*t, groups=2), ((4, 5, 4), (2, 2, 3, 3), (2,))),
    "corr2d": (F.corr2d, ((5, 4), (2, 2))),
    "linear": (F.linear, ((2, 4), (5, 4), (5,))),
    "linear, vectors": (F.linear, ((4,), (4,), ())),
    "linear_relu": (F.linear_relu, ((2, 3, 4), (5, 4), (5,))),
    "max_pool2d": (lambda x: F.max_pool2d(x, (3, 2), 1, 1, ceil_mode=True), ((2, 3, 5, 4),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2, padding=1), ((3, 5, 4),)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (2, 3)), ((2, 3, 5, 4),)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), ((2, 3, 5, 4),)),
    "dropout": (lambda x: F.dropout(x, 0.4, seed=1), ((3, 5),)),
}


def looped(
    function: Callable[..., Tensor], dims: tuple[int | None, ...], *inputs: Tensor
) -> Tensor:
    """What `vmap` means."""
    return torch.stack(
        [
            function(
                *[
                    x if dim is None else x.select(dim, i)
                    for x, dim in zip(inputs, dims, strict=True)
                ]
            )
            for i in range(BATCH)
        ]
    )


def ways_to_batch(*sizes: tuple[int, ...]) -> Iterator[tuple[tuple[int | None, ...], list[Tensor]]]:
    """Any of the inputs, but at least one, with a batch dimension, in front or elsewhere."""
    for dims in itertools.product(*[(None, 0, len(size)) for size in sizes]):
        if any(dim is not None for dim in dims):
            yield (
                dims,
                [
                    normal(*size, seed=i)
                    if dim is None
                    else normal(*size[:dim], BATCH, *size[dim:], seed=i)
                    for i, (size, dim) in enumerate(zip(sizes, dims, strict=True))
                ],
            )


class TestBatchOfCalls:
    @pytest.mark.parametrize("name", CASES)
    def test_equals_a_loop(self, name: str) -> None:
        """And so do its gradients, which are those of the batch as a whole."""
        function, sizes = CASES[name]
        for dims, inputs in ways_to_batch(*sizes):
            leaves = [x.double().requires_grad_() for x in inputs]
            batch, loop = vmap(function, dims)(*leaves), looped(function, dims, *leaves)
            torch.testing.assert_close(batch, loop)
            g = normal(*loop.shape).double()
            gradients = [torch.autograd.grad(y, leaves, g) for y in (batch, loop)]
            torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("name", CASES)
    def test_gradients_of_each(self, name: str) -> None:
        """Per-sample gradients, where the examples share some of the inputs."""
        function, sizes = CASES[name]
        arguments = tuple(range(len(sizes)))
        gradients = grad(lambda *t: function(*t).square().sum(), argnums=arguments)
        for dims, inputs in ways_to_batch(*sizes):
            inputs = [x.double() for x in inputs]
            loops = [looped(lambda *t, i=i: gradients(*t)[i], dims, *inputs) for i in arguments]
            torch.testing.assert_close(vmap(gradients, dims)(*inputs), tuple(loops))

    @pytest.mark.parametrize("name", CASES)
    def test_second_derivatives_of_each(self, name: str) -> None:
        function, sizes = CASES[name]
        inputs = [normal(BATCH, *size, seed=i).double() for i, size in enumerate(sizes)]

        def curvature(*t: Tensor) -> Tensor:
            inner = grad(lambda *t: function(*t).pow(3).sum(), argnums=tuple(range(len(t))))
            return grad(lambda *t: sum(g.square().sum() for g in inner(*t)))(*t)

        loop = looped(curvature, (0,) * len(inputs), *inputs)
        torch.testing.assert_close(vmap(curvature)(*inputs), loop)

    @pytest.mark.parametrize("name", CASES)
    def test_of_batches_of_calls(self, name: str) -> None:
        function, sizes = CASES[name]
        dims = tuple(map(len, sizes))  # the inner batch comes last
        inputs = [normal(2, *size, BATCH, seed=i).double() for i, size in enumerate(sizes)]
        loop = torch.stack([looped(function, dims, *[x[i] for x in inputs]) for i in range(2)])
        torch.testing.assert_close(vmap(vmap(function, dims))(*inputs), loop)

    @pytest.mark.parametrize("name", CASES)
    def test_of_no_calls(self, name: str) -> None:
        function, sizes = CASES[name]
        inputs = [torch.empty(0, *size) for size in sizes]
        one = function(*[torch.zeros(size) for size in sizes])
        assert vmap(function)(*inputs).shape == (0, *one.shape)

    @pytest.mark.parametrize("pool", (F.max_pool2d, F.adaptive_max_pool2d))
    def test_says_where_the_maxima_are(self, pool: Callable) -> None:
        x = normal(BATCH, 2, 3, 5, 4)
        batch = vmap(lambda x: pool(x, 2, return_indices=True))(x)
        values, indices = zip(*[pool(one, 2, return_indices=True) for one in x], strict=True)
        assert torch.equal(batch[0], torch.stack(values))
        assert torch.equal(batch[1], torch.stack(indices))

    def test_keeps_channels_last(self) -> None:
        x = normal(BATCH * 2, 3, 5, 4).to(memory_format=torch.channels_last).unflatten(0, (-1, 2))
        for layer in (nn.Conv2d(3, 4, 2), nn.MaxPool2d(2), nn.AvgPool2d(2)):
            y = vmap(layer)(x)
            assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)

    def test_of_operators_that_may_use_tf32(self) -> None:
        x, weight = normal(BATCH, 2, 4), normal(BATCH, 5, 4)
        linear = vmap(lambda x, weight: raw.linear.default(x, weight, None, tf32=True))
        torch.testing.assert_close(linear(x, weight), x @ weight.mT, rtol=1e-2, atol=1e-2)

    def test_refuses_in_the_operators_words(self) -> None:
        with pytest.raises(RuntimeError, match=r"conv2d\(\): groups = 1 and weight of size"):
            vmap(F.conv2d, (0, None))(normal(BATCH, 2, 3, 5, 4), normal(4, 2, 3, 3))


class TestForwardMode:
    @pytest.mark.parametrize("name", CASES)
    def test_is_the_adjoint_of_reverse_mode(self, name: str) -> None:
        """<g, J v> = <J' g, v>, whichever inputs have a tangent."""
        function, sizes = CASES[name]
        inputs = [normal(*size, seed=i).double() for i, size in enumerate(sizes)]
        tangents = [normal(*size, seed=i + 9).double() for i, size in enumerate(sizes)]
        output, pullback = vjp(function, *inputs)
        g = normal(*output.shape, seed=99).double()
        products = [(a * b).sum() for a, b in zip(pullback(g), tangents, strict=True)]
        for count in range(1, len(sizes) + 1):
            for chosen in itertools.combinations(range(len(sizes)), count):
                with forward_ad.dual_level():
                    duals = [
                        forward_ad.make_dual(x, tangents[i]) if i in chosen else x
                        for i, x in enumerate(inputs)
                    ]
                    primal, tangent = forward_ad.unpack_dual(function(*duals))
                assert torch.equal(primal, output)
                expected = sum(products[i] for i in chosen)
                torch.testing.assert_close((g * tangent).sum(), expected)

    @pytest.mark.parametrize("name", CASES)
    def test_of_batches_of_tangents(self, name: str) -> None:
        function, sizes = CASES[name]
        inputs = tuple([normal(*size, seed=i).double() for i, size in enumerate(sizes)])
        tangents = [normal(BATCH, *size, seed=i + 9).double() for i, size in enumerate(sizes)]

        def push(*tangents: Tensor) -> Tensor:
            return jvp(function, inputs, tangents)[1]

        loop = looped(push, (0,) * len(sizes), *tangents)
        torch.testing.assert_close(vmap(push)(*tangents), loop)

    @pytest.mark.parametrize("name", CASES)
    def test_either_mode_in_the_other(self, name: str) -> None:
        """The Hessian, forward over reverse, reverse over forward, and each over itself."""
        function, sizes = CASES[name]
        inputs = [normal(*size, seed=i).double() for i, size in enumerate(sizes)]
        arguments = tuple(range(len(sizes)))

        def loss(*t: Tensor) -> Tensor:
            return function(*t).pow(3).sum()

        results = [
            outer(inner(loss, argnums=arguments), argnums=arguments)(*inputs)
            for outer, inner in itertools.product((jacrev, jacfwd), repeat=2)
        ]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])


class TestDropout:
    X = torch.ones(BATCH, 64)

    def test_draws_by_the_rules_of_randomness(self) -> None:
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(F.dropout)(self.X)
        torch.manual_seed(0)
        first, *others = vmap(F.dropout, randomness="same")(self.X)
        assert all(torch.equal(first, other) for other in others)
        first, second, third = vmap(F.dropout, randomness="different")(self.X)
        assert not torch.equal(first, second) and not torch.equal(second, third)

    def test_mask_is_that_of_the_seed(self) -> None:
        seeds = torch.arange(BATCH)
        masks = vmap(lambda x, seed: F.dropout(x, seed=seed))(self.X, seeds)
        one_by_one = [F.dropout(x, seed=seed) for x, seed in zip(self.X, seeds, strict=True)]
        assert torch.equal(masks, torch.stack(one_by_one))
        x = self.X[0].clone().requires_grad_()
        masks = vmap(lambda seed: F.dropout(x, seed=seed))(seeds)
        assert torch.equal(masks, torch.stack(one_by_one))
        assert torch.equal(torch.autograd.grad(masks.sum(), x)[0], masks.sum(0))

    def test_in_place(self) -> None:
        x = self.X.clone()
        vmap(lambda x: F.dropout(x, seed=3, inplace=True))(x)
        assert torch.equal(x, F.dropout(self.X[0], seed=3).expand_as(x))


def network(dropout: float = 0.25) -> torch.nn.Module:
    """One of each layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ConvReLU2d(4, 6, 3, groups=2),
        nn.AvgPool2d(2, padding=1),
        nn.AdaptiveMaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.LinearReLU(12, 8),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    ).double()


class Calls(TorchDispatchMode):
    """Counts the calls of raw operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        if operator.namespace == raw.name:
            self.count[operator._opname] += 1
        return operator(*arguments, **(named or {}))


class TestNetworks:
    def test_gradients_of_each_sample(self) -> None:
        net = network()
        parameters = dict(net.named_parameters())
        images, labels = normal(5, 1, 12, 12).double(), torch.arange(5) % 3

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            scores = functional_call(net, parameters, image.unsqueeze(0))
            return F.cross_entropy(scores, label.unsqueeze(0))

        torch.manual_seed(0)
        each = vmap(grad(loss), (None, 0, 0), randomness="same")(parameters, images, labels)
        for i in range(5):
            torch.manual_seed(0)
            expected = grad(loss)(parameters, images[i], labels[i])
            torch.testing.assert_close({name: g[i] for name, g in each.items()}, expected)

    def test_gradients_of_each_sample_are_one_call_of_a_kernel(self) -> None:
        weight, images = normal(4, 3, 3, 3), normal(8, 3, 6, 6)
        gradient = grad(lambda weight, image: F.conv2d(image, weight).square().sum())
        with Calls() as calls:
            vmap(gradient, (None, 0))(weight, images)
        assert calls.count == {"corr2d": 1, "corr2d_weight_grad": 1}

    def test_ensemble(self) -> None:
        """Networks of different weights, on the same images or on images of their own."""
        nets = [network(dropout=0) for _ in range(4)]
        weights, buffers = stack_module_state(nets)
        images = normal(4, 2, 1, 12, 12).double()

        def predict(weights: dict, buffers: dict, images: Tensor) -> Tensor:
            return functional_call(nets[0], (weights, buffers), (images,))

        same = vmap(predict, (0, 0, None))(weights, buffers, images[0])
        torch.testing.assert_close(same, torch.stack([net(images[0]) for net in nets]))
        own = vmap(predict)(weights, buffers, images)
        torch.testing.assert_close(
            own, torch.stack([net(x) for net, x in zip(nets, images, strict=True)])
        )

    def test_jacobian(self) -> None:
        net = network(dropout=0)
        x = normal(1, 1, 12, 12).double()
        (jacobian,) = jacrev(net)(x)
        for row, score in zip(jacobian, net(x.requires_grad_())[0], strict=True):
            (expected,) = torch.autograd.grad(score, x, retain_graph=True)
            torch.testing.assert_close(row, expected)

    def test_tangents_of_parameters(self) -> None:
        net = network()
        images = normal(2, 1, 12, 12).double()
        parameters = {name: p.detach() for name, p in net.named_parameters()}
        directions = {name: torch.ones_like(p) for name, p in parameters.items()}

        def predict(parameters: dict[str, Tensor]) -> Tensor:
            torch.manual_seed(0)
            return functional_call(net, parameters, images)

        outputs, tangents = jvp(predict, (parameters,), (directions,))
        torch.testing.assert_close(outputs, predict(parameters))
        step = 1e-6
        moved = {name: p + step * directions[name] for name, p in parameters.items()}
        difference = (predict(moved) - outputs) / step
        torch.testing.assert_close(tangents, difference, rtol=1e-4, atol=1e-4)

    def test_batched_gradients(self) -> None:
        """`is_grads_batched`, in which nothing but the incoming gradient is batched."""
        net = network()
        outputs = net(normal(2, 1, 12, 12).double())
        parameters = list(net.parameters())
        directions = normal(BATCH, 2, 3).double()
        batch = torch.autograd.grad(
            outputs, parameters, directions, retain_graph=True, is_grads_batched=True
        )
        for i in range(BATCH):
            one = torch.autograd.grad(outputs, parameters, directions[i], retain_graph=True)
            torch.testing.assert_close(tuple([g[i] for g in batch]), one)
