"""Which of a model's layers are faster with d2lops on this machine: each is measured where it runs.

A copy of the model is converted and given the inputs. Each layer in it, with the ReLU that it has
become one with, and each function is timed the moment it is reached, with what it is given there,
in torch and with every backend, by turns.
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx
from torch.hub import tqdm
from torch.nn import Module
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.benchmark import Timer

from d2lops import backends
from d2lops.convert import THEIRS, convert
from d2lops.fusion import Call, Fused, Plan, layer_relu
from d2lops.report import Report

Times = dict[str, tuple[float, float]]
_SLICE = 2e-3  # seconds that a run takes at least
_SPENT = 0.2  # seconds on one backend's forward, or forward and backward, about
_RUNS = 3, 15  # at least and at most


def tuned(model: Module, fuse: bool, inputs: Any) -> Report:
    """What `convert` may do to the model so that it is in no layer slower than it was.

    Args:
        model: is not changed.
        fuse: as for `convert`.
        inputs: a tensor, a tuple of arguments, or a dict of named ones.

    Raises:
        RuntimeError: the model raises an error for the inputs.
    """
    trial = _copy(model)
    with torch.random.fork_rng(_gpus(trial)):
        _try(trial, inputs)
        report = convert(trial, fuse=fuse)
        total = sum(row.now == "d2lops" for row in report.rows)
        with tqdm(total=total, desc="tuning", unit="layer") as bar:
            measure = _Measurement(lambda: bar.update(1))
            _listen(trial, measure)
            _run(trial, inputs)
    for row in report.rows:
        row.times = measure.times.get(row.name, {})
        if row.times and not _wins(row.times, model.training):
            row.now, row.note = "torch", "is faster"
    return report


def _wins(times: Times, training: bool) -> bool:
    """Whether the backend that is chosen, which is measured first, is faster than torch."""
    ours = next(iter(times))
    return times[ours][training] < times["torch"][training]


def _copy(model: Module) -> Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise RuntimeError(
            "convert(): to be tuned, the model must be copied with copy.deepcopy, which raises "
            f"{type(error).__name__}: {error}"
        ) from error


def _run(model: Module, inputs: Any) -> None:
    inputs = tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
    named = inputs if isinstance(inputs, dict) else {}
    arguments = () if named else inputs if isinstance(inputs, tuple | list) else (inputs,)
    model(*arguments, **named)


def _try(model: Module, inputs: Any) -> None:
    """Runs it once, which also makes lazy layers what they are."""
    try:
        _run(model, inputs)
    except Exception as error:
        raise RuntimeError(
            f"convert(): the model raises {type(error).__name__} for the inputs given as tune, "
            f"which it must accept: {error}"
        ) from error


def _gpus(model: Module) -> set[int]:
    return {p.device.index for p in model.parameters() if p.device.type == "cuda"}


# Where measurements are made.


def _listen(model: Module, measure: Callable[["_Site"], None]) -> None:
    """Has every layer and every rewritten call measured as soon as it is reached."""
    names = {id(module): name for name, module in model.named_modules()}
    fused = set()
    for module in model.modules():
        plan = module._d2lops_plan() if isinstance(module, Fused) else None
        if plan is not None:
            fused |= {module.get_submodule(call.layer) for call in plan.calls if call.layer}
            plan.run = functools.partial(_run_measured, plan, names, measure)
    for layer in model.modules():
        if type(layer) in THEIRS and layer not in fused:
            layer.register_forward_pre_hook(functools.partial(_measure_layer, names, measure))


def _measure_layer(names: dict, measure: Callable, layer: Module, args: tuple) -> None:
    ours, theirs = _bare(layer, type(layer)), _bare(layer, THEIRS[type(layer)])
    measure(_Site(names[id(layer)], ours, theirs, args, {}, [layer]))


def _bare(layer: Module, kind: type[Module]) -> Module:
    """A layer of that class with the same parameters, without hooks."""
    twin = copy.copy(layer)
    twin.__class__ = kind
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()
    if hasattr(twin, "inplace"):  # leaves cannot be written to
        twin.inplace = False
    return twin


def _run_measured(plan: Plan, names: dict, measure: Callable, module: Module, *args: Any) -> Any:
    return _Interpreter(plan, names, measure, module).run(*args)


class _Interpreter(fx.Interpreter):
    def __init__(self, plan: Plan, names: dict, measure: Callable, module: Module) -> None:
        super().__init__(module, graph=plan.graph)
        self._calls = {call.node: call for call in plan.calls}
        self._names, self._measure = names, measure

    def run_node(self, node: fx.Node) -> Any:
        if node in self._calls:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            site = self._site(self._calls[node], args, kwargs)
            if site is not None:
                self._measure(site)
        return super().run_node(node)

    def _site(self, call: Call, args: tuple, kwargs: dict) -> "_Site | None":
        if call.layer is None:
            name = f"{self._names[id(self.module)]}:{call.name}"
            bound = inspect.signature(call.target).bind(*args, **kwargs)
            if "inplace" in bound.arguments:  # leaves cannot be written to
                bound.arguments["inplace"] = False
            return _Site(name, call.target, call.original, bound.args, bound.kwargs, [])
        x, layer, norm, relu = args
        if type(layer) not in THEIRS:
            return None
        theirs = (_bare(layer, THEIRS[type(layer)]), norm, relu or torch.nn.ReLU())
        theirs = torch.nn.Sequential(*filter(None, theirs))
        ours = functools.partial(layer_relu, layer=layer, norm=norm, relu=relu)
        return _Site(self._names[id(layer)], ours, theirs, (x,), {}, [*theirs])


# Measuring.


@dataclasses.dataclass
class _Site:
    """A place in the model: what is called there, in d2lops and in torch, and what with."""

    name: str
    ours: Callable
    theirs: Callable
    args: tuple
    kwargs: dict
    modules: list[Module]

    def key(self) -> str:
        """The same for sites that take the same time."""
        modules = [(module, module.training) for module in self.modules]
        function = getattr(self.ours, "__name__", "")
        return repr((function, modules, tree_map_only(Tensor, _kind, (self.args, self.kwargs))))

    def leaves(self) -> "_Site":
        """The same, with nothing before it that a backward would go through."""
        args, kwargs = tree_map_only(
            Tensor, lambda x: x.detach().requires_grad_(x.requires_grad), (self.args, self.kwargs)
        )
        return dataclasses.replace(self, args=args, kwargs=kwargs)

    def wanted(self) -> list[Tensor]:
        """The tensors of which it has gradients."""
        parameters = [p for module in self.modules for p in module.parameters()]
        return [x for x in (*self._given(), *parameters) if x.requires_grad]

    def device(self) -> str:
        return self._given()[0].device.type

    def _given(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


def _kind(x: Tensor) -> tuple:
    return x.dtype, x.device, x.shape, x.stride(), x.requires_grad


class _Measurement:
    """Measures sites, each kind once.

    Attributes:
        times: of each site, by name.
    """

    def __init__(self, progress: Callable[[], object]) -> None:
        self.times: dict[str, Times] = {}
        self._kinds: dict[str, Times] = {}
        self._progress = progress

    def __call__(self, site: _Site) -> None:
        key = site.key()
        if key not in self._kinds:
            self._kinds[key] = self._measured(site.leaves())
        if site.name not in self.times:
            self.times[site.name] = self._kinds[key]
            self._progress()

    def _measured(self, site: _Site) -> Times:
        calls = dict.fromkeys(backends.available(site.device()), site.ours)
        calls["torch"] = site.theirs
        calls = {
            name: functools.partial(call, *site.args, **site.kwargs) for name, call in calls.items()
        }
        with torch.no_grad():
            forward = _seconds(calls)
        wanted = site.wanted()
        if not wanted:
            return {name: (seconds, seconds) for name, seconds in forward.items()}
        with torch.enable_grad():
            both = _seconds({name: _with_backward(call, wanted) for name, call in calls.items()})
        return {name: (forward[name], both[name]) for name in calls}


def _with_backward(call: Callable, wanted: list[Tensor]) -> Callable:
    gradient = torch.ones_like(_output(call))
    return lambda: torch.autograd.grad(_output(call), wanted, gradient, allow_unused=True)


def _output(call: Callable) -> Tensor:
    """Of pooling that gives indices too, the values."""
    output = call()
    return output if isinstance(output, Tensor) else output[0]


def _seconds(calls: dict[str, Callable]) -> dict[str, float]:
    """The median of each one's runs, which take turns."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        for name, call in calls.items()
    }

    def run(name: str, loops: int) -> float:
        with contextlib.nullcontext() if name == "torch" else backends.backend(name):
            return timers[name].timeit(loops).mean

    once = max(min(run(name, 1), run(name, 1)) for name in timers)
    loops = max(1, round(_SLICE / once))
    runs = min(max(_RUNS[0], round(_SPENT / (loops * once))), _RUNS[1])
    seconds = [{name: run(name, loops) for name in timers} for _ in range(runs)]
    return {name: median(run[name] for run in seconds) for name in timers}
