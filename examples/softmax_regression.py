"""D2L 4.4, 4.5: softmax regression tells digits apart, from scratch and concisely.

From scratch there are a weight, a bias, the function `linear`, and the book's softmax and
cross-entropy. The picture shows what the weight of each class has come to look for.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from examples import book

LEARNING_RATE = 0.5


def softmax(x: Tensor) -> Tensor:
    """D2L 4.4.1, with the largest exponent taken off, so that none overflows (4.5.2)."""
    exponentials = (x - x.max(dim=1, keepdim=True).values).exp()
    return exponentials / exponentials.sum(dim=1, keepdim=True)


def cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """D2L 4.4.3."""
    return -probabilities[torch.arange(len(labels)), labels].log().mean()


class FromScratch(Module):
    """D2L 4.4.2: a weight, a bias, and the probabilities that they give."""

    def __init__(self, nn: ModuleType, inputs: int, classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.functional.linear
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(0.01 * torch.randn(classes, inputs, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros(classes))

    def forward(self, images: Tensor) -> Tensor:
        return softmax(self.linear(images.flatten(1), self.weight, self.bias))


def concise(nn: ModuleType) -> Module:
    """D2L 4.5.1: the layer leaves the softmax to the loss."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def side_by_side(weight: Tensor, size: int) -> Tensor:
    """The weights of ten classes as images, five in a row, with a gap between them."""
    images = torch.nn.functional.pad(weight.reshape(10, size, size), (1, 1, 1, 1), value=torch.nan)
    return images.reshape(2, 5, size + 2, size + 2).transpose(1, 2).flatten(2).flatten(0, 1)


def plot(path: Path, accuracies: dict[str, list[float]], weight: Tensor, size: int) -> None:
    drawn = book.figure()
    curve, pictures = drawn.axes
    book.curves(curve, accuracies, "from scratch: test accuracy")
    images = side_by_side(weight, size).numpy()
    largest = weight.abs().max()
    pictures.imshow(images, cmap="RdBu_r", vmin=-largest, vmax=largest)
    pictures.set_title("weights of the ten classes (d2lops.nn)", fontsize=10)
    pictures.set_axis_off()
    book.save(drawn, path)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    size = 8 if data is None else 28
    images = book.image_data(data, size)
    epochs, required = (30, 0.95) if data is None else (5, 0.8)
    if quick:
        images, epochs, required = images.first(1437, 360), 5, 0.6
    lessons = book.teach(book.twins(concise, images.inputs[:1]), images, epochs, 0.05)
    concisely = lessons.reached(required)
    accuracies: dict[str, list[float]] = {}
    for name, nn in book.LAYERS.items():
        network = FromScratch(nn, size * size)
        descent = torch.optim.SGD(network.parameters(), LEARNING_RATE)
        training = book.train(network, descent, images, epochs, loss=cross_entropy)
        accuracies[name] = [
            book.accuracy(network, images.test_inputs, images.test_targets) for _ in training
        ]
        if accuracies[name][-1] < required:
            raise book.NotReachedError(f"{name}, from scratch: {accuracies[name][-1]:.1%}")
    rows = {
        name: {"from scratch": f"{of[-1] * 100:.1f} %", "concise": concisely[name]}
        for name, of in accuracies.items()
    }
    book.table(f"test accuracy, {epochs} epochs", rows)
    plot(pictures / "softmax_regression.png", accuracies, network.weight.detach(), size)
    return concisely


if __name__ == "__main__":
    book.run(main)
