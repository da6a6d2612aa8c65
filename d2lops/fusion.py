"""A module whose forward calls d2lops's functions, and a layer and its ReLU as one.

`convert` gives it a class of its own, a subclass that has the same name, and a forward that is
made from a trace of the old one: `torch.nn.functional`'s functions are d2lops's where it has them,
and a convolution or linear layer whose only consumer is a ReLU is one kernel with it, together with
the BatchNorm between them while that evaluates. Modules, parameters, hooks and names stay as they
are. Whenever the trace does not hold, the old forward runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, fx
from torch.nn import Module

from d2lops import functional, nn
from d2lops.tracing import Trace, UntraceableError

FUNCTIONS = {
    torch_functional.conv2d: functional.conv2d,
    torch_functional.linear: functional.linear,
    torch_functional.max_pool2d: functional.max_pool2d,
    torch.max_pool2d: functional.max_pool2d,
    torch_functional.avg_pool2d: functional.avg_pool2d,
    torch_functional.adaptive_max_pool2d: functional.adaptive_max_pool2d,
    torch_functional.adaptive_avg_pool2d: functional.adaptive_avg_pool2d,
    torch_functional.dropout: functional.dropout,
}
_WITH_RELU = {
    functional.conv2d: functional.conv_relu2d,
    functional.linear: functional.linear_relu,
}
_RELUS = (torch.relu, torch.relu_, torch_functional.relu, torch_functional.relu_, "relu", "relu_")
_CONVOLUTIONS = (torch.nn.Conv2d, torch.nn.LazyConv2d, nn.Conv2d, nn.LazyConv2d)
_LINEARS = (torch.nn.Linear, torch.nn.LazyLinear, nn.Linear, nn.LazyLinear)
_NORMS = (torch.nn.BatchNorm2d, torch.nn.LazyBatchNorm2d)


# What a fused node calls.


def layer_relu(x: Tensor, layer: Module, norm: Module | None, relu: Module | None) -> Tensor:
    """``relu(norm(layer(x)))``, in one kernel if the modules are now as that needs them."""
    if _is_one_kernel(x, layer, norm, relu):
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight, bias = _folded(weight, bias, norm)
        if type(layer) is nn.Linear:
            return functional.linear_relu(x, weight, bias)
        return nn.ConvReLU2d._conv_forward(layer, x, weight, bias)
    x = layer(x)
    if norm is not None:
        x = norm(x)
    return torch_functional.relu(x) if relu is None else relu(x)


def _is_one_kernel(x: Tensor, layer: Module, norm: Module | None, relu: Module | None) -> bool:
    """Nobody looks at what is between the modules, and they are what they were traced as."""
    if type(layer) not in (nn.Conv2d, nn.Linear) or _is_watched(layer):
        return False
    if relu is not None and (type(relu) is not torch.nn.ReLU or _is_watched(relu)):
        return False
    return norm is None or (
        type(norm) is torch.nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and x.dim() == 4  # what it would refuse
        and not _is_watched(norm)
        and _is_worth_folding(layer.weight, x)
    )


def _is_worth_folding(weight: Tensor, x: Tensor) -> bool:
    """A pass over the weights instead of one over the image: not for many channels of few pixels.

    Whoever compiles decides it for images of any size.
    """
    return torch.compiler.is_compiling() or weight.numel() <= x.numel()


def _is_watched(module: Module) -> bool:
    """Whether `torch.nn.Module.__call__` does more than to call forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch.nn.modules.module._has_any_global_hook()
    )


def _folded(weight: Tensor, bias: Tensor | None, norm: Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm(conv(x)): to normalise is to scale and shift each channel."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    shift = -mean * scale if norm.bias is None else torch.addcmul(norm.bias, mean, scale, value=-1)
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


# The traced forward, rewritten.


class Plan:
    """A module's forward for one value of `training`, rewritten.

    Args:
        module: is not changed, and not kept.
        forward: of the class that it had.
        training: what its forward is told of `self.training`.
        without: names of calls that are left as they are.

    Attributes:
        graph: of the rewritten forward.
        calls: what was rewritten.
        run: the rewritten forward.

    Raises:
        UntraceableError: its forward cannot be traced.
    """

    def __init__(
        self, module: Module, forward: Callable, training: bool, without: Collection[str]
    ) -> None:
        trace = Trace(module, forward, training)
        self.arguments = trace.arguments
        self._constants = trace.constants
        self._containers = tuple(trace.containers)
        self._structure = self._structure_of(module)
        found = (_call(module, node) for node in trace.graph.nodes)
        self.calls = [call for call in found if call is not None and call.name not in without]
        for call in self.calls:
            call.rewrite(trace.graph)
        self.graph = trace.graph
        code = self.graph.python_code("self")
        world = dict(code.globals)
        exec(code.src, world)
        self.run: Callable = world["forward"]

    def is_for(self, module: Module) -> bool:
        """Whether the module still has the layers that were traced."""
        return self._structure_of(module) == self._structure

    def holds(self, module: Module) -> bool:
        """Whether what the forward has read of the module is what it would read now."""
        return all(_still_is(_read(module, path), value) for path, value in self._constants.items())

    def _structure_of(self, module: Module) -> list[tuple[str, type]]:
        return [
            (name, type(child))
            for path in self._containers
            for name, child in getattr(_read(module, path), "_modules", {}).items()
        ]


def _read(module: Module, path: str) -> Any:
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module


def _still_is(value: Any, traced: Any) -> bool:
    if traced is Tensor:
        return isinstance(value, Tensor)
    return type(value) is type(traced) and value == traced


@dataclasses.dataclass
class Call:
    """What becomes one call of d2lops: that of a function or of a layer, with the ReLU after it.

    Attributes:
        nodes: the calls that it takes the place of, in their order.
        target: what is called instead.
        node: that call, once it is there.
    """

    nodes: tuple[fx.Node, ...]
    target: Callable
    node: fx.Node | None = None

    @property
    def name(self) -> str:
        """The layer's path; or a function's name, numbered within the forward."""
        first = self.nodes[0]
        return first.target if first.op == "call_module" else first.name

    @property
    def layer(self) -> str | None:
        """The path of the layer, if it is one that is called."""
        return self.nodes[0].target if self.target is layer_relu else None

    @property
    def function(self) -> str:
        return self.nodes[0].target.__name__

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the functions gave that are called no more."""
        result = self.nodes[0].target(*args, **kwargs)
        return torch_functional.relu(result) if len(self.nodes) > 1 else result

    @property
    def note(self) -> str:
        """What the call has become one with."""
        others = [
            node.target if node.op == "call_module" else "a call of relu" for node in self.nodes[1:]
        ]
        return f"one with {', '.join(others)}" if others else ""

    def rewrite(self, graph: fx.Graph) -> None:
        first, last = self.nodes[0], self.nodes[-1]
        with graph.inserting_before(first):
            modules = self._modules(graph) if self.target is layer_relu else ()
            self.node = graph.call_function(self.target, (*first.args, *modules), first.kwargs)
        last.replace_all_uses_with(self.node)
        for old in reversed(self.nodes):
            graph.erase_node(old)

    def _modules(self, graph: fx.Graph) -> tuple[fx.Node | None, ...]:
        """Layer, BatchNorm and ReLU, as nodes; None for what there is not, or is no module."""
        layer, *norm, relu = (
            graph.get_attr(node.target) if node.op == "call_module" else None for node in self.nodes
        )
        return layer, *(norm or (None,)), relu


def _call(module: Module, node: fx.Node) -> Call | None:
    """What begins with this node, if anything."""
    consumer = _only_consumer(node)
    if node.op == "call_function" and node.target in FUNCTIONS:
        target = FUNCTIONS[node.target]
        if target in _WITH_RELU and _is_relu(module, consumer):
            return Call((node, consumer), _WITH_RELU[target])
        return Call((node,), target)
    if not _is_module(module, node, _CONVOLUTIONS + _LINEARS):
        return None
    norm = ()
    if _is_module(module, consumer, _NORMS) and _is_module(module, node, _CONVOLUTIONS):
        norm, consumer = (consumer,), _only_consumer(consumer)
    return Call((node, *norm, consumer), layer_relu) if _is_relu(module, consumer) else None


def _only_consumer(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args[:1] == (node,) else None


def _is_relu(module: Module, node: fx.Node | None) -> bool:
    if node is None or node.op == "call_module":
        return _is_module(module, node, (torch.nn.ReLU,))
    return node.target in _RELUS


def _is_module(module: Module, node: fx.Node | None, types: tuple[type, ...]) -> bool:
    """Whether it calls a module of one of the types, not of a subclass, with one argument."""
    return (
        node is not None
        and node.op == "call_module"
        and type(_read(module, node.target)) in types
        and len(node.args) == 1
        and not node.kwargs
    )


def plans(module: Module, base: type[Module], without: Collection[str]) -> dict[bool, Plan]:
    """By `training`, the plans of a module of that class, where there is anything to call."""
    both = {mode: Plan(module, base.forward, mode, without) for mode in (True, False)}
    return {mode: plan for mode, plan in both.items() if plan.calls}


def fuse_calls(module: Module, without: Collection[str]) -> list[Call]:
    """Give the module a class that runs plans, where there is anything to call.

    Args:
        module: of any class written in Python, or fused before.
        without: names of calls that are left as they are.

    Returns:
        What it calls now, in either mode.

    Raises:
        UntraceableError: its forward cannot be traced.
    """
    if isinstance(module, Fused):
        unfuse(module)
    made = plans(module, type(module), without)
    if made:
        module.__class__ = fused_class(type(module))
        module._d2lops_plans, module._d2lops_without = made, without
    return list({call.name: call for plan in made.values() for call in plan.calls}.values())


def unfuse(module: Module) -> None:
    module.__class__ = module.base
    for name in ("_d2lops_plans", "_d2lops_without"):
        vars(module).pop(name, None)  # none are in what the class has made


# The module that runs it.


class Fused:
    """What the class of a module with plans has besides the class that it had, `base`.

    What the class itself makes has no plans, and is as if made by `base`: a copy from the same
    arguments, or from a checkpoint, is not converted.
    """

    base: type[Module]
    _d2lops_plans: Mapping[bool, Plan] = MappingProxyType({})
    _d2lops_without: Collection[str] = ()

    def _d2lops_plan(self) -> Plan | None:
        plan = self._d2lops_plans.get(self.training)
        if plan is None or plan.is_for(self):
            return plan
        if torch.compiler.is_compiling():  # which could not see a plan being made
            return None
        self._d2lops_plan_anew()
        return self._d2lops_plans.get(self.training)

    def _d2lops_plan_anew(self) -> None:
        try:
            self._d2lops_plans = plans(self, self.base, self._d2lops_without)
        except UntraceableError:
            self._d2lops_plans = {}

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Without the plans, which are made of code, and by the name of the class that is known."""
        new, (_, *arguments), state, *rest = super().__reduce_ex__(protocol)
        state = {name: value for name, value in state.items() if name != "_d2lops_plans"}
        return _new, (new, self.base, *arguments), state, *rest

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._d2lops_plan_anew()


def _new(new: Callable, base: type, *arguments: Any) -> Module:
    return new(fused_class(base), *arguments)


@functools.cache
def fused_class(base: type[Module]) -> type[Module]:
    """A subclass that runs plans: of the same name, so that messages and checkpoints stay."""

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self._d2lops_plan()
        if (
            plan is None
            or kwargs
            or len(args) != plan.arguments
            or not all(isinstance(arg, Tensor) for arg in args)
            or not plan.holds(self)
        ):
            return base.forward(self, *args, **kwargs)
        return plan.run(self, *args)

    names = ("__module__", "__qualname__", "__doc__")
    body = {name: getattr(base, name) for name in names}
    return type(base.__name__, (Fused, base), {**body, "base": base, "forward": forward})
