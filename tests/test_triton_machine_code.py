"""Every Triton kernel that is launched, in every configuration, as machine code of four GPUs.

Compiled ahead of time: spilled registers, more shared memory than there is, and products without
tensor cores would cost most of the speed, or the launch, and show in no result.
"""

import itertools
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
import torch
from torch import Tensor

from d2lops import functional as F
from d2lops.ops.fma_chain import fma_chain
from tests.accuracy import outputs_and_gradients
from tests.device import BACKEND, INTERPRETED, cpu_only
from tests.every_operator import every_operator

pytest.importorskip("triton")
pytestmark = [
    cpu_only,
    pytest.mark.skipif(INTERPRETED or BACKEND != "auto", reason="needs a process of its own"),
]


def meta(*size: int, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device="meta", memory_format=memory_format)


def small(dtype: torch.dtype) -> None:
    """All operators and derivatives, where rows begin at multiples of 16 bytes, and where not."""
    for size in ((2, 3, 9, 17), (4, 32, 16, 32)):
        for channels_last in (False, True):
            every_operator(meta(*size, dtype=dtype, channels_last=channels_last))


def products(dtype: torch.dtype) -> None:
    """Large, of few rows, of few columns, deep."""
    for rows, inputs, outputs in ((2048, 1024, 1024), (16, 4096, 4096), (65536, 512, 24)):
        sizes = ((rows, inputs), (outputs, inputs), (outputs,))
        tensors = [meta(*size, dtype=dtype) for size in sizes]
        outputs_and_gradients(F.linear_relu, tensors, meta(rows, outputs, dtype=dtype))


def convolutions(dtype: torch.dtype) -> None:
    """As in ResNet and AlexNet: 3 × 3, with a stride, 1 × 1, the first layer, in groups."""
    for channels_last in (True, False):
        for channels, outputs, kernel, stride, groups in (
            (128, 128, 3, 1, 1),
            (128, 256, 3, 2, 1),
            (256, 64, 1, 1, 1),
            (3, 64, 7, 2, 1),
            (128, 128, 3, 1, 4),
            (96, 96, 3, 1, 96),
        ):
            x = meta(32, channels, 56, 56, dtype=dtype, channels_last=channels_last)
            weight = meta(
                *(outputs, channels // groups, kernel, kernel),
                dtype=dtype,
                channels_last=channels_last,
            )
            y = torch.nn.functional.conv2d(x, weight, None, stride, kernel // 2, 1, groups)
            outputs_and_gradients(
                lambda x, weight, bias, stride=stride, kernel=kernel, groups=groups: F.conv_relu2d(
                    x, weight, bias, stride, kernel // 2, 1, groups
                ),
                [x, weight, meta(outputs, dtype=dtype)],
                y,
            )


def images(dtype: torch.dtype) -> None:
    """Pooling and dropout, where there is enough to choose among configurations."""
    for channels_last in (False, True):
        x = meta(64, 64, 112, 112, dtype=dtype, channels_last=channels_last)
        for function in (
            lambda x: F.max_pool2d(x, 3, 2, 1),
            lambda x: F.avg_pool2d(x, 2),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            F.dropout,
        ):
            outputs_and_gradients(function, [x], function(x))


FUNCTIONS = {function.__name__: function for function in (small, images, products, convolutions)}
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
# The GPUs differ in how products are computed; what is left is the same code for each. float16 is
# bfloat16's, but for the instruction's name.
CASES = [
    *itertools.product(("sm_90",), FUNCTIONS, ("bfloat16",)),
    *itertools.product(("sm_80", "sm_100", "gfx942"), ("products",), ("bfloat16",)),
    *itertools.product(("sm_80", "gfx942"), ("convolutions",), ("bfloat16",)),
    *itertools.product(("sm_80", "sm_90", "gfx942"), ("products",), ("TF32",)),
    *itertools.product(("sm_80", "sm_90", "gfx942"), ("products",), ("float32",)),
    ("sm_90", "small", "float64"),
    ("sm_90", "products", "float16"),
]
# Bytes of the stack. Where it lets one more block run, ptxas keeps a few numbers there, outside of
# loops.
FEW = 32


def problems(gpu: str, function: str, dtype: str) -> list[str]:
    from tests.ahead_of_time import GPUS, launches, machine_code

    tf32 = dtype == "TF32"
    gpu, dtype = GPUS[gpu], DTYPES["float32" if tf32 else dtype]
    found = []
    for launch in launches(gpu, FUNCTIONS[function], dtype, tf32=tf32):
        code = machine_code(gpu, launch)
        on_tensor_cores = launch.multiplies and (dtype.itemsize == 2 or tf32)
        if code.spilled > FEW:
            found.append(f"{code.spilled} bytes spilled: {launch}")
        if code.shared_memory > gpu.device.shared_memory:
            found.append(f"{code.shared_memory} bytes of shared memory: {launch}")
        if on_tensor_cores and code.tensor_core_instructions == 0:
            found.append(f"no tensor cores: {launch}")
    return found


@pytest.fixture(scope="module")
def found() -> Iterator[dict[tuple[str, str, str], Future]]:
    """All at the same time, on every core: the compiler takes most of a second for each kernel."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield {case: pool.submit(problems, *case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_machine_code(
    found: dict[tuple[str, str, str], Future], case: tuple[str, str, str]
) -> None:
    assert found[case].result() == []


@pytest.mark.parametrize("dtype, unit", (("float32", "F"), ("float64", "D")))
def test_yardstick_multiplies_and_adds_at_once(dtype: str, unit: str) -> None:
    """In one instruction each, of which 64 follow on one another: eight chains, eight rounds."""
    from tests.ahead_of_time import GPUS, launches, machine_code

    hopper = GPUS["sm_90"]
    (launch,) = launches(hopper, fma_chain, meta(2**20, dtype=DTYPES[dtype]), 1000)
    code = machine_code(hopper, launch)
    assert code.spilled == 0
    assert not re.search(rf"\b{unit}(MUL|ADD)\b", code.text)
    assert any(loop.count(f"{unit}FMA") == 64 for loop in re.split(r"\bBRA\b", code.text))
