"""The yardstick of the benchmark suite does the multiply-adds that it is said to do."""

import pytest
import torch

from d2lops.backends import kernels
from d2lops.ops.fma_chain import fma_chain
from tests.accuracy import DTYPES
from tests.device import raw


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0, 1, 17, 191, 192, 193, 5000])
def test_every_element_is_iterated_as_often_as_asked(size: int, dtype: torch.dtype) -> None:
    x = torch.arange(size).remainder(17).sub(8).to(dtype)
    for rounds in (0, 1, 10):  # few enough for float32 to hold every value exactly
        exact = 1 + (x.double() - 1) / 2**rounds
        assert torch.equal(fma_chain(x, rounds), exact.to(dtype))


def test_many_rounds_tend_to_one() -> None:
    x = torch.tensor([-1e30, 0.0, 3.0, 1e30])
    torch.testing.assert_close(fma_chain(x, 1000), torch.ones(4))


def test_compiler_knows_the_shape() -> None:
    torch.library.opcheck(raw.fma_chain.default, (torch.randn(3, 5), 2))
    assert kernels(torch.empty(2, 3, device="meta")).fma_chain(
        torch.empty(2, 3, device="meta"), 1
    ).shape == (2, 3)


def test_bad_input() -> None:
    with pytest.raises(RuntimeError, match="contiguous"):
        fma_chain(torch.ones(4, 4).t()[1:], 1)
    with pytest.raises(RuntimeError, match="rounds must be at least 0, but got -1"):
        fma_chain(torch.ones(4), -1)
    with pytest.raises(NotImplementedError, match="int64"):
        fma_chain(torch.ones(4, dtype=torch.int64), 1)


@pytest.mark.parametrize(
    "x, rounds",
    [
        (torch.ones(4, 4).t()[1:], 1),
        (torch.ones(4), -1),
        (torch.ones(4, dtype=torch.int64), 1),
    ],
    ids=["not contiguous", "negative rounds", "integers"],
)
def test_raw_operator_refuses_nonsense(x: torch.Tensor, rounds: int) -> None:
    with pytest.raises(RuntimeError):
        raw.fma_chain(x, rounds)
