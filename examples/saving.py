"""D2L 6.6: tensors and networks go into files and come back, also into the other `nn`.

An MLP learns digits as a relay: one `nn` trains it for some epochs and saves it, with its
optimizer, and the other reads the file and goes on. Fails unless it learns what it would have
learned in one hand, and both read the same from the last file.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from examples import book

LEGS = 4
RELAY = tuple(book.LAYERS) * (LEGS // 2)  # who trains in each leg
LARGEST_DIFFERENCE = 1e-2  # between the losses of an epoch, relative


def mlp(nn: ModuleType, inputs: int) -> Module:
    """D2L 6.6.2."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 10))


def tensors_come_back(path: Path) -> None:
    """D2L 6.6.1: one tensor, a list of them, a dictionary."""
    x, y = torch.arange(4), torch.zeros(4)
    for saved in (x, [x, y], {"x": x, "y": y}):
        torch.save(saved, path)
        torch.testing.assert_close(torch.load(path), saved, rtol=0, atol=0)


def leg(nn: ModuleType, path: Path, images: book.Data, epochs: int) -> list[float]:
    """Reads network and optimizer from the file, trains, writes them back; the epochs' losses."""
    network = mlp(nn, images.inputs[0].numel())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    if path.exists():
        saved = torch.load(path)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    losses = list(book.train(network, optimizer, images, epochs))
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return losses


def race(runners: tuple[str, ...], path: Path, images: book.Data, epochs: int) -> list[float]:
    """The losses of all legs; the first runner draws the weights from seed 0."""
    torch.manual_seed(0)
    return [loss for runner in runners for loss in leg(book.LAYERS[runner], path, images, epochs)]


def predictions(nn: ModuleType, path: Path, inputs: Tensor) -> Tensor:
    """What the network in the file says, with the layers of `nn`."""
    network = mlp(nn, inputs[0].numel())
    network.load_state_dict(torch.load(path)["network"])
    return book.predict(network, inputs)


def plot(path: Path, relay: list[float], alone: list[float], epochs: int) -> None:
    drawn = book.figure(columns=1, size=(7, 3.4))
    (axes,) = drawn.axes
    axes.plot(range(1, len(alone) + 1), alone, color="#bbbbbb", linewidth=8, label="torch.nn alone")
    for start, runner in zip(range(0, len(relay), epochs), RELAY, strict=True):
        steps = range(start + 1, start + epochs + 1)
        style = {"color": book.LINES[runner]["color"], "linewidth": 2.5}
        label = f"relay: {runner}" if start < 2 * epochs else None
        axes.plot(steps, relay[start : start + epochs], marker="o", label=label, **style)
    axes.set_title("a network handed to and fro in a file: loss", fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    book.save(drawn, path)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images = book.image_data(data, size=8 if data is None else 28)
    epochs = 5
    if quick:
        images, epochs = images.first(320, 100), 2
    with TemporaryDirectory() as folder:
        path = Path(folder, "mlp.pt")
        tensors_come_back(Path(folder, "tensors.pt"))
        relay = race(RELAY, path, images, epochs)
        alone = race(("torch.nn",) * LEGS, Path(folder, "alone.pt"), images, epochs)
        outputs = {n: predictions(nn, path, images.test_inputs) for n, nn in book.LAYERS.items()}
    plot(pictures / "saving.png", relay, alone, epochs)
    reached = {
        name: f"{(of.argmax(dim=1) == images.test_targets).float().mean() * 100:.1f} %"
        for name, of in outputs.items()
    }
    apart = max(abs(ours / theirs - 1) for ours, theirs in zip(relay, alone, strict=True))
    rows = {
        name: {"accuracy of what was read": right, "loss apart from torch.nn alone": f"{apart:.1e}"}
        for name, right in reached.items()
    }
    book.table(f"relay of {LEGS} times {epochs} epochs", rows)
    torch.testing.assert_close(outputs["d2lops.nn"], outputs["torch.nn"], rtol=1e-4, atol=1e-4)
    if apart > LARGEST_DIFFERENCE:
        raise book.NotReachedError(
            f"the relay's losses differ by {apart:.1%} from torch.nn's alone"
        )
    return reached


if __name__ == "__main__":
    book.run(main)
