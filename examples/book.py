"""What the book's scripts share: their command line, data, training, tables and pictures.

A script is a module with a docstring that begins ``D2L 7.6: what it shows.`` and a function
``main(quick, data, pictures)``. It prints its figures, draws ``NAME.png`` in the folder `pictures`,
raises `NotReachedError` where a figure is not what it must be, and returns the figure reached with
each of `LAYERS`, for the table in README.md: ``{"torch.nn": "98.6 %", "d2lops.nn": "98.6 %"}``.
"""

import argparse
import gzip
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import NamedTuple

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich import get_console
from rich.progress import track
from rich.table import Table
from sklearn import datasets
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import d2lops.nn

PICTURES = Path(__file__).parent / "pictures"
LAYERS: dict[str, ModuleType] = {"torch.nn": torch.nn, "d2lops.nn": d2lops.nn}
# Colours that the colour-blind tell apart; torch's line is the wider, so that both are seen where
# they agree.
LINES = {
    "torch.nn": {"color": "#e69f00", "linewidth": 4.5},
    "d2lops.nn": {"color": "#0072b2", "linewidth": 1.5},
}
BATCH = 32
APART = 0.03  # accuracies of two trainings that differ by dropout and rounding, at most
FASHION = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
FASHION_EPOCHS = 3  # there are forty times as many images as digits
FASHION_LEAST = 0.75
IDX_OF_BYTES = 8  # the type that an idx file names third, before its number of dimensions


class NotReachedError(Exception):
    """A script's figure is not what it must be."""


class Data(NamedTuple):
    """What a network is trained on, and what it is tested on."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def first(self, training: int, test: int) -> "Data":
        """A part, for quick mode."""
        return Data(
            self.inputs[:training],
            self.targets[:training],
            self.test_inputs[:test],
            self.test_targets[:test],
        )


class Course(NamedTuple):
    """Images to classify, for how many epochs, and the accuracy that must be reached, if any."""

    data: Data
    epochs: int
    least: float | None


def run(main: Callable[..., dict[str, str]]) -> None:
    """A script's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a fraction of the work")
    parser.add_argument(
        "--data", type=Path, help="a copy of the data that the book takes, if not these"
    )
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="the folder to draw in")
    main(**vars(parser.parse_args()))


def digits(size: int = 8) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8×8, scaled to size×size; from 0 to 1, shuffled."""
    data = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return _split(_scaled(images, size), torch.tensor(data.target), training=1437)


def fashion_mnist(folder: Path, size: int = 28) -> Data:
    """Fashion-MNIST from its four files as published, scaled to size×size; from 0 to 1."""
    images, labels, test_images, test_labels = (read_idx(folder / name) for name in FASHION)
    return Data(
        _scaled(images.unsqueeze(1) / 255, size),
        labels.long(),
        _scaled(test_images.unsqueeze(1) / 255, size),
        test_labels.long(),
    )


def image_data(folder: Path | None, size: int) -> Data:
    """Ten classes of size×size images: Fashion-MNIST if there is a copy of it, else digits."""
    return digits(size) if folder is None else fashion_mnist(folder, size)


def course(quick: bool, folder: Path | None, size: int, epochs: int, least: float) -> Course:
    """What a network is taught, for how long, and what it must reach.

    `epochs` and `least` are for digits; Fashion-MNIST takes fewer epochs, and is more difficult.
    """
    if quick:
        return Course(image_data(folder, size).first(160, 50), 2, None)
    if folder is not None:
        return Course(fashion_mnist(folder, size), FASHION_EPOCHS, FASHION_LEAST)
    return Course(digits(size), epochs, least)


def diabetes() -> Data:
    """scikit-learn's 442 patients: ten standardised measurements, and how the disease went on."""
    data = datasets.load_diabetes()
    inputs = torch.tensor(data.data, dtype=torch.float32)
    targets = torch.tensor(data.target, dtype=torch.float32).unsqueeze(1)
    split = _split(inputs, targets, training=342)
    return Data(
        _standardised(split.inputs, split.inputs),
        _standardised(split.targets, split.targets),
        _standardised(split.test_inputs, split.inputs),
        _standardised(split.test_targets, split.targets),
    )


def read_idx(path: Path) -> Tensor:
    """The bytes in an idx file: two zeros, their type, the number of sizes, the sizes, the data."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != bytes((0, 0, IDX_OF_BYTES)):
        raise ValueError(f"{path} must be an idx file of bytes, but begins {content[:3]!r}")
    rank = content[3]
    sizes = numpy.frombuffer(content, dtype=">u4", count=rank, offset=4).tolist()
    values = numpy.frombuffer(content, dtype=numpy.uint8, offset=4 + 4 * rank)
    return torch.tensor(values).reshape(sizes)


def xavier(layer: Module) -> None:
    """The book's initialisation (D2L 5.4.2), for `Module.apply`."""
    if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
        torch.nn.init.xavier_uniform_(layer.weight)


def he(layer: Module) -> None:
    """He's initialisation, which keeps the scale through many ReLUs, for `Module.apply`."""
    if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def twins(
    build: Callable[[ModuleType], Module],
    example: Tensor,
    init: Callable[[Module], None] = xavier,
) -> dict[str, Module]:
    """The network that `build` makes of each of `LAYERS`, with the same weights.

    `example` tells lazy layers their sizes; `init` is applied to each layer.
    """
    torch.manual_seed(0)
    networks = {name: build(nn) for name, nn in LAYERS.items()}
    for network in networks.values():
        network.eval()(example)
        network.train()
    networks["torch.nn"].apply(init)
    networks["d2lops.nn"].load_state_dict(networks["torch.nn"].state_dict())
    return networks


def train(
    network: Module,
    optimizer: Optimizer,
    data: Data,
    epochs: int,
    *,
    batch: int = BATCH,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    schedule: LRScheduler | None = None,
) -> Iterator[float]:
    """Trains for one epoch each time it is asked for the next mean loss.

    The order of the batches is the same in every training; `schedule` steps after each batch.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        network.train()
        total = 0.0
        for chosen in torch.randperm(len(data.targets), generator=generator).split(batch):
            optimizer.zero_grad()
            error = loss(network(data.inputs[chosen]), data.targets[chosen])
            error.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += error.item() * len(chosen)
        yield total / len(data.targets)


@dataclass
class Lessons:
    """How two networks learned to classify: for each of `LAYERS`, a number for each epoch."""

    losses: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LAYERS})
    accuracies: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in LAYERS}
    )
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in LAYERS})

    def report(self, title: str) -> None:
        """Prints what was reached, and how long an epoch took: the median, without its test."""
        rows = {}
        for name, seconds in self.seconds.items():
            rows[name] = {
                "loss": f"{self.losses[name][-1]:.4f}",
                "test accuracy": f"{self.accuracies[name][-1]:.1%}",
                "an epoch": f"{median(seconds) * 1e3:.0f} ms",
            }
        table(f"{title}, {len(seconds)} epochs", rows)

    def reached(self, least: float | None) -> dict[str, str]:
        """The last accuracies, as a script returns them.

        Raises if one is below `least`, or if they are further apart than `APART`; in quick mode,
        where `least` is None, neither is asked.
        """
        last = {name: accuracies[-1] for name, accuracies in self.accuracies.items()}
        if least is not None and min(last.values()) < least:
            raise NotReachedError(f"test accuracies must be at least {least}, but are {last}")
        if least is not None and max(last.values()) - min(last.values()) > APART:
            raise NotReachedError(f"test accuracies must be within {APART}, but are {last}")
        return {name: f"{accuracy * 100:.1f} %" for name, accuracy in last.items()}


def teach(
    networks: dict[str, Module], data: Data, epochs: int, learning_rate: float, batch: int = BATCH
) -> Lessons:
    """Trains `twins` to classify, with Adam, whose rate rises to `learning_rate` and falls again.

    Their epochs take turns, so that both get the same share of a busy machine.
    """
    steps = epochs * math.ceil(len(data.targets) / batch)
    trainings = {}
    for name, network in networks.items():
        optimizer = torch.optim.Adam(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
        trainings[name] = train(network, optimizer, data, epochs, batch=batch, schedule=schedule)
    lessons = Lessons()
    for _ in track(range(epochs), description="epochs"):
        for name, training in trainings.items():
            start = time.perf_counter()
            lessons.losses[name].append(next(training))
            lessons.seconds[name].append(time.perf_counter() - start)
            right = accuracy(networks[name], data.test_inputs, data.test_targets)
            lessons.accuracies[name].append(right)
    return lessons


@torch.no_grad()
def predict(network: Module, inputs: Tensor) -> Tensor:
    """The network's outputs, in evaluation mode and in batches."""
    network.eval()
    return torch.cat([network(part) for part in inputs.split(256)])


def accuracy(network: Module, inputs: Tensor, labels: Tensor) -> float:
    return (predict(network, inputs).argmax(dim=1) == labels).float().mean().item()


def table(title: str, rows: dict[str, dict[str, str]]) -> None:
    """Prints a row for each of `LAYERS`, or what else it is named, and a column for each figure."""
    result = Table("", *next(iter(rows.values())), title=title)
    for name, figures in rows.items():
        result.add_row(name, *figures.values())
    get_console().print(result)


def figure(rows: int = 1, columns: int = 2, size: tuple[float, float] = (9, 3.4)) -> Figure:
    """Axes to draw on, ``figure.axes``, row by row; without a screen."""
    drawn = Figure(figsize=size, layout="constrained")
    drawn.subplots(rows, columns)
    return drawn


def curves(axes: Axes, histories: dict[str, list[float]], title: str, x: str = "epoch") -> None:
    """One line for each of `LAYERS`."""
    for name, values in histories.items():
        axes.plot(range(1, len(values) + 1), values, label=name, **LINES[name])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def save(drawn: Figure, path: Path) -> None:
    """Writes the picture with 128 colours at most, which keeps it small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    picture = Image.fromarray(numpy.asarray(canvas.buffer_rgba())).convert("RGB")
    palette = picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


def _split(inputs: Tensor, targets: Tensor, training: int) -> Data:
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, test = order[:training], order[training:]
    return Data(inputs[train], targets[train], inputs[test], targets[test])


def _standardised(values: Tensor, training: Tensor) -> Tensor:
    return (values - training.mean(dim=0)) / training.std(dim=0)


def _scaled(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return interpolate(images, size=(size, size), mode="bilinear")
