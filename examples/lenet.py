"""D2L 7.6: LeNet learns handwritten digits, scaled to 28×28.

Both networks start from the same weights and see the same batches. Fails if one of them does
not reach 97 % on the digits that it was not trained on. The picture: their lessons, which differ by
rounding alone.
"""

from pathlib import Path
from types import ModuleType

import torch

from examples import book

EPOCHS = 25
LEARNING_RATE = 1e-2
LEAST = 0.97


def lenet(nn: ModuleType) -> torch.nn.Sequential:
    """The book's network, from the layers of `nn`."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, 10),
    )


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, 28, EPOCHS, LEAST)
    networks = book.twins(lenet, images.inputs[:1])
    lessons = book.teach(networks, images, epochs, LEARNING_RATE)
    lessons.report("LeNet")
    drawn = book.figure()
    book.curves(drawn.axes[0], lessons.losses, "LeNet: loss")
    book.curves(drawn.axes[1], lessons.accuracies, "accuracy on images not trained on")
    book.save(drawn, pictures / "lenet.png")
    return lessons.reached(least)


if __name__ == "__main__":
    book.run(main)
