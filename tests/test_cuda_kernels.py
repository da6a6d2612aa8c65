"""The CUDA kernels, run on the CPU as a GPU runs them (tests/cuda_on_cpu): values and gradients.

The operators' tests run once more, each time in a process of its own, whose CPU kernels are the
CUDA library's: for each order of threads, for GPUs that get other kernels, and with
AddressSanitizer, which takes the place of the tests at the edge of a page.

Left out, since the emulator is slow: sizes beyond 2**31, the 2178 tiles, and what tries hundreds of
sizes or every case several times. Arguments and the compiler see no kernel, and a GPU knows no
number of threads. `every_width` and "phases down" add up hundreds of float32 numbers in one sum,
as a GPU does, and want the accuracy of the several sums that torch's CPU kernels make of them.
"""

import os
import shutil
import subprocess
from typing import NamedTuple

import pytest

from tests.cuda_on_cpu.build import COMPILER, build
from tests.device import cpu_only
from tests.isolated import assert_passed, start_pytest

NAMES = ("corr2d", "dropout", "linear_relu", "pool2d", "fma_chain")
FILES = [f"tests/test_{name}.py" for name in NAMES]
ALL = (
    "TestValues or TestSpecialValues or TestGradients or TestMask or other_rows or batch_plays "
    "or is_torchs or accurate or asymmetric or windows or nan or orders or average or planes "
    "or nonsense or nowhere or fma_chain"
)
# What threads do to one another does not depend on the values.
THREADS = "every_size or is_torchs or windows or planes or bias_gradient or in_full or every_p"
# Every kernel, at sizes that end inside whatever they cut.
EDGES = (
    "(every_size and (float32 or bfloat16)) or any_gradient or is_torchs or accurate or asymmetric "
    "or windows or views or nowhere"
)
LEFT_OUT = "31 or every_width or number_of_threads or library_plays or 2178 or (phases and float32)"


class Run(NamedTuple):
    chosen: str
    order: str
    capability: int
    address_sanitizer: bool = False


RUNS = {
    "everything, in order": Run(ALL, "forward", 80),
    "in reverse, on Hopper": Run(THREADS, "reverse", 90),
    "in random order": Run(THREADS, "random", 80),
    "addresses": Run(EDGES, "forward", 80, address_sanitizer=True),
    "addresses, on Hopper": Run(f"({EDGES}) and bfloat16", "forward", 90, address_sanitizer=True),
}

pytestmark = [
    cpu_only,
    pytest.mark.skipif(not shutil.which(COMPILER), reason="there is no C++ compiler"),
    pytest.mark.skipif(bool(os.environ.get("D2LOPS_CPU")), reason="a library is forced already"),
]


def address_sanitizer() -> str | None:
    """What has to be loaded before Python, which is not instrumented."""
    command = [COMPILER, "-print-file-name=libasan.so"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


def start(run: Run) -> subprocess.Popen:
    environment = {
        "D2LOPS_CPU": str(build("address_sanitizer" if run.address_sanitizer else "plain")),
        "CUDA_ON_CPU_ORDER": run.order,
        "CUDA_ON_CPU_CAPABILITY": str(run.capability),
        "OMP_NUM_THREADS": "1",
    }
    if run.address_sanitizer:
        environment |= {"LD_PRELOAD": address_sanitizer(), "ASAN_OPTIONS": "detect_leaks=0"}
    chosen = f"({run.chosen}) and not ({LEFT_OUT})"
    # What the emulator or a sanitizer has to say, it says before it ends the process.
    return start_pytest("--capture=sys", "-k", chosen, *FILES, **environment)


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """All at the same time: each keeps one core busy."""
    possible = [
        name for name, run in RUNS.items() if not run.address_sanitizer or address_sanitizer()
    ]
    return {name: start(RUNS[name]) for name in possible}


@pytest.mark.parametrize("name", RUNS)
def test_operators(runs: dict[str, subprocess.Popen], name: str) -> None:
    if name not in runs:
        pytest.skip("there is no address sanitizer")
    assert_passed(runs[name])
