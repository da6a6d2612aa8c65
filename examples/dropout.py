"""D2L 5.2, 5.6: an MLP with two hidden layers of 256, without and with dropout of 0.2 and 0.5.

It learns from no more than 300 images, again and again. Without dropout the loss on other digits
falls, then rises: it overfits. With dropout it ends lower. The masks of `d2lops.nn` are not those
of `torch.nn`: with dropout the two networks learn equally well, not the same.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from types import ModuleType

import torch
from torch.nn import Module
from torch.nn.functional import cross_entropy

from examples import book

TRAINING_IMAGES = 300
DROPOUT = {"without": (0.0, 0.0), "with dropout": (0.2, 0.5)}
LAST = 20  # epochs over whose losses the mean is taken: after each one they differ


def mlp(first: float, second: float) -> Callable[[ModuleType], Module]:
    """The book's network: more is dropped after the second hidden layer than near the input."""
    return lambda nn: nn.Sequential(
        nn.Flatten(),
        nn.LazyLinear(256),
        nn.ReLU(),
        nn.Dropout(first),
        nn.LazyLinear(256),
        nn.ReLU(),
        nn.Dropout(second),
        nn.LazyLinear(10),
    )


def learn(network: Module, images: book.Data, epochs: int) -> list[float]:
    """Trains the network; its loss on the other images after each epoch."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    torch.manual_seed(0)
    return [
        cross_entropy(book.predict(network, images.test_inputs), images.test_targets).item()
        for _ in book.train(network, optimizer, images, epochs)
    ]


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images = book.image_data(data, size=8 if data is None else 28)
    images = images.first(TRAINING_IMAGES, test=1000)
    overfits = data is None and not quick  # what was seen of digits, after all epochs
    epochs, required = 10 if quick else 100, 0.92 if overfits else 0.6
    losses: dict[str, dict[str, float]] = {}
    accuracies: dict[str, dict[str, float]] = {}
    drawn = book.figure()
    for (how, probabilities), axes in zip(DROPOUT.items(), drawn.axes, strict=True):
        histories = {}
        for name, network in book.twins(mlp(*probabilities), images.inputs[:1]).items():
            histories[name] = learn(network, images, epochs)
            losses.setdefault(name, {})[how] = mean(histories[name][-LAST:])
            accuracies.setdefault(name, {})[how] = book.accuracy(network, *images[2:])
        book.curves(axes, histories, f"{how}: loss on other images")
        axes.sharey(drawn.axes[0])
    drawn.axes[0].set_ylim(0, 0.6)
    rows = {
        name: {f"loss {how}": f"{loss:.3f}" for how, loss in losses[name].items()}
        | {f"accuracy {how}": f"{right * 100:.1f} %" for how, right in accuracies[name].items()}
        for name in book.LAYERS
    }
    book.table(f"on images not trained on, after {epochs} epochs", rows)
    book.save(drawn, pictures / "dropout.png")
    for name in book.LAYERS:
        helps = losses[name]["with dropout"] < losses[name]["without"]
        if min(accuracies[name].values()) < required or (overfits and not helps):
            raise book.NotReachedError(f"{name}: {rows[name]}")
    return {
        name: f"loss {row['loss with dropout']}, without {row['loss without']}"
        for name, row in rows.items()
    }


if __name__ == "__main__":
    book.run(main)
