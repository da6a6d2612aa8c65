"""Fused linear and ReLU: limited by arithmetic, in small batches by reading the weight."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Work, numel, of_family, own, short

LARGE = 100e6  # flops


def cases() -> list[Case]:
    return [
        _case(1, 2304, 84, tiny=True, quick=True),
        _case(1024, 1024, 1024, quick=True),
        _case(3000, 768, 2304),
        _case(64, 4096, 4096, quick=True),
        _case(256, 6400, 4096),  # AlexNet
        _case(16, 6400, 4096),
        _case(2048, 2048, 2048),
        _case(1000, 777, 333),
        _case(333, 1111, 777),
        _case(4096, 64, 256),
        _case(8, 4096, 4096),
        _case(1024, 1024, 1024, relu=False),
        # Less than 100 MFLOP.
        _case(128, 120, 84, quick=True),
        _case(256, 784, 256),  # the book's perceptron
        _case(256, 400, 120),
        _case(1, 4096, 4096),
        _case(17, 31, 13),
        _case(100, 300, 7),
        _case(128, 84, 10, relu=False),
        # Other dtypes.
        _case(512, 512, 512, dtype=torch.float64),
        _case(64, 1024, 1024, dtype=torch.float64),
        _case(333, 777, 111, dtype=torch.float64),
        *(
            _case(m, k, n, dtype=dtype)
            for dtype in (torch.bfloat16, torch.float16)
            for m, k, n in ((512, 1024, 1024), (64, 4096, 4096), (333, 777, 111))
        ),
    ]


def cuda_cases() -> list[Case]:
    bfloat16 = torch.bfloat16
    return [
        _case(1, 2304, 84, tiny=True, quick=True),
        *of_family(
            "linear_relu bfloat16, float16",
            _case(4096, 4096, 4096, dtype=bfloat16, quick=True),
            _case(8192, 8192, 8192, dtype=bfloat16),
            _case(4096, 4096, 4096, dtype=torch.float16),
            _case(4096, 4096, 4096, dtype=bfloat16, relu=False),
            _case(1000, 1111, 777, dtype=bfloat16),
        ),
        *of_family(
            "linear_relu bfloat16, small K or batch",
            _case(65_536, 64, 256, dtype=bfloat16, quick=True),
            _case(16_384, 128, 1024, dtype=bfloat16),
            _case(256, 6400, 4096, dtype=bfloat16),  # AlexNet
            _case(16, 4096, 4096, dtype=bfloat16),
        ),
        *of_family(
            "linear_relu float32",
            _case(4096, 4096, 4096, quick=True),
            _case(256, 784, 256),  # the book's perceptron
        ),
        *of_family("linear_relu TF32", _case(4096, 4096, 4096, tf32=True)),
    ]


def _case(
    m: int,
    k: int,
    n: int,
    relu: bool = True,
    dtype: torch.dtype = torch.float32,
    tiny: bool = False,
    **rest: bool,
) -> Case:
    shapes = ((m, k), (n, k), (n,))
    product = 2 * m * k * n
    size = f", {'≥' if product >= LARGE else '<'} 100 MFLOP" * (dtype == torch.float32)
    return Case(
        operator="linear_relu",
        family="tiny" if tiny else f"linear_relu {short(dtype)}{size}",
        name=f"{m}×{k} → {n}" + " without relu" * (not relu),
        shapes=shapes,
        ours=own("linear_relu" if relu else "linear"),
        theirs=linear_relu if relu else F.linear,
        forward=Work(numel(*shapes, (m, n)) * dtype.itemsize, product),
        # Reads x, the weight and g, and y for its sign; writes the three gradients.
        backward=Work(
            numel(*shapes, *shapes[:2], *[(m, n)] * (1 + relu)) * dtype.itemsize, 2 * product
        ),
        dtype=dtype,
        exact=masked_by_relu(F.linear) if relu else None,
        **rest,
    )


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.linear(x, weight, bias))


def masked_by_relu(linear: Callable[..., Tensor]) -> Callable[[Tensor], Callable[..., Tensor]]:
    """ReLU after `linear`, whose gradient passes where the *output* is positive.

    Near zero the sign is a matter of rounding. Both signs are right, but the gradient has to agree
    with the output.
    """

    def exact(output: Tensor) -> Callable[..., Tensor]:
        def relu(*inputs: Tensor) -> Tensor:
            z = linear(*inputs)
            return torch.where(output > 0, z, z.detach().relu())

        return relu

    return exact
