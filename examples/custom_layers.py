"""D2L 6.5: layers of one's own, and the two of its exercises; digits are told apart with each.

Each calls the function `linear` of the `nn` that it is given. The first exercise's layer is
quadratic in its input, the second's has no parameters: it is the Fourier transform, whose leading
coefficients suffice to tell digits apart.
"""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from examples import book

INPUTS = 64  # the pixels of an 8×8 image


class CenteredLayer(Module):
    """D2L 6.5.1: takes the mean of the batch off; has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


class MyLinear(Module):
    """D2L 6.5.2: a linear layer with a ReLU, its weight being (inputs, units) as in the book.

    The book computes with ``weight.data``, which cuts the layer off from the gradient.
    """

    def __init__(self, nn: ModuleType, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.functional.linear
        self.weight = Parameter(torch.randn(inputs, units) / math.sqrt(inputs))
        self.bias = Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x, self.weight.T, self.bias))


class TensorReduction(Module):
    """D2L 6.5, exercise 1: y_k = Σ_ij W_ijk x_i x_j, which is linear in the products x_i x_j."""

    def __init__(self, nn: ModuleType, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.functional.linear
        self.weight = Parameter(torch.randn(inputs, inputs, units) / inputs)

    def forward(self, x: Tensor) -> Tensor:
        products = x.unsqueeze(2) * x.unsqueeze(1)
        return self.linear(products.flatten(1), self.weight.flatten(0, 1).T)


class HalfFourier(Module):
    """D2L 6.5, exercise 2: the leading half of the Fourier coefficients, all real parts first.

    Σ_n x_n exp(−2πi k n / N) for k < N / 2 is linear in x: a layer whose weight, cosines and sines,
    is a buffer and not a parameter.
    """

    def __init__(self, nn: ModuleType, inputs: int) -> None:
        super().__init__()
        self.linear = nn.functional.linear
        # In integers and float64: in float32 angles of many turns would lose their last digits.
        turns = torch.outer(torch.arange(inputs // 2), torch.arange(inputs)) % inputs
        angles = 2 * math.pi * turns.double() / inputs
        self.register_buffer("weight", torch.cat([angles.cos(), -angles.sin()]).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight)


NETWORKS: dict[str, Callable[[ModuleType], Module]] = {
    "CenteredLayer": lambda nn: nn.Sequential(nn.Flatten(), CenteredLayer(), nn.LazyLinear(10)),
    "MyLinear": lambda nn: nn.Sequential(nn.Flatten(), MyLinear(nn, 64, 64), nn.LazyLinear(10)),
    "TensorReduction": lambda nn: nn.Sequential(nn.Flatten(), TensorReduction(nn, 64, 10)),
    "HalfFourier": lambda nn: nn.Sequential(nn.Flatten(), HalfFourier(nn, 64), nn.LazyLinear(10)),
}


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    """`data` is not used."""
    digits, epochs, required = book.course(quick, None, 8, epochs=20, least=0.93)
    reached: dict[str, dict[str, str]] = {name: {} for name in book.LAYERS}
    drawn = book.figure(columns=len(NETWORKS), size=(12, 3))
    for (layer, build), axes in zip(NETWORKS.items(), drawn.axes, strict=True):
        lessons = book.teach(book.twins(build, digits.inputs[:1]), digits, epochs, 1e-2)
        for name, accuracy in lessons.reached(required).items():
            reached[name][layer] = accuracy
        book.curves(axes, lessons.losses, f"{layer}: loss")
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 10)
    book.table(f"test accuracy, {epochs} epochs", reached)
    book.save(drawn, pictures / "custom_layers.png")
    return {
        name: ", ".join(f"{layer} {accuracy}" for layer, accuracy in of_layers.items())
        for name, of_layers in reached.items()
    }


if __name__ == "__main__":
    book.run(main)
