"""Operators on DTensors: which shards of its arguments an operator can work on as they are.

A rule lists the ways in which an operator's work can be shared out. `torch.distributed.tensor`
takes the one that moves the least data, and moves that. `d2lops.backends` registers the rules when
an operator meets the first DTensor: what this module imports takes longer than the rest of d2lops.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

WHOLE, FIRST, SECOND, SUM = Replicate(), Shard(0), Shard(1), Partial()

# A placement of the outputs, and one of each tensor that the operator takes.
Way = tuple[Placement, ...]

# By images (or rows), by output channels and by input channels. A sum over what is shared out is
# left in parts. That of the bias is cut into parts as well, for it to be added once.
_PRODUCT: tuple[Way, ...] = (
    (FIRST, FIRST, WHOLE, WHOLE),
    (SECOND, WHOLE, FIRST, FIRST),
    (SUM, SECOND, SECOND, SUM),
)
_INPUT_GRAD: tuple[Way, ...] = (
    (FIRST, FIRST, FIRST, WHOLE),
    (SUM, SECOND, SECOND, FIRST),
    (SECOND, WHOLE, WHOLE, SECOND),
)
_WEIGHT_GRAD: tuple[Way, ...] = (
    (SUM, FIRST, FIRST, FIRST),
    (FIRST, SECOND, SECOND, WHOLE),
    (SECOND, WHOLE, WHOLE, SECOND),
)
_BIAS_GRAD: tuple[Way, ...] = ((SUM, FIRST, FIRST), (FIRST, SECOND, SECOND))


def _corr2d(x: Any, weight: Any, bias: Any, window: Sequence[int], relu: bool) -> Sequence[Way]:
    by_images, by_outputs, by_inputs = _PRODUCT
    if window[-1] > 1:  # shards of channels would have a number of groups of their own
        return [by_images]
    ways = [by_images] if relu else [by_images, by_inputs]  # no ReLU of parts
    return [*ways, by_outputs] if _fills_every_shard(weight, 0) else ways


def _corr2d_grad(ways: Sequence[Way], *arguments: Any) -> Sequence[Way]:
    groups = arguments[-1][-1]
    return ways[:1] if groups > 1 else ways


def _pooling(x: Any, *_: Any) -> Sequence[Way]:
    by_images, by_channels = (FIRST,) * 3, (SECOND,) * 3
    return [by_images, by_channels] if _fills_every_shard(x, 1) else [by_images]


def _fills_every_shard(x: Any, dim: int) -> bool:
    """Whether all ranks get channels. Without any, these operators refuse to work.

    Six channels on four ranks are shared out as 2, 2, 2 and none; on more than six, torch does not.
    """
    size = x.shape[dim]
    return all(-(-size // ranks) * (ranks - 1) < size for ranks in x.mesh.shape if ranks <= size)


# A rule is given the operator's arguments, with torch's description of where it is placed for each
# tensor. That every rank does all of the work is always a way, and of dropout the only one: whether
# an element is kept depends on its index among all.
RULES: dict[str, Callable[..., Sequence[Way]]] = {
    "corr2d": _corr2d,
    "corr2d_input_grad": functools.partial(_corr2d_grad, _INPUT_GRAD),
    "corr2d_weight_grad": functools.partial(_corr2d_grad, _WEIGHT_GRAD),
    "linear": lambda *_: _PRODUCT,
    "linear_relu": lambda *_: _PRODUCT[:2],
    "linear_input_grad": lambda *_: _INPUT_GRAD,
    "linear_weight_grad": lambda *_: _WEIGHT_GRAD,
    "bias_grad": lambda *_: _BIAS_GRAD,
    "dropout": lambda *_: (),
    "max_pool2d": _pooling,
    "max_pool2d_gather": _pooling,
    "max_pool2d_scatter": _pooling,
    "max_pool2d_indices": _pooling,
    "adaptive_max_pool2d": _pooling,
    "adaptive_max_pool2d_gather": _pooling,
    "adaptive_max_pool2d_scatter": _pooling,
    "adaptive_max_pool2d_indices": _pooling,
    "avg_pool2d": _pooling,
    "avg_pool2d_adjoint": _pooling,
    "adaptive_avg_pool2d": _pooling,
    "adaptive_avg_pool2d_adjoint": _pooling,
}


def register(operators: dict[str, OpOverload]) -> None:
    """Tell torch the rules of a library's raw operators, given by name."""
    schemas = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    for name in RULES.keys() & operators.keys():
        operator = operators[name]
        register_sharding(operator)(functools.partial(_placements, operator))
        # torch keeps what it found out for calls that are alike up to the first argument of type
        # int, and a window is a list of them. But sizes and ways depend on all that is no tensor.
        schemas[operator].static_argnum = _tensor_count(operator)


def _placements(
    operator: OpOverload, *arguments: Any, **_: Any
) -> list[tuple[list[Placement], list[Placement | None]]]:
    """In each way, the placements of all outputs and all arguments: None for what is no tensor."""
    outputs, tensors = len(operator._schema.returns), _tensor_count(operator)
    ways = [(WHOLE,) * (1 + tensors), *RULES[operator._opname](*arguments)]
    listed = []
    for output, *inputs in ways:
        of_tensors = zip(inputs, arguments[:tensors], strict=False)  # pooling has too many
        placed = [None if x is None else placement for placement, x in of_tensors]
        listed.append(([output] * outputs, placed + [None] * (len(arguments) - tensors)))
    return listed


def _tensor_count(operator: OpOverload) -> int:
    """Of the arguments: in every schema tensors come first."""
    return sum("Tensor" in str(argument.type) for argument in operator._schema.arguments)
