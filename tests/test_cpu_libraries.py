"""The kernels of the CPU libraries that are not loaded here: their values and gradients.

The other test files run in the library that d2lops chose. What depends on the instruction set runs
once more in each of the others, in a process of its own.
"""

import os
import subprocess

import pytest

from d2lops import backends
from tests.device import cpu_only
from tests.isolated import assert_passed, start_pytest

pytestmark = cpu_only
OTHERS = [
    name
    for name in backends.CPU_LIBRARIES
    if name != backends.cpu_library[0] and not backends.missing_features(name)
]
# Where the instruction set plays a part. Errors, the compiler and the book do not see it.
FILES = [f"tests/test_{name}.py" for name in ("corr2d", "dropout", "linear_relu", "pool2d")]
CHOSEN = (
    "TestValues or TestSpecialValues or TestGradients or TestMask "
    "or is_torchs or accurate or asymmetric or windows or nan or orders"
)
LEFT_OUT = "31"  # sizes beyond 2**31 cost minutes in the generic library


def start(library: str) -> subprocess.Popen:
    chosen = f"({CHOSEN}) and not {LEFT_OUT}"
    return start_pytest("-k", chosen, *FILES, D2LOPS_CPU=library, OMP_WAIT_POLICY="passive")


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """All at the same time: each keeps little more than one core busy."""
    return {library: start(library) for library in OTHERS}


@pytest.mark.skipif(bool(os.environ.get("D2LOPS_CPU")), reason="a library is forced already")
@pytest.mark.parametrize("library", OTHERS)
def test_values_and_gradients(runs: dict[str, subprocess.Popen], library: str) -> None:
    assert_passed(runs[library])
