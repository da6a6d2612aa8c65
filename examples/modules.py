"""D2L 6.1: modules of one's own, and a chimera of them that tells odd digits from even ones.

A sequence, a network within a network, and one whose forward is a program: a weight that is never
trained, a layer used twice, and a loop for as long as its numbers are too large. Gradients find
their way through all of it.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import mse_loss

from examples import book


class MySequential(Module):
    """D2L 6.1.2: what `torch.nn.Sequential` does."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for index, module in enumerate(modules):
            self.add_module(str(index), module)

    def forward(self, x: Tensor) -> Tensor:
        for module in self._modules.values():  # children() has a module that comes twice but once
            x = module(x)
        return x


class FixedHiddenMLP(Module):
    """D2L 6.1.3: a hidden layer with constant weights, between two that share theirs.

    The book keeps the constant as a plain attribute. A buffer also moves with the module to another
    device, and is saved with it. One number comes out for each row, and not one for all of them.
    """

    def __init__(self, nn: ModuleType) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(20)
        self.register_buffer("constant", torch.rand(20, 20))
        self.product = nn.functional.linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        x = torch.relu(self.product(x, self.constant) + 1)
        x = self.linear(x)
        while x.abs().sum() > len(x):
            x = x / 2
        return x.sum(dim=1, keepdim=True)


class NestMLP(Module):
    """D2L 6.1.3: a sequence inside of a module, inside of another sequence."""

    def __init__(self, nn: ModuleType) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.LazyLinear(64), nn.ReLU(), MySequential(nn.LazyLinear(32), nn.ReLU())
        )
        self.linear = nn.LazyLinear(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x))


def chimera(nn: ModuleType) -> Module:
    return MySequential(nn.Flatten(), NestMLP(nn), nn.LazyLinear(20), FixedHiddenMLP(nn))


def odd_or_even(data: book.Data) -> book.Data:
    """The same images, with 0.5 for an odd class and −0.5 for an even one."""
    targets, test_targets = (
        (labels % 2 - 0.5).unsqueeze(1) for labels in (data.targets, data.test_targets)
    )
    return book.Data(data.inputs, targets, data.test_inputs, test_targets)


def right(network: Module, data: book.Data) -> float:
    """How often the sign of the output is the target's, on images not trained on."""
    outputs = book.predict(network, data.test_inputs)
    return ((outputs > 0) == (data.test_targets > 0)).float().mean().item()


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    """`data` is not used."""
    digits, epochs, required = book.course(quick, None, 8, epochs=20, least=0.95)
    images = odd_or_even(digits)
    losses, accuracies = {}, {}
    for name, network in book.twins(chimera, images.inputs[:1]).items():
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        losses[name], accuracies[name] = [], []
        for loss in book.train(network, optimizer, images, epochs, loss=mse_loss):
            losses[name].append(loss)
            accuracies[name].append(right(network, images))
    reached = {name: f"{of[-1] * 100:.1f} %" for name, of in accuracies.items()}
    book.table(f"odd or even, {epochs} epochs", {n: {"accuracy": r} for n, r in reached.items()})
    drawn = book.figure()
    book.curves(drawn.axes[0], losses, "chimera: loss")
    book.curves(drawn.axes[1], accuracies, "odd or even: test accuracy")
    book.save(drawn, pictures / "modules.png")
    last = [of[-1] for of in accuracies.values()]
    if required is not None and (min(last) < required or max(last) - min(last) > book.APART):
        raise book.NotReachedError(f"test accuracies must be at least {required}, not {reached}")
    return reached


if __name__ == "__main__":
    book.run(main)
