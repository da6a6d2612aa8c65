"""Every Triton kernel that is launched, in every configuration, as machine code of four GPUs.

Compiled ahead of time: spilled registers, more shared memory than there is, and products without
tensor cores would cost most of the speed, or the launch, and show in no result.
"""

import pytest
import torch
from torch import Tensor

from d2lops import functional as F
from tests.accuracy import DTYPES, outputs_and_gradients
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


CASES = {
    **{f"{f.__name__}, {d}": (f, d, False) for f in (small, images) for d in DTYPES},
    **{
        f"{f.__name__}, {d}{', TF32' * tf32}": (f, d, tf32)
        for f in (products, convolutions)
        for d, tf32 in [(d, False) for d in DTYPES] + [(torch.float32, True)]
    },
}


@pytest.mark.parametrize("gpu", ("sm_80", "sm_90", "sm_100", "gfx942"))
@pytest.mark.parametrize("case", CASES)
def test_machine_code(case: str, gpu: str) -> None:
    from tests.ahead_of_time import GPUS, compile_all, launches

    function, dtype, tf32 = CASES[case]
    wanted = launches(GPUS[gpu], function, dtype, tf32=tf32)
    assert wanted
    for launch, code in compile_all(GPUS[gpu], wanted).items():
        assert code.spilled == 0, launch
        assert code.shared_memory <= GPUS[gpu].device.shared_memory, launch
        if launch.multiplies and (dtype.itemsize == 2 or tf32):
            assert code.tensor_core_instructions > 0, launch
