"""D2L 8.4: GoogLeNet, with a quarter of its channels, learns digits scaled to 48×48.

Its nine Inception blocks look at an image through windows of three sizes, and through a pooled one,
side by side. Fails if a network does not reach 95 %. The picture: their lessons, and what each path
of the first block costs, and gives, in the book's full width.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch.nn import Sequential

from examples import book, networks

SIZE = 48
EPOCHS = 8
LEARNING_RATE = 2e-3
LEAST = 0.95
PATHS = {"1×1": "#0072b2", "3×3": "#e69f00", "5×5": "#009e73", "pooling": "#cc79a7"}


def googlenet(nn: ModuleType) -> Sequential:
    return networks.googlenet(nn, narrower=4)


def shares() -> dict[str, list[float]]:
    """What each path of the first Inception block has of its parameters, and of its channels."""
    with torch.device("meta"):
        block = networks.Inception(torch.nn, False, 64, (96, 128), (16, 32), 32)
        image = torch.empty(1, 192, 12, 12)
        channels = [path(image).shape[1] for path in block.paths]
    weights = [sum(weight.numel() for weight in path.parameters()) for path in block.paths]
    return {
        name: [count / sum(counts) for count in counts]
        for name, counts in (("parameters", weights), ("channels", channels))
    }


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, SIZE, EPOCHS, LEAST)
    twins = book.twins(googlenet, images.inputs[:1], book.he)
    lessons = book.teach(twins, images, epochs, LEARNING_RATE)
    lessons.report("GoogLeNet")

    drawn = book.figure()
    lesson, bars = drawn.axes
    book.curves(lesson, lessons.accuracies, "GoogLeNet: accuracy on images not trained on")
    for place, (name, parts) in enumerate(shares().items()):
        left = 0.0
        for (path, colour), part in zip(PATHS.items(), parts, strict=True):
            bars.barh(name, part, left=left, color=colour, label=path if place == 0 else None)
            bars.text(left + part / 2, place, f"{part * 100:.0f}", ha="center", va="center")
            left += part
    bars.set_title("paths of the first Inception block: share in %", fontsize=10)
    bars.set_xlim(0, 1)
    bars.set_ylim(-0.6, 2)
    bars.set_xticks([])
    bars.spines[["top", "right", "bottom"]].set_visible(False)
    bars.legend(frameon=False, ncols=4, loc="upper center")
    book.save(drawn, pictures / "googlenet.png")
    return lessons.reached(least)


if __name__ == "__main__":
    book.run(main)
