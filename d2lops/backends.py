"""Which kernels a tensor gets: one table, and the libraries behind it.

Importing this module loads the best CPU library that the processor runs (``D2LOPS_CPU=generic``,
``avx2``, ``avx512``, ``avx512_bf16``, ``amx``, or a library's path, forces one), and the CUDA
library where torch sees a GPU. They register their kernels as ``torch.ops.d2lops``. If that fails,
importing still works, and the first use of an operator raises the cause.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

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
    raise OSError(f"no CPU library under {_FOLDER}: was d2lops installed with its kernels?")


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

# The raw operators, filled by `shape_rule`; meta tensors enter by the same door. And the same with
# TF32 allowed where torch's two switches say so, each for the operators of one prefix.
_cpp = SimpleNamespace()
_TF32 = {"matmul": "linear", "conv": "corr2d"}
_cpp_tf32 = {switches: SimpleNamespace() for switches in itertools.product((False, True), repeat=2)}
_devices = ("cpu", "meta", "cuda") if cuda_library[0] else ("cpu", "meta")
_TABLES = {
    "auto": dict.fromkeys(_devices, _cpp),
    "cpp": dict.fromkeys(_devices, _cpp),
    "triton": {},
}
_table: dict[str, SimpleNamespace] = {}


def shape_rule(name: str) -> Callable[[Callable], Callable]:
    """Register the decorated function as what the compiler knows of the raw operator `name`."""

    def register(rule: Callable) -> Callable:
        if load_error is None:
            torch.library.register_fake(f"d2lops::{name}")(_on_one_device(rule))
            operator = getattr(torch.ops.d2lops, name).default
            setattr(_cpp, name, operator)
            for switches, table in _cpp_tf32.items():
                allowed = any(
                    on and name.startswith(prefix)
                    for on, prefix in zip(switches, _TF32.values(), strict=True)
                )
                setattr(
                    table, name, functools.partial(operator, tf32=True) if allowed else operator
                )
        return rule

    return register


def _on_one_device(rule: Callable) -> Callable:
    """The dispatcher takes a tensor without data among the others as reason to ask the rule."""

    @functools.wraps(rule)
    def checked(*arguments: object, **named: object) -> object:
        tensors = filter(torch.is_tensor, (*arguments, *named.values()))
        devices = {str(tensor.device) for tensor in tensors}
        if len(devices) > 1:
            raise RuntimeError(f"tensors must be on one device, but are on {sorted(devices)}")
        return rule(*arguments, **named)

    return checked


def kernels(x: torch.Tensor) -> SimpleNamespace:
    """The raw operators for tensors like `x`; raises where there are none, never falls back."""
    device = "cpu" if x.is_cpu else x.device.type  # to ask for the type takes longer
    found = _table.get(device)
    if found is None:
        raise _no_kernels(device)
    if device == "cuda" and x.dtype is torch.float32:
        return _cpp_tf32[tuple(map(_allows_tf32, _TF32))]
    return found


@torch.compiler.assume_constant_result
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
    if _backend == "triton":
        return NotImplementedError(
            "d2lops has no Triton kernels in this version; use d2lops.backend('auto') or unset "
            "D2LOPS_BACKEND"
        )
    if device == "cuda" and not cuda_library[0]:
        return NotImplementedError(
            f"d2lops has no CUDA kernels here: {cuda_library[1]}. Install d2lops from source on a "
            "machine with nvcc (D2LOPS_CUDA=1 insists), or move the tensor to the CPU."
        )
    return NotImplementedError(
        f"d2lops has no kernels for tensors on device type '{device}' with backend '{_backend}'; "
        f"allowed: {', '.join(sorted(_table))}. Move the tensor, or use the operator of "
        "torch.nn.functional."
    )


def _select(name: str) -> None:
    global _backend, _table
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    _backend = name
    _table = {} if load_error is not None else _TABLES[name]


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Use the kernels of one backend inside a ``with`` block, in every thread.

    Args:
        name: ``"cpp"`` (C++ on the CPU, CUDA C++ on a GPU), ``"triton"``, or ``"auto"``, the
            fastest for each device. ``D2LOPS_BACKEND`` sets what holds outside of any block.

    Raises:
        ValueError: for another name.

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


_select(_backend)
