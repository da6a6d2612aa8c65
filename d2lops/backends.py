"""Which kernels a tensor gets: one table, and the libraries behind it.

Importing this module loads the best CPU library that the processor runs (``D2LOPS_CPU=generic``,
``avx2``, ``avx512``, ``avx512_bf16``, ``amx``, or a library's path, forces one), and the CUDA
library where torch sees a GPU. They register their kernels as ``torch.ops.d2lops``. The Triton
kernels, ``torch.ops.d2lops_triton``, are loaded when they are asked for, or where a GPU has no
others. If any of that fails, importing still works, and the first use of an operator raises the
cause.
"""

import contextlib
import functools
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._ops import OpOverload

from d2lops import flops

# Best first, each with the processor features that its instructions need.
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", *_AVX2)
CPU_LIBRARIES = {
    "amx": ("amx", "avx512bf16", *_AVX512),
    "avx512_bf16": ("avx512bf16", *_AVX512),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": (),
}
BACKENDS = ("auto", "cpp", "triton")
_FOLDER = Path(__file__).parent / "lib"


def missing_features(library: str) -> list[str]:
    """The instruction sets that a CPU library needs and this processor does not have."""
    from d2lops import _C

    features = _C.cpu_features()
    return [feature for feature in CPU_LIBRARIES[library] if not features.get(feature)]


def _choose_cpu_library() -> tuple[Path, str]:
    """The CPU library to load, and why that one."""
    forced = os.environ.get("D2LOPS_CPU")
    if forced:
        reason = f"D2LOPS_CPU={forced}"
        if forced.endswith(".so"):
            return Path(forced), reason
        if forced not in CPU_LIBRARIES:
            raise ValueError(
                f"D2LOPS_CPU={forced!r}: allowed are {', '.join(CPU_LIBRARIES)}, and paths to .so"
            )
        if missing := missing_features(forced):
            raise OSError(f"D2LOPS_CPU={forced}: this processor lacks {', '.join(missing)}")
        return _FOLDER / f"cpu_{forced}.so", reason
    for name in CPU_LIBRARIES:
        path = _FOLDER / f"cpu_{name}.so"
        if path.exists() and not missing_features(name):
            return path, "the best one built that this processor runs"
    raise OSError(f"no CPU library under {_FOLDER}: {_why_none()}")


def _why_none() -> str:
    if (_FOLDER.parents[1] / "setup.py").exists():
        return (
            "these are d2lops's sources, which Python finds before an installed d2lops while it "
            "runs in their folder: run it in another one, or install with pip install -e ."
        )
    return "was d2lops installed with its kernels?"


def _choose_backend() -> str:
    name = os.environ.get("D2LOPS_BACKEND") or "auto"
    if name not in BACKENDS:
        raise ValueError(f"D2LOPS_BACKEND={name!r}: allowed are {', '.join(BACKENDS)}")
    return name


def _load_cuda_library() -> tuple[bool, str]:
    """Whether the CUDA library was loaded, and why or why not."""
    path = _FOLDER / "cuda.so"
    if not torch.cuda.is_available():
        return False, "torch sees no GPU"
    if not path.exists():
        return False, "not built: python -m d2lops.info tells why"
    torch.ops.load_library(str(path))
    return True, "torch sees a GPU"


# Name (or whether) and reason, once loaded.
cpu_library: tuple[str, str] | None = None
cuda_library: tuple[bool, str] = (False, "the CPU library could not be loaded")
load_error: Exception | None = None
_backend = "auto"
try:
    _backend = _choose_backend()
    _path, _reason = _choose_cpu_library()
    torch.ops.load_library(str(_path))
    cpu_library = (_path.stem.removeprefix("cpu_"), _reason)
    cuda_library = _load_cuda_library()
except Exception as error:  # kept for the first use, which can say more than an import can
    load_error = error

_TF32 = {"matmul": "linear", "conv": "corr2d"}


class Kernels:
    """The raw operators of one library, filled by `shape_rule`.

    And the same with TF32 allowed where torch's two switches say so, each for the operators of one
    prefix.
    """

    def __init__(self) -> None:
        self.plain = SimpleNamespace()
        self.has_sharding_rules = False
        self.tf32 = {
            switches: SimpleNamespace() for switches in itertools.product((False, True), repeat=2)
        }

    def add(self, name: str, operator: Callable) -> None:
        setattr(self.plain, name, operator)
        for switches, table in self.tf32.items():
            allowed = any(
                on and name.startswith(prefix)
                for on, prefix in zip(switches, _TF32.values(), strict=True)
            )
            setattr(table, name, functools.partial(operator, tf32=True) if allowed else operator)

    def add_registered(self, name: str, operator: OpOverload) -> None:
        """One that torch knows, which is told how to batch it, and how much it computes."""
        self.add(name, operator)
        torch.library.register_vmap(operator.name(), functools.partial(self._batched, name))
        flops.count(name, operator)

    def _batched(self, name: str, *arguments: Any) -> tuple[Any, Any]:
        """The batching rule of an operator, looked for when vmap first asks."""
        from d2lops.ops import _batching

        return _batching.batched(self.plain, name, *arguments)


_cpp = Kernels()
_triton = Kernels()
_rules: dict[str, Callable] = {}
triton_loaded = False
_table: dict[str, Kernels] = {}


def shape_rule(name: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as what the compiler knows of the raw operator `name`."""

    def register(rule: Callable) -> Callable:
        if load_error is None:
            _rules[name] = _on_one_device(rule)
            torch.library.register_fake(f"d2lops::{name}")(_rules[name])
            _cpp.add_registered(name, getattr(torch.ops.d2lops, name).default)
            if triton_loaded:
                _add_triton(name)
        return rule

    return register


def _on_one_device(rule: Callable) -> Callable:
    """The dispatcher takes a tensor without data among the others as reason to ask the rule."""

    @functools.wraps(rule)
    def checked(*arguments: object, **named: object) -> object:
        tensors = filter(torch.is_tensor, (*arguments, *named.values()))
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"tensors must be on one device, but are on {found}")
        return rule(*arguments, **named)

    return checked


def _constant_to_the_compiler(function: Callable) -> Callable:
    """What `torch.compiler.assume_constant_result` does once it has imported the whole compiler.

    That takes a second, as long as torch itself, and many a script never compiles anything.
    """
    function._dynamo_marked_constant = True
    return function


def kernels(x: torch.Tensor) -> SimpleNamespace:
    """The raw operators for tensors like `x`; raises where there are none, never falls back."""
    device = "cpu" if x.is_cpu else x.device.type  # to ask for the type takes longer
    found = _table.get(device)
    if found is None:
        raise _no_kernels(device)
    if type(x) is not torch.Tensor:
        _meet(type(x), device)
    if device == "cuda" and x.dtype is torch.float32:
        return found.tf32[tuple(map(_allows_tf32, _TF32))]
    return found.plain


def has_kernels(device: str) -> bool:
    """Whether tensors on that type of device have kernels, with the backend that is chosen."""
    return device in _table


def available(device: str) -> list[str]:
    """The backends that have kernels for a type of device, the one that is chosen first."""
    chosen = "triton" if _table[device] is _triton else "cpp"
    others = {
        "cpp": device == "cpu" or cuda_library[0],
        "triton": device == "cuda" and triton_version(),
    }
    return [chosen, *(name for name, there in others.items() if there and name != chosen)]


@_constant_to_the_compiler
def _meet(kind: type, device: str) -> None:
    """Registers the rules for DTensors when one comes: to import them takes half a second."""
    found = _table[device]
    distributed = sys.modules.get("torch.distributed.tensor")
    if found.has_sharding_rules or not distributed or not issubclass(kind, distributed.DTensor):
        return
    from d2lops import sharding

    sharding.register(vars(found.plain))
    found.has_sharding_rules = True


@_constant_to_the_compiler
def _allows_tf32(operator: str) -> bool:
    """What `torch.backends.cuda.matmul` and `torch.backends.cudnn.conv` say, asked cheaply.

    A compiled graph keeps what they said when it was compiled.
    """
    return torch._C._get_fp32_precision_getter("cuda", operator) == "tf32"


def _no_kernels(device: str) -> Exception:
    if load_error is not None:
        from d2lops.info import summary

        error = ImportError(
            "d2lops could not load its kernels: "
            f"{type(load_error).__name__}: {load_error}\n{summary()}"
        )
        error.__cause__ = load_error
        return error
    if _backend == "triton" and device == "cpu":
        return NotImplementedError(
            "d2lops's Triton kernels run on GPUs, but the tensor is on the CPU. Move it to a GPU, "
            "use d2lops.backend('auto'), or set TRITON_INTERPRET=1 before Python starts, which "
            "runs them in Triton's interpreter: slowly."
        )
    if device == "cuda" and _backend != "triton":
        return NotImplementedError(
            f"d2lops has no kernels for GPUs here: its CUDA library: {cuda_library[1]}. Install "
            "d2lops from source on a machine with nvcc (D2LOPS_CUDA=1 insists), install triton 3.6 "
            "or later, or move the tensor to the CPU."
        )
    return NotImplementedError(
        f"d2lops has no kernels for tensors on device type '{device}' with backend '{_backend}'; "
        f"allowed: {', '.join(sorted(_table))}. Move the tensor, or use the operator of "
        "torch.nn.functional."
    )


def triton_version() -> str | None:
    """Of the Triton that is installed, if there is one that the kernels are written for."""
    try:
        import triton
    except ImportError:
        return None
    release = tuple(map(int, triton.__version__.split(".")[:2]))
    return triton.__version__ if release >= (3, 6) else None


def _load_triton() -> None:
    global triton_loaded
    if triton_loaded:
        return
    if importlib.util.find_spec("triton"):
        importlib.import_module("triton")  # or its error, where it lacks NumPy to interpret
    if triton_version() is None:
        raise ImportError(
            "d2lops's Triton kernels need triton 3.6 or later, which is not installed here: "
            "pip install 'triton>=3.6', or use d2lops.backend('auto')"
        )
    triton_loaded = True
    for name in _rules:
        _add_triton(name)


def _add_triton(name: str) -> None:
    from d2lops.triton_kernels import operators

    if name in operators.LAUNCHERS:
        _triton.add_registered(name, operators.define(name, _rules[name]))


def _tables(name: str) -> dict[str, Kernels]:
    """For each type of device, the kernels that a backend has for it."""
    if name == "triton":
        _load_triton()
        from d2lops.triton_kernels.device import INTERPRETED

        return dict.fromkeys(("cpu", "meta") if INTERPRETED else ("cuda", "meta"), _triton)
    table = {"cpu": _cpp, "meta": _cpp}
    if cuda_library[0]:
        table["cuda"] = _cpp
    elif name == "auto" and torch.cuda.is_available() and triton_version():
        _load_triton()
        table["cuda"] = _triton
    return table


def _select(name: str) -> None:
    global _backend, _table
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    _table = {} if load_error is not None else _tables(name)
    _backend = name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Use the kernels of one backend inside a ``with`` block, in every thread.

    Args:
        name: ``"cpp"`` (C++ on the CPU, CUDA C++ on a GPU), ``"triton"`` (on a GPU), or ``"auto"``:
            C++ on the CPU; on a GPU, CUDA C++ where it was built, else Triton.
            ``D2LOPS_BACKEND`` sets what holds outside of any block.

    Raises:
        ValueError: for another name.
        ImportError: Triton is asked for, but not installed.

    Example:
        >>> import torch, d2lops
        >>> from d2lops import functional as F
        >>> with d2lops.backend("cpp"):
        ...     F.dropout(torch.ones(3), p=0.0)
        tensor([1., 1., 1.])
    """
    before = _backend
    _select(name)
    try:
        yield
    finally:
        _select(before)


try:
    _select(_backend)
except ImportError as error:
    load_error = error
