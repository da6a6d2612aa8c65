"""D2L 7.6: LeNet learns handwritten digits, scaled to 28×28.

Both networks start from the same weights and see the same batches. The picture has their lessons,
and what they still take for another digit.
"""

from pathlib import Path
from statistics import median
from types import ModuleType

import torch

from examples import book

EPOCHS = 25
LEARNING_RATE = 1e-2


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
    images = book.image_data(data, 28)
    epochs, required = EPOCHS, 0.97 if data is None else 0.85
    if quick:
        images, epochs, required = images.first(320, 100), 4, None
    networks = book.twins(lenet, images.inputs[:1])
    lessons = book.teach(networks, images, epochs, LEARNING_RATE)
    book.table(
        f"LeNet, {epochs} epochs",
        {
            name: {
                "loss": f"{lessons.losses[name][-1]:.4f}",
                "test accuracy": f"{lessons.accuracies[name][-1]:.1%}",
                "an epoch": f"{median(lessons.seconds[name]) * 1e3:.0f} ms",
            }
            for name in networks
        },
    )
    drawn = book.figure()
    book.curves(drawn.axes[0], lessons.losses, "LeNet: loss")
    book.curves(drawn.axes[1], lessons.accuracies, "accuracy on other digits")
    book.save(drawn, pictures / "lenet.png")
    return lessons.reached(required)


if __name__ == "__main__":
    book.run(main)
