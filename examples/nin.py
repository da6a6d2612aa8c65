"""D2L 8.3: NiN, with a quarter of its channels, learns digits scaled to 72×72.

It has no fully connected layers: its last block has one channel for each class, and global average
pooling makes a number of each. Fails if a network does not reach 95 %. The picture: their lessons,
and how many parameters that saves in the book's full width.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch.nn import Module, Sequential

from examples import book, networks

SIZE = 72
CLASSES = 10
EPOCHS = 10
LEARNING_RATE = 2e-3
LEAST = 0.95


def nin(nn: ModuleType) -> Sequential:
    return networks.nin(nn, narrower=4)


def he_open(layer: Module) -> None:
    """He's, but no class starts behind ReLUs that never open for it, or it would learn nothing.

    Biases start above 0, and the last two layers hand on the channel of each class.
    """
    book.he(layer)
    if isinstance(layer, torch.nn.Conv2d):
        torch.nn.init.constant_(layer.bias, 0.1)
        if layer.in_channels == CLASSES:
            torch.nn.init.dirac_(layer.weight)


def parameters(build: Callable[[ModuleType], Sequential]) -> dict[str, int]:
    """How many parameters a network for 224×224 images has, by kind of layer; allocates none."""
    with torch.device("meta"):
        network = build(torch.nn)
        network(torch.empty(1, 1, 224, 224))
    kinds = {"convolutions": torch.nn.Conv2d, "fully connected": torch.nn.Linear}
    return {
        name: sum(
            parameter.numel()
            for layer in network
            if isinstance(layer, kind)
            for parameter in layer.parameters()
        )
        for name, kind in kinds.items()
    }


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, SIZE, EPOCHS, LEAST)
    twins = book.twins(nin, images.inputs[:1], he_open)
    lessons = book.teach(twins, images, epochs, LEARNING_RATE)
    lessons.report("NiN")

    drawn = book.figure()
    lesson, bars = drawn.axes
    book.curves(lesson, lessons.accuracies, "NiN: accuracy on images not trained on")
    sizes = {name: parameters(getattr(networks, name)) for name in ("vgg11", "alexnet", "nin")}
    left = [0.0] * len(sizes)
    for kind, colour in (("convolutions", "#0072b2"), ("fully connected", "#e69f00")):
        millions = [size[kind] / 1e6 for size in sizes.values()]
        bars.barh(["VGG-11", "AlexNet", "NiN"], millions, left=left, color=colour, label=kind)
        left = [a + b for a, b in zip(left, millions, strict=True)]
    for place, total in enumerate(left):
        bars.text(total + 1, place, f"{total:.1f}", va="center")
    bars.set_title("millions of parameters, as in the book", fontsize=10)
    bars.set_xlim(0, max(left) * 1.15)
    bars.spines[["top", "right"]].set_visible(False)
    bars.legend(frameon=False)
    book.save(drawn, pictures / "nin.png")
    return lessons.reached(least)


if __name__ == "__main__":
    book.run(main)
