"""LeNet (D2L 7.6) learns handwritten digits twice: with `torch.nn`, and with `d2lops.nn`.

Nothing differs but the module that the layers come from. Both networks start from the same weights
and see the same batches; their epochs take turns, so that both get the same share of a busy
machine. Fails if one of them does not reach 97 % on the digits that it was not trained on.
"""

import math
import sys
import time
from statistics import median
from types import ModuleType

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

import d2lops.nn

EPOCHS = 25
BATCH = 32
LEARNING_RATE = 1e-2  # at most: it rises to this and falls again, once
TRAINING_IMAGES = 1437  # of 1,797
REQUIRED_ACCURACY = 0.97


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


def init_cnn(layer: torch.nn.Module) -> None:
    if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
        torch.nn.init.xavier_uniform_(layer.weight)


def twins() -> dict[str, torch.nn.Sequential]:
    """The network in torch and in d2lops, with the same weights."""
    networks = {"torch.nn": lenet(torch.nn), "d2lops.nn": lenet(d2lops.nn)}
    networks["torch.nn"].apply(init_cnn)
    networks["d2lops.nn"].load_state_dict(networks["torch.nn"].state_dict())
    return networks


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, and to test on: scikit-learn's 8×8 digits, scaled to 28×28."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = interpolate(images, size=(28, 28), mode="bilinear")
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return images[train], labels[train], images[test], labels[test]


class Training:
    """A network with what it takes to train it: Adam, under the one-cycle learning rate."""

    def __init__(self, network: torch.nn.Module, steps: int) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters())
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, LEARNING_RATE, steps)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Updates the weights once; the loss before."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        return (self.network(images).argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    torch.manual_seed(0)
    images, labels, test_images, test_labels = digits()
    steps = EPOCHS * math.ceil(TRAINING_IMAGES / BATCH)
    trainings = {name: Training(network, steps) for name, network in twins().items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in track(range(EPOCHS), description="LeNet on 28×28 digits"):
        batches = torch.randperm(len(labels)).split(BATCH)
        for name, training in trainings.items():
            start = time.perf_counter()
            for batch in batches:
                training.step(images[batch], labels[batch])
            seconds[name].append(time.perf_counter() - start)

    table = Table("layers", "test accuracy", "an epoch", f"{EPOCHS} epochs")
    accuracies = {
        name: training.accuracy(test_images, test_labels) for name, training in trainings.items()
    }
    for name, reached in accuracies.items():
        times = seconds[name]
        table.add_row(
            name, f"{reached:.1%}", f"{median(times) * 1e3:.0f} ms", f"{sum(times):.1f} s"
        )
    console = Console()
    console.print(table)
    console.print("The networks' epochs took turns; an epoch is the median, without the test.")
    if min(accuracies.values()) < REQUIRED_ACCURACY:
        sys.exit(f"a network stayed below {REQUIRED_ACCURACY:.0%}")


if __name__ == "__main__":
    main()
