"""D2L 7.2: edges in a photograph by cross-correlation, and the kernel learned back.

The kernel [1, −1] is not zero where a pixel differs from its right neighbour. From the photograph
and its edges alone, gradient descent finds it again; fails if it finds another one. The picture:
photograph, edges, edges by the learned kernel, and how the loss fell. Quick mode learns from a part
of the photograph.
"""

from pathlib import Path
from types import ModuleType

import torch
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch import Tensor

from examples import book

KERNEL = torch.tensor([[1.0, -1.0]])
STEPS = 200
LEARNING_RATE = 4.0
TOLERANCE = 1e-2
SHOWN = (slice(180, 250), slice(60, 165))  # of the roof


def photograph() -> Tensor:
    """scikit-learn's picture of a pavilion in China, from 0 (black) to 1 (white): (427, 640)."""
    return torch.tensor(load_sample_image("china.jpg")).float().mean(dim=2) / 255


def corr2d(nn: ModuleType, image: Tensor, kernel: Tensor) -> Tensor:
    """The book's, of two matrices."""
    return nn.functional.conv2d(image[None, None], kernel[None, None])[0, 0]


def learn_kernel(
    nn: ModuleType, image: Tensor, edges: Tensor, steps: int = STEPS
) -> tuple[Tensor, list[float]]:
    """The 1×2 kernel that turns image into edges, by gradient descent; the loss before each step.

    The mean is taken off the image: the edges do not depend on it, but how steep the loss is does.
    Still, neighbouring pixels are so alike that the loss is steep along (1, 1) and flat along
    (1, -1): hence the many steps.
    """
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False)
    inputs, targets = (image - image.mean())[None, None], edges[None, None]
    losses = []
    for _ in track(range(steps), description="learning the kernel"):
        loss = ((conv(inputs) - targets) ** 2).mean()
        conv.zero_grad()
        loss.backward()
        with torch.no_grad():
            conv.weight -= LEARNING_RATE * conv.weight.grad
        losses.append(loss.item())
    return conv.weight.detach()[0, 0], losses


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    image = photograph()[SHOWN if quick else ...]
    learned, losses, rows = {}, {}, {}
    for name, nn in book.LAYERS.items():
        edges = corr2d(nn, image, KERNEL)
        learned[name], losses[name] = learn_kernel(nn, image, edges)
        error = (learned[name] - KERNEL).abs().max().item()
        left, right = learned[name][0].tolist()
        rows[name] = {"learned": f"[{left:.3f}, −{-right:.3f}]", "error": f"{error:.1e}"}
        if error > TOLERANCE:
            raise book.NotReachedError(f"learned {learned[name]}, not {KERNEL} ± {TOLERANCE}")
    book.table(f"the kernel {KERNEL[0].tolist()} from {STEPS} steps", rows)
    draw(pictures / "edges.png", learned["d2lops.nn"], losses)
    return {name: row["learned"] for name, row in rows.items()}


def draw(path: Path, learned: Tensor, losses: dict[str, list[float]]) -> None:
    """With the layers of d2lops."""
    image, nn = photograph()[SHOWN], book.LAYERS["d2lops.nn"]
    drawn = book.figure(2, 2, size=(7, 4.8))
    *maps, curve = drawn.axes
    maps[0].imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    maps[0].set_title("photograph X", fontsize=10)
    titles = ("edges: corr2d(X, [1, −1])", "by the learned kernel")
    for axes, kernel, title in zip(maps[1:], (KERNEL, learned), titles, strict=True):
        found = corr2d(nn, image, kernel).numpy()
        axes.imshow(found, cmap="RdBu", vmin=-0.25, vmax=0.25, interpolation="nearest")
        axes.set_title(title, fontsize=10)
    for axes in maps:
        axes.set_axis_off()
    book.curves(curve, losses, "learning the kernel: mean squared error", x="step")
    curve.set_yscale("log")
    book.save(drawn, path)


if __name__ == "__main__":
    book.run(main)
