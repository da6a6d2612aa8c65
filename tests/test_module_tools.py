"""What PyTorch does to modules from outside: it makes them empty, reparametrises, prunes, copies,
hooks into them, and calls them with parameters that are not theirs."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import Module
from torch.nn.utils import parametrizations, prune, skip_init

from d2lops import nn
from tests.device import DEVICE, normal
from tests.every_layer import IMAGES, every_layer, results
from tests.threads import threads

pytestmark = pytest.mark.usefixtures("in_float64")

X = normal(3, *IMAGES).double()
# A layer, torch's layer for it, and how both are made.
LAYERS = {
    "Conv2d": (nn.Conv2d, torch.nn.Conv2d, (3, 8, 3)),
    "ConvReLU2d": (nn.ConvReLU2d, torch.nn.Conv2d, (3, 8, 3)),
    "Linear": (nn.Linear, torch.nn.Linear, (20, 5)),
    "LinearReLU": (nn.LinearReLU, torch.nn.Linear, (20, 5)),
}
WEIGHT_TOOLS: dict[str, Callable[[Module], object]] = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm, by hook": torch.nn.utils.spectral_norm,
    "pruned elements": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned rows": lambda layer: prune.ln_structured(layer, "weight", 0.25, n=2, dim=0),
}
layers = pytest.mark.parametrize("name", LAYERS)


class TestWithoutNumbers:
    def test_meta(self) -> None:
        """Made and called without memory, then given some, and weights."""
        expected = every_layer().eval()
        with torch.device("meta"):
            network = every_layer().eval()
        output = network(X.to("meta"))
        output.sum().backward()
        assert output.shape == expected(X).shape
        assert all(p.grad.device.type == "meta" for p in network.parameters())
        network.to_empty(device=DEVICE).load_state_dict(expected.state_dict())
        assert torch.equal(network(X), expected(X))

    def test_fake(self) -> None:
        expected = results(every_layer(), X)
        with FakeTensorMode():
            network = every_layer()
            output = network(torch.empty(X.shape))
            output.sum().backward()
            assert output.shape == expected[0].shape and output.device == X.device
            assert all(p.grad.shape == p.shape for p in network.parameters())

    @layers
    def test_skip_init(self, name: str) -> None:
        ours, _, arguments = LAYERS[name]
        layer = skip_init(ours, *arguments, device=DEVICE)
        assert type(layer) is ours and layer.weight.device.type == DEVICE.type
        twin = ours(*arguments)
        layer.load_state_dict(twin.state_dict())
        assert torch.equal(layer(X), twin(X))


@layers
class TestWeights:
    """A weight may be computed anew for each call: the layer takes what it finds."""

    @pytest.mark.parametrize("tool", WEIGHT_TOOLS)
    def test_tool(self, name: str, tool: str) -> None:
        ours, theirs, arguments = LAYERS[name]
        found = []
        for layer in (ours, theirs):
            torch.manual_seed(0)
            module = layer(*arguments)
            WEIGHT_TOOLS[tool](module)
            output = module(X)
            if "ReLU" in name and layer is theirs:
                output = output.relu()
            gradients = torch.autograd.grad(output.sin().sum(), [*module.parameters()])
            found.append((module, output, gradients))
        (our_module, *our), (their_module, *their) = found
        torch.testing.assert_close(our, their)
        assert our_module.state_dict().keys() == their_module.state_dict().keys()

    def test_own_parametrization(self, name: str) -> None:
        class Symmetric(Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight + weight.flip(-1)

        ours, _, arguments = LAYERS[name]
        layer, plain = ours(*arguments), ours(*arguments)
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
        plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
        assert torch.equal(layer(X), plain(X))
        layer(X).sum().backward()
        assert layer.parametrizations.weight.original.grad is not None
        torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) is ours and torch.equal(layer(X), plain(X))


class TestCalls:
    def test_hooks(self) -> None:
        """Each before its layer, after it, and in backward, with what they may change."""
        network, called = every_layer().eval(), []
        for index, layer in enumerate(network):
            layer.register_forward_pre_hook(lambda m, x, i=index: called.append(("before", i)))
            layer.register_forward_hook(lambda m, x, y, i=index: called.append(("after", i)))
            layer.register_full_backward_pre_hook(
                lambda m, g, i=index: called.append(("backward", i))
            )
            layer.register_full_backward_hook(lambda m, g, h, i=index: called.append(("done", i)))
        network(X.clone().requires_grad_()).sum().backward()
        indices = range(len(network))
        assert called == [
            *((when, i) for i in indices for when in ("before", "after")),
            *((when, i) for i in reversed(indices) for when in ("backward", "done")),
        ]

    def test_hooks_may_change_what_passes(self) -> None:
        layer, x = nn.LinearReLU(20, 5), X.clone().requires_grad_()
        expected = layer(2 * x) + 1
        (gradient,) = torch.autograd.grad(expected.sum(), x)
        layer.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0])
        layer.register_forward_hook(lambda module, inputs, output: output + 1)
        layer.register_full_backward_pre_hook(lambda module, gradients: (3 * gradients[0],))
        output = layer(x)
        assert torch.equal(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output.sum(), x)[0], 3 * gradient)

    def test_functional_call(self) -> None:
        network, other = every_layer().eval(), every_layer().eval()
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        parameters = dict(other.named_parameters())
        output = torch.func.functional_call(network, parameters, (X,))
        assert torch.equal(output, other(X)) and not torch.equal(output, network(X))
        gradients = torch.autograd.grad(output.sum(), [*parameters.values()])
        expected = torch.autograd.grad(other(X).sum(), [*parameters.values()])
        assert all(map(torch.equal, gradients, expected))


class TestCopies:
    @staticmethod
    def saved_and_loaded(network: Module) -> Module:
        """As is recommended: the weights alone, and nothing that could run code."""
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        copied = every_layer()
        copied.load_state_dict(torch.load(buffer, weights_only=True))
        return copied

    @pytest.mark.parametrize(
        "copied",
        (copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network)), saved_and_loaded),
        ids=("deepcopy", "pickle", "state_dict"),
    )
    def test_of_a_network_in_training(self, copied: Callable[[Module], Module]) -> None:
        network = every_layer()
        torch.nn.init.normal_(network[0].weight)
        network(X).sum().backward()
        twin = copied(network)
        parameters, others = [*network.parameters()], [*twin.parameters()]
        for our, other in zip(
            results(network, X, parameters), results(twin, X, others), strict=True
        ):
            assert torch.equal(our, other)
        assert not {p.data_ptr() for p in parameters} & {p.data_ptr() for p in others}


class TestDeterministicAlgorithms:
    @pytest.fixture(autouse=True)
    def only(self) -> Iterator[None]:
        """Operators that are not deterministic raise; what they leave unwritten is NaN."""
        torch.use_deterministic_algorithms(True)
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
        torch.use_deterministic_algorithms(False)

    def test_same_bits_in_each_run_for_any_number_of_threads(self) -> None:
        network, runs = every_layer(), []
        for count in (1, 1, 2, 3):
            with threads(count):
                runs.append(results(network, normal(16, *IMAGES), [*network.parameters()]))
        for run in runs[1:]:
            assert all(map(torch.equal, run, runs[0]))
