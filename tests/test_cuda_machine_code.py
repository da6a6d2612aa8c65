"""What nvcc makes of the CUDA kernels: what is wrong here is silent on a GPU, and slow.

`python -m tests.cuda_resources` prints what every kernel takes.
"""

import os
import re
from collections import ChainMap, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import cuda_resources
from tests.cuda_resources import Kernel, kernels, machine_code, straight_stretches

pytestmark = [
    pytest.mark.skipif(
        not cuda_resources.LIBRARY.exists(), reason="there is no CUDA library: was there an nvcc?"
    ),
    pytest.mark.skipif(
        not cuda_resources.find_cuobjdump(), reason="there is no cuobjdump with an nvdisasm"
    ),
]

# Local memory that a thread may have: a pair of registers that make room, once, for the division of
# 64-bit numbers, which is a function. Sums that do not stay in registers take much more.
STACK = 16
# Which instructions a kernel lives on, and so must have. One instance stands for those that differ
# in nothing that matters here: to disassemble one takes half a second.
NEEDED = {
    r"dropout_dense<\w+, [248]>": ("LDG 128", "STG 128"),
    r"sum_parts<float, 4>": ("LDG 128",),
    r"pool_by_thread<\d, \d, \(Op\)[02], float, unsigned char( const)?, true, Sliding": (
        "LDG 128",
        "STG 128",
    ),
    r"gemm_simt_kernel<float,": ("LDS 128", "STS 128", "STG 128", "FFMA"),
    r"gemm_simt_kernel<double,": ("LDS 128", "DFMA"),
    r"gemm_mma_kernel<bfloat16, 128,": ("LDGSTS 128", "LDSM .4", "HMMA 16816.F32.BF16", "STG 128"),
    r"gemm_mma_kernel<float16, 128, true, true, false>": (
        "LDGSTS 128",
        "LDSM .4",
        "HMMA 16816.F32",
        "STG 128",
    ),
    r"gemm_wgmma_kernel<bfloat16,": (
        "LDGSTS 128",
        "HGMMA F32",
        "STG 128",
        "USETMAXREG DEALLOC",  # or ptxas has ignored that warpgroups trade registers
        "USETMAXREG TRY_ALLOC",
    ),
}
# What a kernel must not have: narrower accesses where there are no edges or tails to need them.
NARROW_LOADS = r"LDG\.E(\.U?16|\.64)?"
FORBIDDEN = {
    r"sum_parts<float, 4>": NARROW_LOADS,
    r"pool_by_thread<\d, \d, \(Op\)[02], float, unsigned char, true, Sliding": NARROW_LOADS,
    r"gemm_mma_kernel<bfloat16, 128,": r"LDGSTS\.E(\.64)?|HMMA\.1688.*",
    r"gemm_wgmma_kernel<bfloat16,": r"LDGSTS\.E(\.64)?|HMMA.*",
}
HOPPER = "gemm_wgmma_kernel"  # is empty on other architectures


@pytest.fixture(scope="module")
def all_kernels() -> list[Kernel]:
    return kernels()


@pytest.fixture(scope="module")
def opcodes(all_kernels: list[Kernel]) -> dict[Kernel, list[str]]:
    """Of the kernels that the tables name."""
    patterns = re.compile("|".join({*NEEDED, *FORBIDDEN}))
    chosen = defaultdict(list)
    for kernel in all_kernels:
        empty = kernel.name.startswith(HOPPER) and kernel.architecture != "sm_90a"
        if patterns.match(kernel.name) and not empty:
            chosen[kernel.architecture].append(kernel)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(ChainMap(*pool.map(machine_code, chosen.values())))


def named(opcodes: dict[Kernel, list[str]], pattern: str) -> dict[Kernel, list[str]]:
    found = {kernel: code for kernel, code in opcodes.items() if re.match(pattern, kernel.name)}
    if not found and pattern.startswith(HOPPER):
        pytest.skip("not built for sm_90a")
    assert found, "there is no such kernel"
    return found


def has(code: list[str], wanted: str) -> bool:
    kind, _, detail = wanted.partition(" ")
    return any(opcode.split(".")[0] == kind and detail in opcode for opcode in code)


def test_sums_stay_in_registers(all_kernels: list[Kernel]) -> None:
    assert all_kernels
    spilled = {(k.architecture, k.name): k.stack for k in all_kernels if k.stack > STACK}
    assert not spilled


@pytest.mark.parametrize("pattern", NEEDED)
def test_instructions(opcodes: dict[Kernel, list[str]], pattern: str) -> None:
    for kernel, code in named(opcodes, pattern).items():
        missing = [wanted for wanted in NEEDED[pattern] if not has(code, wanted)]
        assert not missing, f"{kernel.architecture} {kernel.name}"


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_narrow_accesses(opcodes: dict[Kernel, list[str]], pattern: str) -> None:
    forbidden = re.compile(FORBIDDEN[pattern])
    for kernel, code in named(opcodes, pattern).items():
        found = {opcode for opcode in code if forbidden.fullmatch(opcode)}
        assert not found, f"{kernel.architecture} {kernel.name}"


def test_exact_products_do_little_but_multiply_and_add(opcodes: dict[Kernel, list[str]]) -> None:
    """In the unrolled part of the main loop: what else is there takes the adders' time."""
    for kernel, code in named(opcodes, r"gemm_simt_kernel<float, 128>").items():
        stretch = max(straight_stretches(code), key=lambda part: part.count("FFMA"))
        share = stretch.count("FFMA") / len(stretch)
        assert share > 0.85, f"{kernel.architecture} {kernel.name}: {share:.0%}"


def test_products_of_hopper_are_not_serialised(opcodes: dict[Kernel, list[str]]) -> None:
    """If ptxas cannot keep them apart, it waits after each, and says so in a warning only."""
    for kernel, code in named(opcodes, r"gemm_wgmma_kernel<bfloat16,").items():
        products = sum(opcode.startswith("HGMMA") for opcode in code)
        waits = sum(opcode.startswith("WARPGROUP.DEPBAR") for opcode in code)
        assert products >= 2 * waits, f"{kernel.name}: {products} products, {waits} waits"
