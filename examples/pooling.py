"""D2L 7.5: pooling, by the book's loops and by the layers, and what it is for: small movements.

A photograph that moves by a pixel has its edges elsewhere; after max-pooling they are, for the most
part, still where they were. Fails if a layer differs from the loops, or if pooling does not help.
The picture: edges before and after pooling, and how alike they are to those of the photograph moved
by one pixel and more. It takes two seconds: quick mode is the same.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from examples import book
from examples.edges import KERNEL, corr2d, photograph

SHIFTS = range(9)
WINDOWS = {1: "#999999", 2: "#56b4e9", 4: "#0072b2", 8: "#000000"}  # and their colours
TOLERANCE = 1e-5


def pool2d(image: Tensor, size: int, stride: int, padding: int, mode: str) -> Tensor:
    """The book's loops: (h, w) -> (h', w'). The border counts as −∞ in a maximum, 0 in a mean."""
    border = -torch.inf if mode == "max" else 0.0
    padded = torch.nn.functional.pad(image, (padding,) * 4, value=border)
    rows, columns = ((length - size) // stride + 1 for length in padded.shape)
    result = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            window = padded[i * stride : i * stride + size, j * stride : j * stride + size]
            result[i, j] = window.max() if mode == "max" else window.mean()
    return result


def difference(nn: ModuleType, image: Tensor) -> float:
    """Between the loops and the layers: windows of several sizes, strides and paddings."""
    furthest = 0.0
    for size, stride, padding in ((2, 1, 0), (3, 3, 0), (3, 2, 1), (4, 2, 2)):
        for mode, layer in (("max", nn.MaxPool2d), ("avg", nn.AvgPool2d)):
            by_layer = layer(size, stride=stride, padding=padding)(image[None, None])[0, 0]
            by_loops = pool2d(image, size, stride, padding, mode)
            if by_layer.shape != by_loops.shape:
                raise book.NotReachedError(f"{by_layer.shape} is not {by_loops.shape} of the loops")
            furthest = max(furthest, (by_layer - by_loops).abs().max().item())
    return furthest


def likeness(nn: ModuleType, image: Tensor, window: int) -> list[float]:
    """Correlation of the pooled edges with those of the image moved by each of SHIFTS."""
    pool = nn.MaxPool2d(window, stride=1)
    width = image.shape[1] - max(SHIFTS)
    maps = [
        pool(corr2d(nn, image[:, shift : shift + width], KERNEL).abs()[None]) for shift in SHIFTS
    ]
    return [torch.corrcoef(torch.stack([maps[0].ravel(), x.ravel()]))[0, 1].item() for x in maps]


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    image = photograph()[100:300, 100:400]
    rows, reached = {}, {}
    for name, nn in book.LAYERS.items():
        furthest = difference(nn, image[:17, :19])
        alike = {window: likeness(nn, image, window) for window in WINDOWS}
        rows[name] = {"loops − layers": f"{furthest:.1e}"} | {
            f"alike, window {window}": f"{values[1]:.2f}" for window, values in alike.items()
        }
        if furthest > TOLERANCE:
            raise book.NotReachedError(f"{name} differs from the loops by {furthest}")
        if not alike[1][1] < alike[2][1] < alike[4][1] < alike[8][1]:
            raise book.NotReachedError(f"pooling must help against a shift of one pixel: {alike}")
        reached[name] = f"correlation {alike[1][1]:.2f}, pooled by 4×4 {alike[4][1]:.2f}"
    book.table("edges of a photograph, and of the same moved by a pixel", rows)
    draw(pictures / "pooling.png", image, alike)
    return reached


def draw(path: Path, image: Tensor, alike: dict[int, list[float]]) -> None:
    """With the layers of d2lops."""
    nn = book.LAYERS["d2lops.nn"]
    drawn = book.figure(1, 3, size=(10, 3))
    edges = corr2d(nn, image[80:140, 0:80], KERNEL).abs()
    for axes, window in zip(drawn.axes, (1, 4), strict=False):
        pooled = nn.MaxPool2d(window, stride=1)(edges[None])[0]
        axes.imshow(pooled.numpy(), cmap="gray_r", vmin=0, vmax=0.3, interpolation="nearest")
        axes.set_title(
            f"after max-pooling {window}×{window}" if window > 1 else "edges", fontsize=10
        )
        axes.set_axis_off()
    curves = drawn.axes[2]
    for window, values in alike.items():
        label = f"pooled {window}×{window}" if window > 1 else "not pooled"
        curves.plot(SHIFTS, values, color=WINDOWS[window], label=label)
    curves.set_title("correlation with the moved photograph", fontsize=10)
    curves.set_xlabel("moved by, in pixels")
    curves.grid(color="#dddddd", linewidth=0.6)
    curves.spines[["top", "right"]].set_visible(False)
    curves.set_ylim(0, 1.02)
    curves.legend(frameon=False, fontsize=8, loc="lower left")
    book.save(drawn, path)


if __name__ == "__main__":
    book.run(main)
