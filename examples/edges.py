"""Edges in a photograph by cross-correlation (D2L 7.2.3), and the kernel learned back (7.2.4).

Writes edges.png to benchmarks/results (or the folder RESULTS). Fails if the learned kernel is not
the one that made the edges.
"""

import os
import sys
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_sample_image
from torch import Tensor

from d2lops import functional as F
from d2lops import nn

RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parents[1] / "benchmarks" / "results"))
KERNEL = torch.tensor([[1.0, -1.0]])  # not zero where a pixel differs from its right neighbour
STEPS = 200
LEARNING_RATE = 4.0
TOLERANCE = 1e-2


def photograph() -> Tensor:
    """scikit-learn's picture of a pavilion in China, from 0 (black) to 1 (white): (427, 640)."""
    return torch.tensor(load_sample_image("china.jpg")).float().mean(dim=2) / 255


def learn_kernel(image: Tensor, edges: Tensor) -> tuple[Tensor, list[float]]:
    """The 1×2 kernel that turns image into edges, by gradient descent; the loss before each step.

    The mean is taken off the image: the edges do not depend on it, but how steep the loss is does.
    Still, neighbouring pixels are so alike that the loss is steep along (1, 1) and flat along
    (1, -1): hence the many steps.
    """
    conv = nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False)
    inputs, targets = (image - image.mean())[None, None], edges[None, None]
    losses = []
    for _ in track(range(STEPS), description="learning the kernel"):
        loss = ((conv(inputs) - targets) ** 2).mean()
        conv.zero_grad()
        loss.backward()
        with torch.no_grad():
            conv.weight -= LEARNING_RATE * conv.weight.grad
        losses.append(loss.item())
    return conv.weight.detach()[0, 0], losses


def plot(path: Path, image: Tensor, edges: Tensor, learned: Tensor, losses: list[float]) -> None:
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    axes[0, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("photograph X")
    axes[0, 1].imshow(edges, cmap="RdBu", vmin=-0.25, vmax=0.25)
    axes[0, 1].set_title("edges: corr2d(X, [1, −1])")
    axes[1, 0].imshow(F.corr2d(image, learned), cmap="RdBu", vmin=-0.25, vmax=0.25)
    left, right = learned[0].tolist()
    axes[1, 0].set_title(f"by the learned kernel [{left:.3f}, −{-right:.3f}]")
    for picture in (axes[0, 0], axes[0, 1], axes[1, 0]):
        picture.set_axis_off()
    curve = axes[1, 1]
    curve.semilogy(losses, color="#0072b2")
    curve.set_title("learning the kernel: mean squared error")
    curve.set_xlabel("step")
    curve.set_box_aspect(image.shape[0] / image.shape[1])
    curve.grid(color="#dddddd", linewidth=0.6)
    curve.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    matplotlib.use("agg")
    torch.manual_seed(0)
    image = photograph()
    edges = F.corr2d(image, KERNEL)
    learned, losses = learn_kernel(image, edges)
    error = (learned - KERNEL).abs().max().item()
    RESULTS.mkdir(parents=True, exist_ok=True)
    plot(RESULTS / "edges.png", image, edges, learned, losses)
    console = Console()
    console.print(
        f"kernel {KERNEL[0].tolist()} learned from a photograph of {image.shape[0]}×"
        f"{image.shape[1]} in {STEPS} steps of gradient descent, learning rate {LEARNING_RATE}: "
        f"{learned[0].tolist()}, error {error:.1e}"
    )
    console.print(f"wrote {RESULTS / 'edges.png'}")
    if error > TOLERANCE:
        sys.exit(f"the learned kernel is further than {TOLERANCE} from {KERNEL[0].tolist()}")


if __name__ == "__main__":
    main()
