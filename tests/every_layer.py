"""Networks of d2lops's layers, for tests of what PyTorch does with whole networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module, Sequential

import d2lops.nn
from examples import lenet, networks
from tests.device import normal

IMAGES = (3, 20, 20)  # what `every_layer` takes


def every_layer(nn: object = d2lops.nn) -> Sequential:
    """One of each layer, but for the lazy ones, which the book's networks have."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, padding="same"),
        nn.Sigmoid(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.ConvReLU2d(8, 12, 3, padding=(1, 0, 2, 1)),
        nn.AvgPool2d(3, 2, 1),
        nn.Dropout(0.3),
        nn.AdaptiveMaxPool2d((4, None)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LinearReLU(48, 16),
        nn.Linear(16, 5),
    )


# The book's networks and the smallest images that leave each of their pools something to do. All
# but LeNet are made with fused layers.
BOOK: dict[str, tuple[Callable[[], Module], tuple[int, ...]]] = {
    "lenet": (lambda: lenet.lenet(d2lops.nn), (1, 28, 28)),
    "dropout_mlp": (lambda: networks.dropout_mlp(d2lops.nn, fused=True), (1, 28, 28)),
    "vgg11": (lambda: networks.vgg11(d2lops.nn, fused=True, narrower=16), (1, 64, 64)),
    "nin": (lambda: networks.nin(d2lops.nn, fused=True), (1, 96, 96)),
    "googlenet": (lambda: networks.googlenet(d2lops.nn, fused=True), (1, 64, 64)),
}


def book_network(name: str, batch: int = 2) -> tuple[Module, Tensor]:
    """A network whose lazy layers have seen images, and a batch of such."""
    make, size = BOOK[name]
    torch.manual_seed(0)
    network, images = make(), normal(batch, *size)
    with torch.no_grad():
        network(images)
    return network, images


def results(network: Callable[[Tensor], Tensor], images: Tensor, wanted: Sequence[Tensor] = ()):
    """The output for seed 0, and the gradients of the images and of the tensors `wanted`."""
    images = images.detach().requires_grad_()
    torch.manual_seed(0)
    output = network(images)
    # A loss in which no output cancels another.
    loss = output.square().sum()
    return [output.detach().clone(), *torch.autograd.grad(loss, [images, *wanted])]
