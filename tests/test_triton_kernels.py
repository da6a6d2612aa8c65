"""The Triton kernels, run on the CPU in Triton's interpreter: values, gradients, nonsense.

The operators' tests run once more, with Triton as the backend, in a few processes.

Left out is what means nothing here: sizes beyond 2**31 or all memory, and numbers of threads. And
since a launch takes tens of milliseconds: of tests that try every case in every dtype, in every
layout, for either layer, some combinations. Tests of hundreds of sizes or a million elements take
fewer (`INTERPRETED`).
"""

import importlib.util
import subprocess

import pytest

from tests.device import BACKEND, cpu_only
from tests.isolated import assert_passed, start_pytest

MEANINGLESS = "the_31 or enormous or number_of_threads"
# Tests of all combinations, and which of these are kept.
KEPT = {
    "corr2d": {
        "every_layout": "bfloat16-conv_relu2d",
        "every_size": "bfloat16-conv_relu2d and not transformed",
        "every_pair": "stride or groups or same",
        "as_functions": "bfloat16",
        "expanded_gradients": "stride or groups or same",
        "masking_while": "torch.float16-channels_last",
        "reaches_what": "float32 or bfloat16-nan",
        "masks_is_zero": "float32-inf",
        "batch_plays": "torch.float16",
        "what_was": "torch.float16",
        "first_and_second": "plain or stride or groups or depthwise",
    },
    "pool2d": {"nan_infinity": "dtype2 or (dtype0 and sliced)"},
    "linear_relu": {"masking_while": "torch.float16", "what_was": "torch.float16"},
    "dropout": {},
    "fma_chain": {},
    "functorch": {},
}
RUNS = {  # a file, and what of it
    "corr2d, values": ("corr2d", "TestValues"),
    "corr2d, all else": ("corr2d", "not TestValues"),
    "pool2d": ("pool2d", "test"),
    "linear_relu": ("linear_relu", "test"),
    "dropout": ("dropout", "test"),
    "fma_chain": ("fma_chain", "test"),
    "functorch": (
        "functorch",
        "of_batches_of or of_no_calls or tf32 or channels_last or TestDropout",
    ),
}

pytestmark = [
    cpu_only,
    pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no Triton"),
    pytest.mark.skipif(BACKEND != "auto", reason="a backend is chosen already"),
]


def start(name: str, part: str) -> subprocess.Popen:
    partly = [f"({test} and not ({kept}))" for test, kept in KEPT[name].items()]
    left_out = " or ".join([MEANINGLESS, *partly])
    return start_pytest(
        *("-k", f"({part}) and not ({left_out})", f"tests/test_{name}.py"),
        TRITON_INTERPRET="1",
        D2LOPS_BACKEND="triton",
        OMP_NUM_THREADS="1",
    )


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.Popen]:
    """All at the same time: each keeps one core busy."""
    return {run: start(*RUNS[run]) for run in RUNS}


@pytest.mark.parametrize("run", RUNS)
def test_operators(runs: dict[str, subprocess.Popen], run: str) -> None:
    assert_passed(runs[run])
