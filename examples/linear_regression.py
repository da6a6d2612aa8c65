"""D2L 3.4, 3.5: linear regression, from scratch on the book's synthetic data, then on patients.

From scratch, with nothing but the function `linear`, it finds the weights that the data were made
from. Concisely, with a layer, an optimizer and a loss, it comes to where least squares, solved in
closed form, is on scikit-learn's diabetes data. Fails if it misses one of the two.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss

from examples import book

WEIGHT, BIAS, NOISE = torch.tensor([[2.0, -3.4]]), 4.2, 0.01  # the book's
LEARNING_RATE = 0.03
LARGEST_ERROR = 0.01  # of a weight that was found
ABOVE_LEAST_SQUARES = 1.02  # how many times the least squares error a trained network may have


def synthetic() -> book.Data:
    """1,000 examples to learn from and 1,000 to test on: y = X wᵀ + b + noise."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 2, generator=generator)
    targets = inputs @ WEIGHT.T + BIAS + NOISE * torch.randn(2000, 1, generator=generator)
    return book.Data(inputs[:1000], targets[:1000], inputs[1000:], targets[1000:])


def from_scratch(nn: ModuleType, data: book.Data, epochs: int) -> tuple[Tensor, Tensor, list]:
    """Weight, bias and the loss of every minibatch: the book's loop, with its own descent."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.01 * torch.randn(1, 2, generator=generator)).requires_grad_()
    bias = torch.zeros(1, requires_grad=True)
    losses = []
    for _ in range(epochs):
        for batch in torch.randperm(len(data.targets), generator=generator).split(book.BATCH):
            predictions = nn.functional.linear(data.inputs[batch], weight, bias)
            loss = ((predictions - data.targets[batch]) ** 2 / 2).mean()
            loss.backward()
            with torch.no_grad():
                for parameter in (weight, bias):
                    parameter -= LEARNING_RATE * parameter.grad
                    parameter.grad.zero_()
            losses.append(loss.item())
    return weight.detach(), bias.detach(), losses


def concise(data: book.Data, epochs: int, batch: int, rate: float) -> dict[str, Module]:
    """The same with a layer, an optimizer and a loss of each of `LAYERS`."""
    networks = book.twins(lambda nn: nn.LazyLinear(1), data.inputs)
    for network in networks.values():
        optimizer = torch.optim.SGD(network.parameters(), lr=rate)
        for _ in book.train(network, optimizer, data, epochs, batch=batch, loss=mse_loss):
            pass
    return networks


def least_squares(data: book.Data) -> Tensor:
    """What the best of all linear functions of the training inputs predicts for them (3.1.1.3)."""
    design = torch.cat([data.inputs, torch.ones(len(data.inputs), 1)], dim=1)
    return design @ torch.linalg.lstsq(design, data.targets).solution


def plot(path: Path, losses: dict[str, list], patients: book.Data, predicted: dict) -> None:
    drawn = book.figure()
    curve, scatter = drawn.axes
    book.curves(curve, losses, "synthetic data: loss", x="minibatch")
    curve.set_yscale("log")
    for name, predictions in predicted.items():
        size = book.LINES[name]["linewidth"] ** 2 * 3
        scatter.scatter(
            patients.test_targets, predictions, size, book.LINES[name]["color"], label=name
        )
    scatter.axline((0, 0), slope=1, color="#999999", linewidth=0.8)
    scatter.set_title("diabetes: patients not trained on, standardised", fontsize=10)
    scatter.set_xlabel("progression")
    scatter.set_ylabel("predicted")
    scatter.legend(frameon=False)
    book.save(drawn, path)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    """`data` is not used."""
    made, patients = synthetic(), book.diabetes()
    best = mse_loss(least_squares(patients), patients.targets).item()
    on_made = concise(made, 5, book.BATCH, LEARNING_RATE)
    everyone = len(patients.targets)  # no minibatches: their noise would not let it come as close
    on_patients = concise(patients, 500 if quick else 1000, everyone, 0.1)
    losses, predicted, rows, reached = {}, {}, {}, {}
    for name, nn in book.LAYERS.items():
        weight, bias, losses[name] = from_scratch(nn, made, epochs=10)
        errors = {
            "from scratch": max((weight - WEIGHT).abs().max(), (bias - BIAS).abs().max()).item(),
            "concise": (on_made[name].weight - WEIGHT).abs().max().item(),
        }
        predicted[name] = book.predict(on_patients[name], patients.test_inputs)
        missed = mse_loss(predicted[name], patients.test_targets)
        explained = 1 - missed / patients.test_targets.var()
        trained = mse_loss(book.predict(on_patients[name], patients.inputs), patients.targets)
        above = trained.item() / best
        rows[name] = {f"largest error, {how}": f"{error:.5f}" for how, error in errors.items()}
        rows[name]["diabetes: error / least squares"] = f"{above:.4f}"
        rows[name]["variance explained in the test"] = f"{explained:.1%}"
        if max(errors.values()) > LARGEST_ERROR or above > ABOVE_LEAST_SQUARES:
            raise book.NotReachedError(f"{name}: {rows[name]}")
        reached[name] = f"weights to {max(errors.values()):.4f}; R² {explained:.2f} on diabetes"
    book.table("linear regression", rows)
    plot(pictures / "linear_regression.png", losses, patients, predicted)
    return reached


if __name__ == "__main__":
    book.run(main)
