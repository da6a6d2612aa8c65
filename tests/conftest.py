"""Fixtures of more than one file; on a GPU, what makes torch a yardstick there."""

from collections.abc import Iterator

import pytest
import torch

from tests.device import DEVICE, INTERPRETED
from tests.threads import threads

# In full precision, and by the same algorithms in every run.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
torch.backends.cudnn.allow_tf32 = False
torch.backends.cudnn.deterministic = True

if INTERPRETED:
    from tests import interpreter

    interpreter.make_fast()

if DEVICE.type != "cpu":  # before test files are imported: they make tensors
    torch.set_default_device(DEVICE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is small is not worth waking a second one for; tests of determinism tell of others."""
    with threads(1):
        yield


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Networks and numbers are made in it: however sums are taken, only mistakes are seen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=DEVICE.type == "cuda")
def share_memory() -> Iterator[None]:
    """Several processes test at once: none keeps gigabytes that it no longer needs."""
    yield
    if torch.cuda.memory_reserved() > 2**30:
        torch.cuda.empty_cache()
