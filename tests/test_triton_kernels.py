"""The Triton kernels, run on the CPU in Triton's interpreter: values, gradients, nonsense.

The operators' tests run once more, with Triton as the backend, each file in a process of its own.

Left out, since the interpreter is slow: sizes beyond 2**31, masks of a million elements (their bits
are those of the other backends, element by element, which is tested), and what tries hundreds of
sizes. A GPU's kernels know no number of threads.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.device import BACKEND, cpu_only
from tests.isolated import ROOT

LEFT_OUT = {
    "corr2d": "31 or every_width or number_of_threads",
    "dropout": "31 or number_of_threads or library_plays or TestStatistics",
    "linear_relu": "31 or every_width or number_of_threads",
    "pool2d": "31 or every_width or number_of_threads",
}

pytestmark = [
    cpu_only,
    pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no Triton"),
    pytest.mark.skipif(BACKEND != "auto", reason="a backend is chosen already"),
]


def start(name: str) -> subprocess.Popen:
    environment = {"TRITON_INTERPRET": "1", "D2LOPS_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    options = ["-x", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT[name]})"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, f"tests/test_{name}.py"],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """All at the same time: each keeps one core busy."""
    return {name: start(name) for name in LEFT_OUT}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_operators(runs: dict[str, subprocess.Popen], name: str) -> None:
    output, _ = runs[name].communicate()
    assert runs[name].returncode == 0, output[-3000:]
    assert " passed" in output
