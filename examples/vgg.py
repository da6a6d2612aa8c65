"""D2L 8.2: VGG-11, with an eighth of its channels, learns digits scaled to 32×32.

Each of its five blocks halves the image. Fewer channels than even the book trains it with, and 256
hidden units in place of 4,096, make it a matter of seconds. Fails if a network does not reach 95 %.
The picture: their lessons, and an image on its way through the blocks: the mean of its channels,
from 0 (black) to its largest value.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Sequential

from examples import book, networks

SIZE = 32
EPOCHS = 10
LEARNING_RATE = 1e-3
LEAST = 0.95


def vgg11(nn: ModuleType) -> Sequential:
    return networks.vgg11(nn, narrower=8, hidden=256)


@torch.no_grad()
def after_each_block(network: Sequential, image: Tensor) -> list[Tensor]:
    """What one image, (1, 1, h, w), is after each block's pooling: (channels, h / 2, w / 2), ..."""
    results, x = [], image
    for layer in network.eval():
        x = layer(x)
        if isinstance(layer, torch.nn.MaxPool2d):
            results.append(x[0])
    return results


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, SIZE, EPOCHS, LEAST)
    twins = book.twins(vgg11, images.inputs[:1], book.he)
    lessons = book.teach(twins, images, epochs, LEARNING_RATE)
    lessons.report("VGG-11")

    drawn = book.figure(2, 4, size=(9, 4.2))
    lesson, *steps, unused = drawn.axes
    unused.remove()
    book.curves(lesson, lessons.accuracies, "VGG-11: test accuracy")
    image = images.test_inputs[:1]
    shown = [image[0], *after_each_block(twins["d2lops.nn"], image)]
    for number, (axes, x) in enumerate(zip(steps, shown, strict=True)):
        axes.imshow(x.mean(dim=0).numpy(), cmap="gray", vmin=0)
        name = f"block {number}" if number else "an image"
        axes.set_title(f"{name}: {'×'.join(map(str, x.shape))}", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    book.save(drawn, pictures / "vgg.png")
    return lessons.reached(least)


if __name__ == "__main__":
    book.run(main)
