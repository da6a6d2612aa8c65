"""D2L 8.5: LeNet learns digits with batch normalisation: by the book's own, and by nn's.

The book's, from plain tensor operations, takes the weights of nn's and gives the same numbers: in
training mode normalised by the batch, in evaluation mode by the running mean and variance. Fails if
it does not, or if LeNet with either does not reach 95 % in four epochs, and more than without. The
picture: the lessons of all three.
"""

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module, Parameter, Sequential

from examples import book

EPOCHS = 4
LEARNING_RATE = 1e-2
LEAST = 0.95
TOLERANCE = 1e-4


class BatchNorm(Module):
    """The book's: (n, c) or (n, c, h, w), normalised over all but c, then scaled and shifted."""

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(torch.ones(features))
        self.bias = Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            others = [0, *range(2, x.dim())]
            mean = x.mean(dim=others)
            variance = ((x - mean.reshape(shape)) ** 2).mean(dim=others)
            self.remember(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        normalised = (x - mean.reshape(shape)) / torch.sqrt(variance.reshape(shape) + self.eps)
        return normalised * self.weight.reshape(shape) + self.bias.reshape(shape)

    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """As torch does, the variance that is remembered is the unbiased one."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def lenet(nn: ModuleType, norm2d: type[Module], norm1d: type[Module]) -> Sequential:
    """The book's BNLeNet; norm2d and norm1d are what normalises (n, c, h, w) and (n, c)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5),
        norm2d(6),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        norm2d(16),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(256, 120),
        norm1d(120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        norm1d(84),
        nn.Sigmoid(),
        nn.Linear(84, 10),
    )


def without(features: int) -> Module:
    return torch.nn.Identity()


KINDS = {
    "from scratch": lambda nn: lenet(nn, BatchNorm, BatchNorm),
    "of nn": lambda nn: lenet(nn, nn.BatchNorm2d, nn.BatchNorm1d),
    "without": lambda nn: lenet(nn, without, without),
}


def difference(nn: ModuleType, images: Tensor) -> float:
    """Between LeNet with the book's and with nn's, in training mode and then in evaluation."""
    ours, theirs = KINDS["from scratch"](nn), KINDS["of nn"](nn)
    ours.load_state_dict(theirs.state_dict(), strict=False)  # the book's does not count batches
    training = (ours(images) - theirs(images)).abs().max().item()
    evaluation = (ours.eval()(images) - theirs.eval()(images)).abs().max().item()
    return max(training, evaluation)


def main(
    quick: bool = False, data: Path | None = None, pictures: Path = book.PICTURES
) -> dict[str, str]:
    images, epochs, least = book.course(quick, data, 28, EPOCHS, LEAST)
    furthest = max(difference(nn, images.inputs[:64]) for nn in book.LAYERS.values())
    if furthest > TOLERANCE:
        raise book.NotReachedError(f"the book's and nn's differ by {furthest}, not {TOLERANCE}")
    drawn = book.figure(1, 3, size=(10, 3.2))
    lessons = {}
    for axes, (kind, build) in zip(drawn.axes, KINDS.items(), strict=True):
        twins = book.twins(build, images.inputs[:1])
        lessons[kind] = book.teach(twins, images, epochs, LEARNING_RATE)
        lessons[kind].report(f"batch normalisation: {kind}")
        book.curves(axes, lessons[kind].accuracies, f"batch normalisation: {kind}")
        axes.set_ylim(0, 1.02)
    drawn.axes[0].set_ylabel("accuracy on images not trained on")
    book.save(drawn, pictures / "batch_norm.png")
    return compared(lessons, least)


def compared(lessons: dict[str, book.Lessons], least: float | None) -> dict[str, str]:
    """What each of KINDS reached; raises unless it is more with batch normalisation than without.

    In quick mode, where `least` is None, it need not be.
    """
    figures = {
        kind: lesson.reached(None if kind == "without" else least)
        for kind, lesson in lessons.items()
    }
    for name in book.LAYERS:
        last = {kind: lesson.accuracies[name][-1] for kind, lesson in lessons.items()}
        if least is not None and min(last, key=last.get) != "without":
            raise book.NotReachedError(f"{name} is no better than without: {last}")
    return {
        name: ", ".join(f"{kind} {reached[name]}" for kind, reached in figures.items())
        for name in book.LAYERS
    }


if __name__ == "__main__":
    book.run(main)
