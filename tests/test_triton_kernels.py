"""The Triton kernels, run on the CPU in Triton's interpreter: values, gradients, nonsense.

The operators' tests run once more, with Triton as the backend, each file in a process of its own.

Left out, since the interpreter takes tens of milliseconds for what a GPU does in microseconds:
sizes beyond 2**31, masks of a million elements (their bits are those of the other backends, element
by element, which is tested), what tries hundreds of sizes, and most combinations of dtype, layout
and layer, of which one is kept for each layer. A GPU's kernels know no number of threads.
"""

import importlib.util
import subprocess

import pytest

from tests.device import BACKEND, cpu_only
from tests.isolated import assert_passed, start_pytest

LEFT_OUT = {
    "corr2d": (
        "31 or huge or enormous or every_width or number_of_threads or anything "
        "or beyond_a_tensor or what_was "
        "or every_size or every_pair or (every_layout and not bfloat16-conv_relu2d) "
        "or as_functions or batch_plays or masks_is_zero or masking_while or expanded_gradients "
        "or (reaches_what and not float32) or (first_and_second and not (depthwise or plain))"
    ),
    "dropout": "31 or number_of_threads or library_plays or TestStatistics",
    "linear_relu": (
        "31 or every_layout or masking_while or number_of_threads or what_was or beyond_a_tensor "
        "or without_end"
    ),
    "pool2d": (
        "31 or more_than_255 or more_than_two or same_bits or several_bands or fuzz "
        "or (nan_infinity and not (size0 and dtype0 and (contiguous or channels_last))) "
        "or (opcheck and not channels_last) or ((max_is_torchs or average_is_as) and not "
        "((dtype0 and contiguous) or (dtype2 and channels_last)))"
    ),
}

pytestmark = [
    cpu_only,
    pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no Triton"),
    pytest.mark.skipif(BACKEND != "auto", reason="a backend is chosen already"),
]


def start(name: str) -> subprocess.Popen:
    return start_pytest(
        *("-k", f"not ({LEFT_OUT[name]})", f"tests/test_{name}.py"),
        TRITON_INTERPRET="1",
        D2LOPS_BACKEND="triton",
        OMP_NUM_THREADS="1",
    )


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """All at the same time: each keeps one core busy."""
    return {name: start(name) for name in LEFT_OUT}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_operators(runs: dict[str, subprocess.Popen], name: str) -> None:
    assert_passed(runs[name])
