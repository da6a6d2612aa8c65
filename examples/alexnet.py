"""D2L 8.1: AlexNet, with a quarter of its channels, learns digits scaled to 72×72.

Fewer channels, and 512 hidden units in place of 4,096, make it a matter of seconds; the layers are
the book's. Fails if a network does not reach 97 %. The picture: their lessons, and the kernels of
the first layer.
"""

from pathlib import Path
from types import ModuleType

from torch import Tensor, nan
from torch.nn import Sequential
from torch.nn.functional import pad

from examples import book, networks

SIZE = 72
EPOCHS = 10
LEARNING_RATE = 1e-3
LEAST = 0.97


def alexnet(nn: ModuleType) -> Sequential:
    return networks.alexnet(nn, narrower=4, hidden=512)


def side_by_side(kernels: Tensor, rows: int = 4) -> Tensor:
    """(n, h, w) as one image of `rows` rows, with nothing (NaN) between neighbours."""
    height, width = kernels.shape[1] + 1, kernels.shape[2] + 1
    grid = pad(kernels, (0, 1, 0, 1), value=nan).reshape(rows, -1, height, width)
    return grid.transpose(1, 2).reshape(rows * height, -1)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, SIZE, EPOCHS, LEAST)
    twins = book.twins(alexnet, images.inputs[:1])
    lessons = book.teach(twins, images, epochs, LEARNING_RATE)
    lessons.report("AlexNet")

    drawn = book.figure()
    lesson, kernels = drawn.axes
    book.curves(lesson, lessons.accuracies, "AlexNet: accuracy on images not trained on")
    learned = twins["d2lops.nn"][0].weight.detach()[:, 0]
    largest = learned.abs().max().item()
    shown = kernels.imshow(side_by_side(learned).numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
    kernels.set_title("its first layer: 24 kernels of 11×11", fontsize=10)
    kernels.set_axis_off()
    drawn.colorbar(shown, ax=kernels, label="weight", shrink=0.8)
    book.save(drawn, pictures / "alexnet.png")
    return lessons.reached(least)


if __name__ == "__main__":
    book.run(main)
