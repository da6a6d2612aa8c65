"""D2L 5.4: gradients that vanish, explode or last through thirty layers; symmetry, and its end.

A deep network of 64 units a layer sees a batch of digits; how large the gradient of each layer's
weights is depends on the activation and on what the weights start from. And hidden units that start
from the same numbers stay the same for ever, however long they learn, unless dropout tells them
apart (5.4.1.3). Fails if one of the four does not hold.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module, init
from torch.nn.functional import cross_entropy

from examples import book

DEPTH = 30
WIDTH = 64
# Activation, what the weights are drawn from, and between which bounds the norm of the first
# layer's gradient, as a multiple of the last one's, must lie.
CASES: dict[str, tuple[str, Callable[[Tensor], Tensor], float, float]] = {
    "sigmoid, Xavier": ("Sigmoid", init.xavier_normal_, 0, 1e-12),
    "tanh, N(0, 1)": ("Tanh", init.normal_, 1e6, 1e15),
    "tanh, Xavier": ("Tanh", init.xavier_normal_, 0.1, 10),
}
ALIKE = 1e-6  # further apart than this, relative to their weights, two units are not the same


def deep(nn: ModuleType, activation: str, draw: Callable[[Tensor], Tensor]) -> Module:
    """An MLP of `DEPTH` hidden layers with their weights drawn from seed 0.

    In float64: what explodes takes rounding errors with it, so that in float32 its gradients would
    also tell in which order the sums were taken.
    """
    layers: list[Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), getattr(nn, activation)()]
    network = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    torch.manual_seed(0)
    for layer in linear_layers(network):
        draw(layer.weight)
        init.zeros_(layer.bias)
    return network.double()


def linear_layers(network: Module) -> list[torch.nn.Linear]:
    return [layer for layer in network if isinstance(layer, torch.nn.Linear)]


def gradient_norms(network: Module, inputs: Tensor, labels: Tensor) -> list[float]:
    """Of the hidden layers' weights, from the first to the last."""
    cross_entropy(network(inputs.double()), labels).backward()
    return [layer.weight.grad.norm().item() for layer in linear_layers(network)[:-1]]


def difference_of_units(nn: ModuleType, inputs: Tensor, labels: Tensor, dropout: float) -> float:
    """Of hidden units that started alike: after training, relative to their weights."""
    network = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))
    for layer in linear_layers(network):
        init.constant_(layer.weight, 0.1)
        init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    units = network[0].weight.detach()
    return ((units - units[0]).abs().max() / units.abs().max()).item()


def plot(path: Path, norms: dict[str, dict[str, list[float]]]) -> None:
    drawn = book.figure(columns=len(CASES), size=(10, 3.2))
    for axes, case in zip(drawn.axes, CASES, strict=True):
        book.curves(axes, {name: norms[name][case] for name in norms}, case, x="layer")
        axes.set_yscale("log")
    drawn.axes[-1].set_ylim(1e-3, 1e3)
    drawn.axes[0].set_ylabel("norm of the weight's gradient")
    book.save(drawn, path)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    """Takes a second: `quick` changes nothing. `data` is not used."""
    digits = book.digits()
    inputs, labels = digits.inputs.flatten(1)[:256], digits.targets[:256]
    inputs = (inputs - inputs.mean()) / inputs.std()
    norms: dict[str, dict[str, list[float]]] = {}
    rows = {}
    for name, nn in book.LAYERS.items():
        norms[name] = {
            case: gradient_norms(deep(nn, activation, draw), inputs, labels)
            for case, (activation, draw, *_) in CASES.items()
        }
        rows[name] = {case: f"{of[0] / of[-1]:.1e}" for case, of in norms[name].items()}
        for dropout in (0.0, 0.5):
            apart = difference_of_units(nn, inputs, labels, dropout)
            if (apart > ALIKE) != (dropout > 0):
                raise book.NotReachedError(f"{name}, dropout {dropout}: units differ by {apart}")
            rows[name][f"units apart, dropout {dropout}"] = f"{apart:.1e}"
    book.table("gradient of the first hidden layer / of the last", rows)
    plot(pictures / "numerical_stability.png", norms)
    for name, of_cases in norms.items():
        for case, (*_, least, most) in CASES.items():
            ratio = of_cases[case][0] / of_cases[case][-1]
            if not least <= ratio <= most:
                raise book.NotReachedError(f"{name}, {case}: {ratio:.1e}")
    return {name: "; ".join(f"{case} ×{row[case]}" for case in CASES) for name, row in rows.items()}


if __name__ == "__main__":
    book.run(main)
