"""One thing to measure: an operator on inputs of given shapes, ours and torch's."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from benchmarks import device
from d2lops import functional

FORWARD, TRAINING, STEP = "forward", "forward + backward", "training step"


class Work(NamedTuple):
    """What no implementation can do without: memory read and written once, and arithmetic."""

    bytes: int
    flops: int = 0

    def plus(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)


class Arguments(NamedTuple):
    inputs: tuple[Tensor, ...]
    gradient: Tensor | None = None  # enters backward; absent where only the function is called


class Comparison(NamedTuple):
    """Functions whose results on the arguments are compared with those of `exact` in float64.

    `exact` is asked with an output, since what is right may depend on it: on a random mask.
    """

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    exact: Callable[[Tensor], Callable[..., Tensor]]
    arguments: Arguments


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operator on inputs of the given shapes, all of which get a gradient.

    Attributes:
        family: with which other cases it is summarised.
        theirs: the same in torch, eager: what the operator's documentation calls its equivalent.
        backward: what the gradients of all inputs cost beyond `forward`.
        tf32: whether products of float32 may be computed in TF32, on both sides.
        quick: whether it belongs to the quick set.
        exact: from an output, the function that it should be the value of. Needed where that is not
            `theirs`: a random mask, a ReLU at a rounding error's distance from zero.
    """

    modes: ClassVar[tuple[str, ...]] = (FORWARD, TRAINING)

    operator: str
    family: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    forward: Work
    backward: Work
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tf32: bool = False
    quick: bool = False
    exact: Callable[[Tensor], Callable[..., Tensor]] | None = None

    @property
    def eps(self) -> float:
        """The rounding of a factor of a product."""
        return 2**-10 if self.tf32 else torch.finfo(self.dtype).eps

    @property
    def python_counts(self) -> bool:
        """Whether the time to launch kernels counts on a GPU as well: nothing hides it."""
        return self.family == "tiny"

    @property
    def layout(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    def work(self, mode: str) -> Work:
        return self.forward if mode == FORWARD else self.forward.plus(self.backward)

    def arguments(self, mode: str) -> Arguments:
        inputs = self.inputs()
        if mode == FORWARD:
            return Arguments(inputs)
        gradient = torch.randn_like(self.theirs(*inputs))
        return Arguments(tuple(x.requires_grad_() for x in inputs), gradient)

    def inputs(self) -> tuple[Tensor, ...]:
        """Fresh normal inputs; weights are scaled so that outputs are about as large as inputs.

        None is zero, so that a zero in dropout's output is a dropped element.
        """
        tensors = []
        for i, shape in enumerate(map(torch.Size, self.shapes)):
            scale = 1 if i == 0 else max(1, shape[1:].numel()) ** 0.5
            x = torch.randn(shape, device=device.name) / scale
            last = self.channels_last and x.dim() == 4
            x = x.to(
                self.dtype, memory_format=torch.channels_last if last else torch.contiguous_format
            )
            tensors.append(x.masked_fill_(x == 0, 1))
        return tuple(tensors)

    def compiled(self) -> Callable[..., Tensor]:
        """What is `theirs`, to be compiled on the first call, for just these shapes."""
        return torch.compile(self.theirs, dynamic=False)

    def forwards(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """The functions, ours and torch's, after which memory waits for backward."""
        return self.ours, self.theirs

    def comparison(self, mode: str) -> Comparison:
        exact = self.exact or (lambda output: self.theirs)
        return Comparison(self.ours, self.theirs, exact, self.arguments(mode))


def of_family(family: str, *cases: Case) -> list[Case]:
    return [replace(case, family=family) for case in cases]


@contextlib.contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """Torch's switches for products and convolutions, which d2lops obeys as well."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def own(name: str) -> Callable[..., Tensor]:
    """d2lops's function of that name. `d2lops.functional.<name>` could be torch's, handed on."""
    if name not in vars(functional):
        raise NotImplementedError(f"d2lops.functional has no {name} of its own to be measured")
    return vars(functional)[name]


def output_size(theirs: Callable[..., Tensor], *shapes: tuple[int, ...]) -> torch.Size:
    return theirs(*(torch.empty(shape, device="meta") for shape in shapes)).shape


def numel(*shapes: tuple[int, ...]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
