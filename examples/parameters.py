"""D2L 6.2 to 6.4: parameters are found, shared, initialised, and made when the first input comes.

The hidden layers of an MLP are one and the same layer, used three times. The picture shows what the
book's own initialisation draws, and how the MLP learns digits with a third of the hidden weights.
Fails if a parameter is not what the book says it must be.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Linear, Module, UninitializedParameter, init

from examples import book

HIDDEN = 64


def tied_mlp(nn: ModuleType) -> Module:
    """D2L 6.2.2, deeper: layers 3, 5 and 7 are the same one."""
    shared = nn.LazyLinear(HIDDEN)
    hidden = [shared, nn.ReLU()] * 3
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(HIDDEN), nn.ReLU(), *hidden, nn.LazyLinear(10))


def count(network: Module) -> int:
    """The numbers there are to learn; parameters() has what is shared but once (D2L 6.2.1)."""
    return sum(parameter.numel() for parameter in network.parameters())


def tied(network: Module) -> bool:
    return network[3].weight is network[5].weight is network[7].weight


def my_init(layer: Module) -> None:
    """D2L 6.3.1: from −10 to −5 and from 5 to 10 with probability 1/4 each, else 0."""
    if isinstance(layer, Linear):
        init.uniform_(layer.weight, -10, 10)
        with torch.no_grad():
            layer.weight *= layer.weight.abs() >= 5


def one_by_one(network: Module) -> None:
    """D2L 6.3.1: the first layer's weights are Xavier's, all of the last one's 42."""
    network[1].apply(book.xavier)
    init.constant_(network[-1].weight, 42)


def lazy(network: Module, example: Tensor, name: str) -> None:
    """D2L 6.4: no parameter has a shape before the first input; then each has, and its values."""
    parameters = list(network.parameters())
    if not all(isinstance(parameter, UninitializedParameter) for parameter in parameters):
        raise book.NotReachedError(f"{name}: a lazy layer knew its input before it came")
    network(example)
    shapes = {key: tuple(value.shape) for key, value in network.named_parameters()}
    expected = {"1.weight": (HIDDEN, example[0].numel()), "9.weight": (10, HIDDEN)}
    if not expected.items() <= shapes.items():
        raise book.NotReachedError(f"{name}: parameters must have shapes {expected}, not {shapes}")


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    size = 8 if data is None else 28
    images, epochs, required = book.course(quick, data, size, epochs=20, least=0.95)
    drawn = book.figure()
    drawn_weights = {}
    for name, nn in book.LAYERS.items():
        network = tied_mlp(nn)
        lazy(network, images.inputs[:1], name)
        torch.manual_seed(0)
        network.apply(my_init)
        one_by_one(network)
        drawn_weights[name] = network[3].weight.detach().flatten().tolist()
    colors = [book.LINES[name]["color"] for name in drawn_weights]
    histogram, curve = drawn.axes
    histogram.hist(list(drawn_weights.values()), bins=21, color=colors, label=list(drawn_weights))
    histogram.set_title("hidden weights by the book's own initialisation", fontsize=10)
    histogram.set_ylabel("weights")
    histogram.spines[["top", "right"]].set_visible(False)
    histogram.legend(frameon=False)
    networks = book.twins(tied_mlp, images.inputs[:1])
    lessons = book.teach(networks, images, epochs, 1e-2)
    accuracies = lessons.reached(required)
    book.curves(curve, lessons.losses, "three tied layers: loss")
    curve.set_yscale("log")
    book.save(drawn, pictures / "parameters.png")
    untied = count(networks["torch.nn"]) + 2 * count(networks["torch.nn"][3])
    rows = {
        name: {
            "parameters": f"{count(network):,} (untied {untied:,})",
            "still tied": str(tied(network)),
            "test accuracy": accuracies[name],
        }
        for name, network in networks.items()
    }
    book.table(f"{epochs} epochs", rows)
    if not all(tied(network) for network in networks.values()):
        raise book.NotReachedError("tied layers must stay so in training")
    return {name: f"{accuracies[name]} with {count(networks[name]):,} numbers" for name in rows}


if __name__ == "__main__":
    book.run(main)
