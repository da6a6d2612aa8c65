"""Compiles Triton kernels for GPUs that are not here, just as d2lops would launch them.

Operators are called on meta tensors, and what they launch is written down and compiled. In a
process without the interpreter: where that runs, nothing can be compiled.
"""

import functools
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import d2lops
from d2lops import backends

with d2lops.backend("triton"):
    from d2lops.triton_kernels import device, launch, operators
    from d2lops.triton_kernels.device import Device

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Gpu(NamedTuple):
    target: GPUTarget
    device: Device
    tensor_core_instruction: str


GPUS = {
    "sm_80": Gpu(
        GPUTarget("cuda", 80, 32), Device("cuda", 80, 108, 166912, True), r"\b[HDI]?MMA\b"
    ),
    "sm_90": Gpu(
        GPUTarget("cuda", 90, 32), Device("cuda", 90, 132, 232448, True), r"\b[HDQ]?G?MMA\b"
    ),
    "sm_100": Gpu(
        GPUTarget("cuda", 100, 32), Device("cuda", 100, 148, 232448, True), r"\b\w*MMA\b"
    ),
    "gfx942": Gpu(
        GPUTarget("hip", "gfx942", 64), Device("hip", 0, 304, 65536, True), r"\bv_mfma_\w+"
    ),
}
_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Launch(NamedTuple):
    """What decides on a kernel's machine code."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]  # which arguments are multiples of 16
    warps: int
    stages: int
    with_allocator: bool  # whether it is there, for the memory that the kernel asks for

    @property
    def multiplies(self) -> bool:
        """Whether it is a product of matrices."""
        return "multiply(" in inspect.getsource(self.kernel.fn)

    @property
    def configuration(self) -> tuple:
        """All but the strides: which of them are 1, or multiples of 16."""
        pointers = tuple(item for item in self.signature if item[1].startswith("*"))
        chosen = tuple(item for item in self.constants if item[0].isupper())
        return self.kernel, pointers, chosen, self.warps, self.stages

    def __str__(self) -> str:
        constants = ", ".join(f"{name}={value}" for name, value in self.constants)
        types = ", ".join(type for _, type in self.signature if type.startswith("*"))
        how = f"{constants}; {self.warps} warps, {self.stages} stages"
        return f"{self.kernel.__name__}({types}; {how})"


class MachineCode:
    """What is asked of it is looked up then: a listing takes as long to make as the code itself."""

    def __init__(self, gpu: Gpu, compiled: Any) -> None:
        self._gpu = gpu
        self._asm = compiled.asm
        self.shared_memory: int = compiled.metadata.shared  # bytes
        self.global_memory: int = compiled.metadata.global_scratch_size  # that it asks for

    @functools.cached_property
    def text(self) -> str:
        hip = self._gpu.target.backend == "hip"
        return self._asm["amdgcn"] if hip else _cuobjdump(self._asm["cubin"], "-sass")

    @functools.cached_property
    def _usage(self) -> str:
        hip = self._gpu.target.backend == "hip"
        return self._asm["amdgcn"] if hip else _cuobjdump(self._asm["cubin"], "-res-usage")

    @property
    def registers(self) -> int:
        return _number(r"(?:REG:|\.vgpr_count:\s+)(\d+)", self._usage)

    @property
    def stack(self) -> int:
        """Bytes: spilled registers, and arrays with an index that is not known."""
        return _number(r"(?:STACK:|\.private_segment_fixed_size:\s+)(\d+)", self._usage)

    @property
    def tensor_core_instructions(self) -> int:
        return len(re.findall(self._gpu.tensor_core_instruction, self.text))


def kernels() -> set[Any]:
    """All that are launched: the package's Triton functions that none of them calls."""
    functions = {
        value
        for name, module in sys.modules.items()
        if name.startswith("d2lops.triton_kernels.")
        for value in vars(module).values()
        if isinstance(value, triton.JITFunction)
    }
    called = {name for function in functions for name in function.fn.__code__.co_names}
    return {function for function in functions if function.__name__ not in called}


def launches(gpu: Gpu, function: Callable, *arguments: Any, tf32: bool = False) -> list[Launch]:
    """What a function of meta tensors may launch on such a GPU: in every configuration."""
    written: list[Launch] = []
    allocator = mock.Mock()

    class Writer:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable:
            return self.write

        def write(self, *values: Any, **named: Any) -> None:
            written.append(_launch(self.kernel, values, named, allocator.called))
            allocator.reset_mock()

    with _on(gpu, Writer, tf32), mock.patch.object(triton, "set_allocator", allocator):
        function(*arguments)
    return list(dict.fromkeys(written))


@contextmanager
def _on(gpu: Gpu, writer: type, tf32: bool) -> Iterator[None]:
    def launch_all(run: Callable, configs: Any, *_: Any) -> None:
        for config in configs:
            run(config)

    modules = [module for name, module in sys.modules.items() if "d2lops.triton_kernels." in name]
    patches = [
        mock.patch.object(module, "launch_fastest", launch_all)
        for module in modules
        if hasattr(module, "launch_fastest")
    ]
    patches += [
        mock.patch.object(launch, "wrap_triton", writer),
        mock.patch.object(device, "_device", lambda index: gpu.device),
        mock.patch.object(backends, "_table", {"meta": _launchers(tf32)}),
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _launchers(tf32: bool) -> backends.Kernels:
    """The operators, without torch between them and their launchers."""
    kernels = backends.Kernels()
    for name, launcher in operators.LAUNCHERS.items():
        kernels.add(name, functools.partial(_run, backends._rules[name], launcher))
    kernels.plain = kernels.tf32[tf32, tf32]
    return kernels


def _run(rule: Callable, launcher: Callable, *arguments: Any, **named: Any) -> Any:
    out = rule(*arguments, **named)
    launcher(*arguments, **named, out=out)
    return out


def _launch(kernel: Any, values: tuple, named: dict[str, Any], with_allocator: bool) -> Launch:
    warps, stages = named.pop("num_warps"), named.pop("num_stages")
    values_by_name = dict(zip(kernel.arg_names, values, strict=False)) | named
    signature, constants, divisible = [], [], []
    for index, parameter in enumerate(kernel.params):
        value = values_by_name[parameter.name]
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and _is_one(value)):
            signature.append((parameter.name, "constexpr"))
            constants.append((parameter.name, value))
            continue
        signature.append((parameter.name, _type(value, parameter.annotation_type)))
        place = value.storage_offset() * value.itemsize if isinstance(value, Tensor) else value
        if specialized and isinstance(place, int) and place % 16 == 0:
            divisible.append(index)
    arguments = (tuple(signature), tuple(constants), tuple(divisible))
    return Launch(kernel, *arguments, warps, stages, with_allocator)


def _is_one(value: Any) -> bool:
    return type(value) is int and value == 1


def _type(value: Any, annotation: str) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if annotation:
        return annotation
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def machine_code(gpu: Gpu, wanted: Launch) -> MachineCode:
    source = ASTSource(
        fn=wanted.kernel,
        signature=dict(wanted.signature),
        constexprs=dict(wanted.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in wanted.divisible},
    )
    options = {"num_warps": wanted.warps, "num_stages": wanted.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=gpu.target, options=options)
    assert compiled.metadata.num_warps == wanted.warps
    return MachineCode(gpu, compiled)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in {text[:200]}"
    return int(match[1])


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
