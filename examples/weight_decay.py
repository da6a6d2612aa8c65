"""D2L 3.7: weight decay, where there are ten times as many weights as examples.

The book's synthetic data: 20 examples of 200 numbers each, whose sum, times 0.01, is what to learn.
Without decay a linear model learns the examples by heart, and is no wiser about others; with it the
weights stay small, and so does the loss on others. The penalty is written out once (3.7.2), and
once left to the optimizer (3.7.3): both must lead to the same weights.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss

from examples import book

DECAYS = {"without": 0.0, "with decay": 3.0}  # the book's lambda
LEARNING_RATE = 0.01
BATCH = 5


def wide() -> book.Data:
    """20 examples to learn from and 100 to test on: y = 0.05 + 0.01 Σ x + noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 200, generator=generator)
    noise = 0.01 * torch.randn(120, 1, generator=generator)
    targets = 0.05 + 0.01 * inputs.sum(dim=1, keepdim=True) + noise
    return book.Data(inputs[:20], targets[:20], inputs[20:], targets[20:])


def half_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(predictions, targets) / 2


def linear_model(nn: ModuleType) -> Module:
    return nn.LazyLinear(1)


def from_scratch(
    network: Module, data: book.Data, decay: float, epochs: int
) -> tuple[list[float], list[float]]:
    """Trains with the squared norm of the weight in the loss; training and test error by epoch."""
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE)

    def loss(predictions: Tensor, targets: Tensor) -> Tensor:
        penalty = (network.weight**2).sum() / 2
        return half_squared_error(predictions, targets) + decay * penalty

    errors, test_errors = [], []
    for _ in book.train(network, optimizer, data, epochs, batch=BATCH, loss=loss):
        errors.append(error(network, data.inputs, data.targets))
        test_errors.append(error(network, data.test_inputs, data.test_targets))
    return errors, test_errors


def concise(network: Module, data: book.Data, decay: float, epochs: int) -> None:
    """Trains with an optimizer that lets the weight decay, but not the bias."""
    groups = [{"params": network.weight, "weight_decay": decay}, {"params": network.bias}]
    optimizer = torch.optim.SGD(groups, LEARNING_RATE)
    for _ in book.train(network, optimizer, data, epochs, batch=BATCH, loss=half_squared_error):
        pass


def error(network: Module, inputs: Tensor, targets: Tensor) -> float:
    return half_squared_error(book.predict(network, inputs), targets).item()


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    """Takes a second: `quick` changes nothing. `data` is not used."""
    examples, epochs = wide(), 20
    reached: dict[str, dict[str, float]] = {name: {} for name in book.LAYERS}
    drawn = book.figure()
    for (how, decay), axes in zip(DECAYS.items(), drawn.axes, strict=True):
        histories = {}
        concisely = book.twins(linear_model, examples.inputs)
        for name, network in book.twins(linear_model, examples.inputs).items():
            errors, histories[name] = from_scratch(network, examples, decay, epochs)
            concise(concisely[name], examples, decay, epochs)
            torch.testing.assert_close(concisely[name].weight, network.weight)
            reached[name] |= {
                f"‖w‖ {how}": network.weight.norm().item(),
                f"test error {how}": histories[name][-1],
            }
        book.curves(axes, histories, f"{how}: test error (dashed: on the 20)")
        axes.plot(range(1, epochs + 1), errors, "--", color="#555555")
        axes.set_yscale("log")
        axes.sharey(drawn.axes[0])
    rows = {
        name: {what: f"{value:.4f}" for what, value in of.items()} for name, of in reached.items()
    }
    book.table(f"after {epochs} epochs", rows)
    book.save(drawn, pictures / "weight_decay.png")
    for name, of in reached.items():
        if of["test error with decay"] > of["test error without"] / 10:
            raise book.NotReachedError(f"{name}: {rows[name]}")
    return {
        name: f"test error {row['test error with decay']}, without {row['test error without']}"
        for name, row in rows.items()
    }


if __name__ == "__main__":
    book.run(main)
