"""Fixtures of more than one file."""

from collections.abc import Iterator

import pytest

from tests.threads import threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is small is not worth waking a second one for; tests of determinism tell of others."""
    with threads(1):
        yield
