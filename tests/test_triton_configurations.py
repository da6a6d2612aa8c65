"""Every configuration of a Triton kernel, on a GPU: the same bits, and as accurate as torch.

The operators' tests see one of each kernel, and mostly of its small ones. Which one a user's GPU
finds the fastest, nobody knows beforehand.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import d2lops
from d2lops import functional as F
from tests.accuracy import assert_as_accurate_as_torch, outputs_and_gradients
from tests.device import DEVICE, normal

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")

MOST = 4  # configurations of a kernel
CONVOLUTIONS = {
    "3 x 3": ((8, 128, 29, 27), (192, 128, 3, 3), {"padding": 1}),
    "stride": ((16, 128, 28, 30), (256, 128, 3, 3), {"stride": 2, "padding": 1}),
    "1 x 1": ((16, 256, 28, 28), (136, 256, 1, 1), {}),
    "1 x 1, stride": ((32, 256, 29, 28), (512, 256, 1, 1), {"stride": 2}),
    "groups": ((16, 256, 28, 28), (256, 64, 3, 3), {"groups": 4, "dilation": 2, "padding": 2}),
    "few channels": ((32, 3, 65, 63), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((32, 128, 56, 56), (128, 1, 3, 3), {"groups": 128, "padding": 1}),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes all launches take their configuration of that number, or their last one."""
    number = 0

    def launch(run: Callable, configs: Sequence, *_: Any) -> None:
        run(configs[min(number, len(configs) - 1)])

    def chosen(of: int) -> None:
        nonlocal number
        number = of

    with d2lops.backend("triton"):
        for name, module in sys.modules.items():
            if "d2lops.triton_kernels." in name and hasattr(module, "launch_fastest"):
                monkeypatch.setattr(module, "launch_fastest", launch)
        yield chosen


def assert_all_agree(
    choose: Callable, ours: Callable, theirs: Callable, *inputs: torch.Tensor
) -> None:
    choose(0)
    assert_as_accurate_as_torch(ours, theirs, *inputs)
    g = torch.ones_like(ours(*inputs))
    expected = outputs_and_gradients(ours, inputs, g)
    for number in range(1, MOST):
        choose(number)
        for our, their in zip(outputs_and_gradients(ours, inputs, g), expected, strict=True):
            assert torch.equal(our, their), f"configuration {number}"


@pytest.mark.parametrize("channels_last", (False, True), ids=("NCHW", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d(choose: Callable, case: str, dtype: torch.dtype, channels_last: bool) -> None:
    size, kernel, arguments = CONVOLUTIONS[case]
    x, weight, bias = normal(*size), normal(*kernel, seed=1), normal(kernel[0], seed=2)
    if channels_last:
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    assert_all_agree(
        choose,
        lambda *tensors: F.conv2d(*tensors, **arguments),
        lambda *tensors: torch.nn.functional.conv2d(*tensors, **arguments),
        *(t.to(dtype) for t in (x, weight, bias)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", ((2000, 1024, 1000), (24, 4096, 2048), (40000, 264, 24)))
def test_linear(choose: Callable, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inputs, outputs = sizes
    x, weight, bias = normal(rows, inputs), normal(outputs, inputs, seed=1), normal(outputs, seed=2)
    assert_all_agree(
        choose, F.linear, torch.nn.functional.linear, *(t.to(dtype) for t in (x, weight, bias))
    )


@pytest.mark.parametrize("channels_last", (False, True), ids=("NCHW", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images(choose: Callable, dtype: torch.dtype, channels_last: bool) -> None:
    """Pooling and dropout."""
    x = normal(16, 72, 57, 56).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    torch_functional = torch.nn.functional
    seed = torch.tensor(3)
    for ours, theirs in (
        (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: torch_functional.max_pool2d(x, 3, 2, 1)),
        (lambda x: F.avg_pool2d(x, 2), lambda x: torch_functional.avg_pool2d(x, 2)),
        (
            lambda x: F.adaptive_avg_pool2d(x, 1),
            lambda x: torch_functional.adaptive_avg_pool2d(x, 1),
        ),
        (lambda x: F.dropout(x, 0.3, seed=seed), lambda x: dropped(x, 0.3, seed)),
    ):
        assert_all_agree(choose, ours, theirs, x)


def dropped(x: torch.Tensor, p: float, seed: torch.Tensor) -> torch.Tensor:
    """Dropout by the mask that the C++ kernels draw, in whatever dtype x is."""
    ones = torch.ones(x.shape, device="cpu")
    keep = torch.ops.d2lops.dropout(ones, seed.cpu(), p) != 0
    return torch.where(keep.to(x.device), x / (1 - p), 0)
