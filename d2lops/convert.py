"""d2lops in a model that is there already: its layers are swapped in place, and swapped back."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter, UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from d2lops import backends, nn
from d2lops.fusion import FUNCTIONS, Fused, fuse_calls, unfuse
from d2lops.ops._checks import DTYPES
from d2lops.report import Report, Row
from d2lops.tracing import UntraceableError

_NAMES = (
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "Dropout",
    "LazyConv2d",
    "LazyLinear",
    "Linear",
    "MaxPool2d",
)
OURS = {getattr(torch.nn, name): getattr(nn, name) for name in _NAMES}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def convert(model: Module, *, fuse: bool = True, tune: Any = None) -> Report:
    """Give a model d2lops's kernels, in place: same parameters, names, hooks and results.

    Every layer of `torch.nn` for which `d2lops.nn` has one becomes that, by its class alone: the
    same objects stay, with their parameters, hooks, mode, dtype and device, so that ties,
    optimizers and `state_dict` keep what they have. Left alone is what is more than such a layer:
    subclasses, layers that are parametrized, quantized or compiled. The same as to change the
    imports of the model's source to `d2lops.nn` and `d2lops.functional` (D2L 6.1 tells what a
    module is); dropout draws other masks than torch's, as told there.

    Args:
        model: any module, trained or not, lazy or not.
        fuse: also, where a module's forward can be traced, call d2lops for what it calls of
            `torch.nn.functional`, and compute a convolution or linear layer in one with the ReLU
            that alone consumes it, and with a BatchNorm2d between them while that evaluates and
            the image has no fewer numbers than the weight. The modules stay what they are: with a
            hook on one of them, each runs by itself.
        tune: inputs for the model: a tensor, a tuple of arguments, or a dict of named ones. With
            them, forward and backward of every layer are measured, and a layer for which torch is
            faster on this machine is left as it is (judged by forward alone if the model
            evaluates). Or the report of such a call, or the path to which it was saved: the same
            choices are made again.

    Returns:
        What became of each layer, and why: print it.

    Raises:
        TypeError: the model is no module.
        RuntimeError: the model raises an error for the inputs given as `tune`.
        ValueError: `tune` is a report on another model.

        In each case the model is left as it was.

    Example:
        >>> import torch, d2lops
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Tanh())
        >>> print(d2lops.convert(model))
        layer  was     now     note
        0      Linear  d2lops  one with 1
    """
    _check_module("convert", model)
    if tune is None:
        return _convert(model, fuse, Report([]))
    if isinstance(tune, str | os.PathLike):
        tune = Report.load(tune)
    if not isinstance(tune, Report):
        from d2lops.tuning import tuned

        tune = tuned(model, fuse, tune)
    _check_names(model, tune)
    return _convert(model, fuse, tune)


def revert(model: Module) -> None:
    """Undo `convert`, exactly. Layers that were d2lops's before stay so.

    Args:
        model: a converted one, or a part of it.

    Raises:
        TypeError: the model is no module.

    Example:
        >>> import torch, d2lops
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> _ = d2lops.convert(model)
        >>> d2lops.revert(model)
        >>> type(model[0]) is torch.nn.Linear
        True
    """
    _check_module("revert", model)
    for module in list(model.modules()):
        if isinstance(module, Fused):
            unfuse(module)
        if vars(module).pop(_CONVERTED, False):
            module.__class__ = THEIRS[type(module)]


_CONVERTED = "_d2lops_converted"
_IS_COMPILED = "is compiled: convert it before"


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, Module):
        raise TypeError(
            f"{function}(): argument 'model' must be torch.nn.Module, not {type(model).__name__}"
        )


def _check_names(model: Module, tuned: Report) -> None:
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for row in tuned.rows:
        if row.name.partition(":")[0] not in modules:
            raise ValueError(
                f"convert(): tune is a report on another model: it tells of {row.name!r}, which "
                f"{type(model).__name__} does not have"
            )


def _convert(model: Module, fuse: bool, tuned: Report) -> Report:
    measured = {row.name: row for row in tuned.rows if row.times}
    modules = dict(_walk("", model, set()))
    rows: dict[str, Row] = {}
    for name, module in modules.items():
        if isinstance(module, (*OURS, *THEIRS)):
            rows[name] = _swap(name, module, measured.get(name))
        elif _is_program(module):
            rows[name] = Row(name, type(module).__name__, "torch", _IS_COMPILED)
    by_layer = {id(modules[name]): row for name, row in rows.items()}
    for name, module in modules.items():
        if fuse and _may_fuse(module):
            for row in _fuse(name, module, by_layer, measured):
                rows[row.name] = row
    return Report(list(rows.values()))


def _walk(name: str, module: Module, seen: set[int]) -> Iterator[tuple[str, Module]]:
    """The module and all below it, each once, but for what is inside of a program."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    if not _is_program(module):
        for child_name, child in module.named_children():
            yield from _walk(f"{name}.{child_name}" if name else child_name, child, seen)


def _is_program(module: Module) -> bool:
    """Whether torch.jit or torch.compile has made something of it that a swap would not reach."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or type(module).__module__ == "torch._dynamo.eval_frame"  # its import takes a second
        or module._compiled_call_impl is not None
    )


# Layers.


def _swap(name: str, layer: Module, measured: Row | None) -> Row:
    was = type(layer).__name__
    if type(layer).__module__ == nn.__name__:
        return Row(name, was, "d2lops", "was so before")
    if reason := _reason_to_leave(layer):
        return Row(name, was, "torch", reason)
    times = measured.times if measured else {}
    if measured is not None and measured.now == "torch":
        return Row(name, was, "torch", measured.note, times)
    layer.__class__ = OURS[type(layer)]
    setattr(layer, _CONVERTED, True)
    return Row(name, was, "d2lops", "", times)


def _reason_to_leave(layer: Module) -> str:
    if is_parametrized(layer):
        return "is parametrized"
    if type(layer) not in OURS:
        return "is a subclass of torch's layer"
    if "forward" in vars(layer):
        return "has a forward of its own"
    if _is_program(layer):
        return _IS_COMPILED
    reasons = (_no_kernels_for(name, p) for name, p in layer.named_parameters())
    return next(filter(None, reasons), "")


def _no_kernels_for(name: str, parameter: Tensor) -> str:
    if type(parameter) not in (Parameter, UninitializedParameter):
        return f"its {name} is a {type(parameter).__name__}"
    if parameter.dtype not in DTYPES:
        return f"its {name} is {str(parameter.dtype).removeprefix('torch.')}: no kernels"
    if not backends.has_kernels(parameter.device.type):
        return f"its {name} is on {parameter.device.type}: no kernels"
    return ""


# Forwards.


def _may_fuse(module: Module) -> bool:
    """Whether it is what its class says, calls others, and is copied and pickled as usual.

    And whether what it may hand to a function is of a kind that has kernels.
    """
    kind = module.base if isinstance(module, Fused) else type(module)
    return (
        (kind is torch.nn.Sequential or not kind.__module__.startswith(("torch.", "d2lops.")))
        and (kind.__reduce__, kind.__reduce_ex__) == (object.__reduce__, object.__reduce_ex__)
        and "forward" not in vars(module)
        and not _is_program(module)
        and not any(_no_kernels_for(name, p) for name, p in module.named_parameters())
    )


def _fuse(
    name: str, module: Module, by_layer: dict[int, Row], measured: dict[str, Row]
) -> Iterator[Row]:
    """Makes its forward call d2lops; gives rows for functions, and adds to those of layers."""
    prefix = f"{name}:"
    left = [row for row in measured.values() if row.name.startswith(prefix) and row.now == "torch"]
    yield from left
    try:
        calls = fuse_calls(module, {row.name.removeprefix(prefix) for row in left})
    except UntraceableError as error:
        if _had_to_gain(module):
            yield Row(name, type(module).__name__, "torch", f"forward not traced: {error}")
        return
    for call in calls:
        if call.layer is None:
            call_name = prefix + call.name
            times = measured[call_name].times if call_name in measured else {}
            yield Row(call_name, call.function, "d2lops", call.note, times)
        else:
            row = by_layer.get(id(module.get_submodule(call.layer)))
            if row is not None and row.now == "d2lops":
                row.note = call.note


def _had_to_gain(module: Module) -> bool:
    """Whether its forward has a ReLU, or calls a function that d2lops has."""
    code = getattr(type(module).forward, "__code__", None)
    names = {function.__name__ for function in FUNCTIONS} | {"relu", "relu_"}
    return any(isinstance(child, torch.nn.ReLU) for child in module.children()) or bool(
        code and names.intersection(code.co_names)
    )
