"""Every Triton kernel that is launched, in every configuration, as machine code of four GPUs.

Compiled ahead of time: spilled registers, more shared memory than there is, memory that nobody
allocates, and products without tensor cores would cost most of the speed, or the launch, and show
in no result.
"""

import itertools
import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
import torch
from torch import Tensor

from d2lops import functional as F
from d2lops.ops.fma_chain import fma_chain
from tests.accuracy import outputs_and_gradients
from tests.device import BACKEND, INTERPRETED, cpu_only
from tests.every_operator import every_operator

Case = tuple[str, str, str]  # GPU, function, dtype

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
    fma_chain(meta(64, dtype=dtype), 8)


def products(dtype: torch.dtype) -> None:
    """Large, with odd sizes, of few rows, of few columns, of fewer, deep."""
    for rows, inputs, outputs in (
        (2048, 1024, 1024),
        (2047, 1001, 1003),
        (16, 4096, 4096),
        (65536, 512, 24),
        (65536, 512, 10),
    ):
        sizes = ((rows, inputs), (outputs, inputs), (outputs,))
        tensors = [meta(*size, dtype=dtype) for size in sizes]
        outputs_and_gradients(F.linear_relu, tensors, meta(rows, outputs, dtype=dtype))


def convolutions(dtype: torch.dtype) -> None:
    """As in ResNet and AlexNet: 3 × 3, with odd sizes, with a stride, 1 × 1, the first layer, in
    groups."""
    for channels_last in (True, False):
        for channels, outputs, kernel, stride, groups in (
            (128, 128, 3, 1, 1),
            (66, 131, 3, 1, 1),
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
            lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
            lambda x: F.avg_pool2d(x, 2),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            F.dropout,
            lambda x: F.dropout(x[..., 1:]),  # rows with gaps between them
        ):
            y = function(x)
            outputs_and_gradients(function, [x], y)
            twice(function, x, y)


def twice(function: Callable, x: Tensor, g: Tensor) -> None:
    """The second derivative."""
    x, g = x.clone().requires_grad_(), g.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x, g, create_graph=True)
    torch.autograd.grad(gradient, g, gradient)


def beyond_32_bits(dtype: torch.dtype) -> None:
    """Pooling counts with 64 bits where 32 might not do."""
    for channels_last in (False, True):
        x = meta(1, 8, 2**15, 2**14, dtype=dtype, channels_last=channels_last)
        for function in (
            lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
            lambda x: F.max_pool2d(x, 6),
            lambda x: F.avg_pool2d(x, 3, 2, 1),
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: F.adaptive_max_pool2d(x, (3, 2)),
        ):
            y = function(x)
            outputs_and_gradients(function, [x], y)
            twice(function, x, y)


FUNCTIONS = {
    function.__name__: function
    for function in (small, images, beyond_32_bits, products, convolutions)
}
GPUS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Every kernel in every configuration, in bfloat16; float16 is bfloat16's, but for an instruction's
# name. The other dtypes where they differ: in products, and where numbers have 64 bits.
CASES = [
    *itertools.product(GPUS, FUNCTIONS, ("bfloat16",)),
    *itertools.product(GPUS, ("small", "products", "convolutions"), ("TF32",)),
    *itertools.product(GPUS, ("products", "convolutions"), ("float32",)),
    *itertools.product(("sm_90", "gfx942"), FUNCTIONS, ("float64",)),
    ("sm_90", "products", "float16"),
]
# Where a kernel's strides and alignment are compiled in whichever way, not once for all.
IN_EVERY_LAYOUT = ("sm_90", "bfloat16")
# Bytes of the stack. Where it lets one more block run, ptxas keeps a few numbers there, outside of
# loops.
FEW = 16
MORE = {
    # adjoint_of_windows, channels side by side: around divisions of 64 bits, which are calls.
    ("sm_90", "beyond_32_bits", "bfloat16"): 88,
    # corr2d_product and corr2d_weight_grad_product, without tensor cores: on sm_80 addresses, which
    # each step reads again.
    ("sm_80", "convolutions", "float32"): 48,
    ("sm_90", "convolutions", "float32"): 24,
    ("sm_100", "convolutions", "float32"): 24,
}


def problems(gpu: str, function: str, dtype: str) -> list[str]:
    from tests import ahead_of_time

    tf32 = dtype == "TF32"
    tensor_cores = tf32 or dtype in ("bfloat16", "float16")
    numbers = getattr(torch, "float32" if tf32 else dtype)
    target = ahead_of_time.GPUS[gpu]
    launches = ahead_of_time.launches(target, FUNCTIONS[function], numbers, tf32=tf32)
    if (gpu, dtype) != IN_EVERY_LAYOUT:
        launches = {launch.configuration: launch for launch in reversed(launches)}.values()
    found = []
    for launch in launches:
        if tf32 and not launch.multiplies:
            continue  # and is float32's
        code = ahead_of_time.machine_code(target, launch)
        if code.stack > MORE.get((gpu, function, dtype), FEW):
            found.append(f"{code.stack} bytes of stack: {launch}")
        if code.shared_memory > target.device.shared_memory:
            found.append(f"{code.shared_memory} bytes of shared memory: {launch}")
        if code.global_memory and not launch.with_allocator:
            found.append(f"no allocator: {launch}")
        if tensor_cores and launch.multiplies and code.tensor_core_instructions == 0:
            found.append(f"no tensor cores: {launch}")
    return found


def left_out() -> set[str]:
    """Kernels that no function launches."""
    from tests import ahead_of_time

    compiled = {
        launch.kernel
        for function in FUNCTIONS.values()
        for launch in ahead_of_time.launches(ahead_of_time.GPUS["sm_90"], function, torch.bfloat16)
    }
    return {kernel.__name__ for kernel in ahead_of_time.kernels() - compiled}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def found(pool: ProcessPoolExecutor) -> dict[Case, Future]:
    """All at the same time, on every core: the compiler takes a third of a second for a kernel."""
    return {case: pool.submit(problems, *case) for case in CASES}


def test_no_kernel_is_left_out(pool: ProcessPoolExecutor) -> None:
    assert pool.submit(left_out).result() == set()


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_machine_code(found: dict[Case, Future], case: Case) -> None:
    assert found[case].result() == []


@pytest.mark.parametrize("dtype, unit", (("float32", "F"), ("float64", "D")))
def test_yardstick_multiplies_and_adds_at_once(dtype: str, unit: str) -> None:
    """In one instruction each, of which 64 follow on one another: eight chains, eight rounds."""
    from tests.ahead_of_time import GPUS, launches, machine_code

    hopper = GPUS["sm_90"]
    (launch,) = launches(hopper, fma_chain, meta(2**20, dtype=getattr(torch, dtype)), 1000)
    code = machine_code(hopper, launch)
    assert code.stack == 0
    assert not re.search(rf"\b{unit}(MUL|ADD)\b", code.text)
    assert any(loop.count(f"{unit}FMA") == 64 for loop in re.split(r"\bBRA\b", code.text))
