"""Networks in channels_last stay in it: no layer, and no gradient, turns an image around.

But the one that a flattening does: its output's order is that of contiguous images.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import d2lops.nn
from examples import networks
from tests.device import normal
from tests.every_layer import every_layer, results

# Images of three channels: of one, both layouts are the same memory.
pytestmark = pytest.mark.usefixtures("in_float64")

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "every_layer": (every_layer, (3, 20, 20)),
    "vgg11": (lambda: networks.vgg11(d2lops.nn, fused=True, narrower=16), (3, 64, 64)),
    "nin": (lambda: networks.nin(d2lops.nn, fused=True), (3, 96, 96)),
    "googlenet": (lambda: networks.googlenet(d2lops.nn, fused=True), (3, 64, 64)),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def turned(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def channels_innermost(x: Tensor) -> bool:
    """Pixels may be apart in memory, as in one of several tensors that were stacked."""
    return x.stride(1) == 1 or x.size(1) == 1


def network_and_images(name: str) -> tuple[torch.nn.Module, Tensor]:
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network, images = make(), normal(2, *size)
    with torch.no_grad():
        network(images)
    return network, images


class Copies(TorchDispatchMode):
    """Notes the sizes of the images that are copied to other places."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[torch.Size] = []

    def __torch_dispatch__(
        self, function: torch._ops.OpOverload, types: tuple, args: tuple = (), kwargs=None
    ) -> object:
        if function in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default):
            self.sizes.append(args[0].shape)
        return function(*args, **(kwargs or {}))


@each_network
def test_every_image_stays(name: str) -> None:
    network, images = network_and_images(name)
    network, seen = network.to(memory_format=torch.channels_last), []

    def note(layer: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.dim() != 4:
            return
        seen.append((type(layer).__name__, "output", output))
        output.register_hook(lambda gradient: seen.append((type(layer).__name__, "", gradient)))

    layers = [layer for layer in network.modules() if not [*layer.children()]]
    before_flattening = layers[: [type(layer).__name__ for layer in layers].index("Flatten")]
    for layer in before_flattening[:-1]:  # the gradient of the last one comes from the flattening
        layer.register_forward_hook(note)
    images = turned(images).requires_grad_()
    with Copies() as copies:
        network(images).square().sum().backward()
    assert len(seen) == 2 * (len(before_flattening) - 1)
    for layer, what, x in seen:
        assert channels_innermost(x), f"{what or 'gradient'} of {layer}: {x.shape}, {x.stride()}"
    assert images.grad.is_contiguous(memory_format=torch.channels_last)
    assert len(copies.sizes) <= 2, copies.sizes  # the flattening, and back


@each_network
def test_same_numbers(name: str) -> None:
    network, images = network_and_images(name)
    expected = results(network, images, [*network.parameters()])
    network = network.to(memory_format=torch.channels_last)
    ours = results(network, turned(images), [*network.parameters()])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "layer",
    (
        d2lops.nn.MaxPool2d(2),
        d2lops.nn.AvgPool2d(2),
        d2lops.nn.AdaptiveMaxPool2d((2, 3)),
        d2lops.nn.AdaptiveAvgPool2d((2, 3)),
        d2lops.nn.AdaptiveMaxPool2d(1),
        d2lops.nn.AdaptiveAvgPool2d(1),
    ),
    ids=repr,
)
def test_a_pools_gradient_is_laid_out_as_its_image(layer: torch.nn.Module) -> None:
    """Also where what comes after it turns the layout of the output's gradient."""
    for x in (normal(2, 3, 8, 9), turned(normal(2, 3, 8, 9))):
        x.requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad(y, x, normal(*y.shape))
        assert gradient.stride() == x.stride()
