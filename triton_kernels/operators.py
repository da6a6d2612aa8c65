"""The launchers as operators of torch, ``torch.ops.d2lops_triton``.

A `triton_op` is one that the compiler looks into: it sees the kernels, and plans memory around
them. Kernels that are interpreted it could not look into, so there the operator is opaque.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, triton_op

from d2lops.triton_kernels import bias_grad, corr2d, dropout, fma_chain, linear_relu, pool2d
from d2lops.triton_kernels.device import INTERPRETED

LAUNCHERS: dict[str, Callable] = {
    name: launcher
    for module in (bias_grad, corr2d, dropout, fma_chain, linear_relu, pool2d)
    for name, launcher in vars(module).items()
    if hasattr(torch.ops.d2lops, name) and inspect.isfunction(launcher)
}
_TYPES = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "List[int]": Sequence[int],
    "int": int,
    "Optional[int]": int | None,
    "float": float,
    "bool": bool,
}


def define(name: str, rule: Callable) -> Callable:
    """The operator `name`, with the schema that it has in ``csrc/library.cpp``.

    `rule` says what the compiler knows of it. It also checks the arguments of the kernels, and
    makes the outputs that they fill.
    """
    launcher = LAUNCHERS[name]
    schema = getattr(torch.ops.d2lops, name).default._schema
    tensors = [i for i, argument in enumerate(schema.arguments) if str(argument.type) == "Tensor"]

    def run(*arguments: Any, **named: Any) -> Tensor | tuple[Tensor, ...]:
        if any(arguments[i] is None for i in tensors):  # which torch lets pass
            raise RuntimeError(f"{name}(): expected a Tensor, but got None")
        out = rule(*arguments, **named)
        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
            launcher(*arguments, **named, out=out)
        return out

    run.__signature__ = _signature(schema)
    operator = (custom_op if INTERPRETED else triton_op)(
        f"d2lops_triton::{name}", run, mutates_args=()
    )
    operator.register_fake(rule)
    return getattr(torch.ops.d2lops_triton, name).default


def _signature(schema: torch.FunctionSchema) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            argument.name,
            kind,
            default=argument.default_value
            if argument.has_default_value()
            else inspect.Parameter.empty,
            annotation=_TYPES[str(argument.type)],
        )
        for argument in schema.arguments
    ]
    returns = tuple(Tensor for _ in schema.returns)
    result = returns[0] if len(returns) == 1 else tuple[returns]
    return inspect.Signature(parameters, return_annotation=result)
