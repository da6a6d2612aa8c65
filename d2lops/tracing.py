"""A forward written in Python as a graph of torch.fx that is provably the same.

`torch.fx.symbolic_trace` takes for constant whatever it does not see: what isinstance, a flag of
the module, a default argument or a random number said on the day of tracing. Here a forward runs in
a room without windows. What it can reach is a stand-in that sees it: its tensors, `self`, torch and
a few harmless builtins. What it reads of `self` besides layers is kept, to be compared before the
graph is used; anything else, side effects among it, it cannot do.
"""

import builtins
import dis
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module

_BUILTINS = (
    "abs bool dict enumerate float int len list max min range reversed round slice sum tuple zip "
    "NotImplementedError RuntimeError TypeError ValueError"
)
_ROOM = {name: getattr(builtins, name) for name in _BUILTINS.split()}
_CONSTANT = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format)
# Instructions whose effect, outside of the room or on what it raises, would be lost.
_UNSEEN = {
    "STORE_GLOBAL": "it sets a global variable",
    "PUSH_EXC_INFO": "it uses try or with",
    "SETUP_FINALLY": "it uses try or with",
    "SETUP_WITH": "it uses try or with",
}


class UntraceableError(Exception):
    """Why a forward cannot be told by a graph."""


class Trace:
    """The graph of one module's forward, and what it holds for.

    The layers are nodes of it. It tells what the forward does for tensors as its first `arguments`
    arguments, and defaults for the others.

    Args:
        module: is not run, nor changed.
        forward: of its class.
        training: what the forward is told if it asks for `self.training`.

    Attributes:
        graph: of the forward.
        arguments: how many have no default.
        constants: by path from the module, what the forward has read besides layers; for a tensor,
            `Tensor`.
        containers: paths of the modules of which it has seen the children; "" is the module itself.

    Raises:
        UntraceableError: the forward does what a graph cannot tell, or might.
    """

    def __init__(self, module: Module, forward: Callable, training: bool) -> None:
        self.module = module
        self.training = training
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self.containers = {""}
        self._tracer = _Tracer(self.graph)
        self._stand_ins: dict[int, _Self] = {}
        try:
            self._run(forward)
        except UntraceableError:
            raise
        except fx.proxy.TraceError:
            reason = "what it does depends on the numbers or the size of a tensor"
            raise UntraceableError(reason) from None
        except Exception as error:
            raise UntraceableError(str(error) or type(error).__name__) from error

    def _run(self, forward: Callable) -> None:
        traced = self.function(forward)
        code = traced.__code__
        if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
            raise UntraceableError("it takes any number of arguments")
        self.arguments = code.co_argcount - 1 - len(traced.__defaults__ or ())
        names = code.co_varnames[1 : 1 + self.arguments]
        tensors = [self._tracer.proxy(self.graph.placeholder(name)) for name in names]
        result = traced(self.stand_in_for(self.module, ""), *tensors)
        self.graph.output(self._tracer.create_arg(result))

    def record(self, kind: str, target: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self._tracer.create_proxy(kind, target, args, kwargs or {})

    def function(self, function: object) -> types.FunctionType:
        """The same code, which sees nothing of the world but stand-ins."""
        if not isinstance(function, types.FunctionType):
            raise UntraceableError(f"{function!r} is not written in Python")
        if function.__code__.co_freevars:
            raise UntraceableError(f"{function.__name__} is decorated, or uses what is around it")
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        if not all(map(_is_constant, defaults)):
            raise UntraceableError(f"a default of {function.__name__} may change")
        world = {"__builtins__": _ROOM}
        for name in _global_names(function.__code__):
            if name in function.__globals__:
                world[name] = self.stand_in(name, function.__globals__[name])
            elif name not in _ROOM:
                raise UntraceableError(f"it uses {name}")
        copy = types.FunctionType(
            function.__code__, world, function.__name__, function.__defaults__
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    def stand_in(self, name: str, thing: Any) -> Any:
        """What a traced function gets for something that is neither its argument nor of `self`."""
        if thing is math or isinstance(thing, torch.dtype | torch.device | torch.memory_format):
            return thing
        if isinstance(thing, types.ModuleType) and thing.__name__.partition(".")[0] == "torch":
            return _Torch(self, thing)
        if thing is torch.jit.is_scripting:
            return lambda: False
        if _is_torch_function(thing):
            return lambda *args, **kwargs: self.record("call_function", thing, args, kwargs)
        if isinstance(thing, types.FunctionType):
            return lambda *args, **kwargs: self.function(thing)(*args, **kwargs)
        raise UntraceableError(f"it uses {name}")

    def stand_in_for(self, module: Module, path: str) -> "_Self":
        """One for each module, by the first path on which the forward came to it."""
        return self._stand_ins.setdefault(id(module), _Self(self, path, module))


def _is_torch_function(thing: object) -> bool:
    """Whether it is a function of torch, which a node can call."""
    if not isinstance(thing, types.FunctionType | types.BuiltinFunctionType):
        return False
    home = getattr(thing, "__module__", None) or ""
    return home.partition(".")[0] == "torch" or hasattr(torch._C._VariableFunctions, thing.__name__)


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return isinstance(value, _CONSTANT)


def _global_names(code: types.CodeType) -> Iterator[str]:
    """What the code looks for outside of itself; raises for what no stand-in would see."""
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in _UNSEEN:
            raise UntraceableError(_UNSEEN[instruction.opname])
        if instruction.opname == "IS_OP" and (before.opname, before.argval) != ("LOAD_CONST", None):
            raise UntraceableError("it compares by `is`")
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
        before = instruction
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


class _Torch:
    """`torch`, or a module of it, all of whose functions are recorded."""

    def __init__(self, trace: Trace, module: types.ModuleType) -> None:
        self._trace = trace
        self._module = module

    def __getattr__(self, name: str) -> Any:
        thing = getattr(self._module, name)
        return self._trace.stand_in(f"{self._module.__name__}.{name}", thing)


class _Self:
    """The module, or one below it."""

    def __init__(self, trace: Trace, path: str, module: Module) -> None:
        vars(self).update(_trace=trace, _path=path, _module=module)

    def __getattr__(self, name: str) -> Any:
        trace, module = self._trace, self._module
        path = f"{self._path}.{name}" if self._path else name
        if name == "training" and module is trace.module:
            return trace.training
        method = getattr(type(module), name, None)
        if isinstance(method, types.FunctionType) and name not in vars(module):
            return types.MethodType(trace.function(method), self)
        value = getattr(module, name)
        if isinstance(value, Module):
            trace.containers.add(self._path)
            return trace.stand_in_for(value, path)
        if isinstance(value, Tensor):
            trace.constants[path] = Tensor
            return trace.record("get_attr", path)
        if _is_constant(value):
            trace.constants[path] = value
            return value
        if _is_torch_function(value):
            trace.constants[path] = value
            return trace.stand_in(path, value)
        raise UntraceableError(f"it uses self.{path}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise UntraceableError(f"it sets self.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._trace.record("call_module", self._path, args, kwargs)

    def __bool__(self) -> bool:
        self._trace.containers.add(self._path)
        return bool(self._module)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __getitem__(self, index: int) -> Any:
        return getattr(self, self._names()[operator.index(index)])

    def _names(self) -> list[str]:
        if not isinstance(self._module, torch.nn.Sequential | torch.nn.ModuleList):
            raise UntraceableError(f"it takes self.{self._path} apart")
        self._trace.containers.add(self._path)
        return list(self._module._modules)


class _Proxy(fx.Proxy):
    """A tensor; with what torch.fx takes for something else, or does not see."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise UntraceableError(f"it sets an attribute, {name}, of a tensor")
        super().__setattr__(name, value)

    def __format__(self, spec: str) -> str:
        raise UntraceableError("it writes a tensor as text")


def _in_place(name: str) -> Callable:
    function = getattr(operator, name)

    def record(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


# In torch.fx, y += x is y = y + x, which leaves what else shares y's memory as it was.
for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior"):
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.proxy.GraphAppendingTracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, argument: Any) -> Any:
        if isinstance(argument, _Self):
            raise UntraceableError(f"it hands on self.{argument._path}")
        return super().create_arg(argument)
