"""D2L 7.3, 7.4: padding, stride and channels, by the book's loops and by the layers.

The book's cases, on 8×8 pixels of a photograph in three colours: shapes must be those of its
formula, values those of its loops, and a 1×1 convolution a matrix product with each pixel's
channels. The picture: what a blur of 9×9 makes of the photograph with and without padding and
stride, and what 1×1 convolutions make of its colours. It takes two seconds: quick mode is the same.
"""

from pathlib import Path
from types import ModuleType

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from d2lops import functional as F
from examples import book

# The book's: name, kernel, padding, stride, and the shape it makes of 8×8.
CASES = (
    ("kernel 3", (3, 3), (0, 0), (1, 1), (6, 6)),
    ("kernel 3, padding 1", (3, 3), (1, 1), (1, 1), (8, 8)),
    ("kernel 5×3, padding 2×1", (5, 3), (2, 1), (1, 1), (8, 8)),
    ("kernel 3, padding 1, stride 2", (3, 3), (1, 1), (2, 2), (4, 4)),
    ("kernel 3×5, padding 0×1, stride 3×4", (3, 5), (0, 1), (3, 4), (2, 2)),
)
OUT_CHANNELS = 2
TOLERANCE = 1e-5
GREY = [0.299, 0.587, 0.114]  # how bright red, green and blue are to the eye
Pair = tuple[int, int]


def photograph() -> Tensor:
    """scikit-learn's picture of a dahlia, red, green and blue from 0 to 1: (3, 427, 640)."""
    return torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1).float() / 255


def corr2d_multi_in_out(image: Tensor, kernels: Tensor, padding: Pair, stride: Pair) -> Tensor:
    """The book's loops: (in, h, w), (out, in, kh, kw) -> (out, h', w')."""
    height, width = kernels.shape[2:]
    padded = torch.nn.functional.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    rows = (padded.shape[1] - height) // stride[0] + 1
    columns = (padded.shape[2] - width) // stride[1] + 1
    result = torch.zeros(len(kernels), rows, columns)
    for out, kernel in enumerate(kernels):
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride[0], j * stride[1]
                window = padded[:, top : top + height, left : left + width]
                result[out, i, j] = (window * kernel).sum()
    return result


def check(nn: ModuleType, image: Tensor) -> tuple[dict[str, str], float]:
    """The shape that `nn` makes in each of CASES, and how far it is from the loops at most."""
    shapes, furthest = {}, 0.0
    for name, size, padding, stride, shape in CASES:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, OUT_CHANNELS, size, padding=padding, stride=stride, bias=False)
        result = layer(image[None])[0].detach()
        if result.shape != (OUT_CHANNELS, *shape):
            raise book.NotReachedError(f"{name}: {result.shape} is not {OUT_CHANNELS}×{shape}")
        loops = corr2d_multi_in_out(image, layer.weight.detach(), padding, stride)
        furthest = max(furthest, (result - loops).abs().max().item())
        shapes[name] = "×".join(map(str, result.shape))
    weight = torch.randn(OUT_CHANNELS, 3)
    by_product = (weight @ image.flatten(1)).unflatten(1, image.shape[1:])
    one_by_one = nn.functional.conv2d(image[None], weight[:, :, None, None])[0]
    return shapes, max(furthest, (one_by_one - by_product).abs().max().item())


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    image = photograph()
    rows, reached = {}, {}
    for name, nn in book.LAYERS.items():
        shapes, furthest = check(nn, image[:, 200:208, 300:308])
        if furthest > TOLERANCE:
            raise book.NotReachedError(f"{name} differs from the loops by {furthest}")
        for case, shape in (shapes | {"furthest from the loops": f"{furthest:.0e}"}).items():
            rows.setdefault(case, {})[name] = shape
        reached[name] = f"{furthest:.0e} from the loops"
    book.table("3×8×8 by the book's cases", rows)
    draw(pictures / "padding_stride_channels.png", image[:, 100:356:3, 150:534:3])
    return reached


def draw(path: Path, image: Tensor) -> None:
    """With the functions of d2lops."""
    blur = torch.eye(3)[:, :, None, None].expand(3, 3, 9, 9) / 81
    swapped = torch.eye(3)[[2, 0, 1]][:, :, None, None]
    grey = torch.tensor(GREY).reshape(1, 3, 1, 1)
    panels = {
        "photograph": image,
        "blur 9×9": F.conv2d(image, blur),
        "padding 4": F.conv2d(image, blur, padding=4),
        "padding 4, stride 4": F.conv2d(image, blur, padding=4, stride=4),
        "1×1, 3 → 3: colours turned": F.conv2d(image, swapped),
        "1×1, 3 → 1: grey": F.conv2d(image, grey),
    }
    drawn = book.figure(2, 3, size=(7, 3.6))
    for axes, (title, x) in zip(drawn.axes, panels.items(), strict=True):
        pixels = x.permute(1, 2, 0).clamp(0, 1)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{title}: {'×'.join(map(str, x.shape))}", fontsize=8)
        axes.set_xlim(-0.5, image.shape[2] - 0.5)  # so that what is smaller looks smaller
        axes.set_ylim(image.shape[1] - 0.5, -0.5)
        axes.set_axis_off()
    book.save(drawn, path)


if __name__ == "__main__":
    book.run(main)
