"""keep_freed_memory() does to a process what it says, and to this one nothing."""

import platform

import pytest

import d2lops
from d2lops import memory
from tests.device import cpu_only
from tests.isolated import run_python

pytestmark = cpu_only
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

# Counts the pages that the system hands out in a loop of torch's own operators, then of ours.
COUNT = """
import resource, statistics, threading, torch, d2lops
from d2lops import functional as F

def pages(operator):
    counts = []
    for _ in range(40):  # the first ten or so fill the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        y = operator(operator(x))
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return int(statistics.median(counts))

def count():
    print(pages(torch.neg), pages(lambda x: F.dropout(x, 0.5)))

{call}
x = torch.ones(9 * 2**20)  # 36 MiB: glibc raises its threshold to at most 32 by itself
{count}
"""
IN_MAIN, IN_THREAD = "count()", "thread = threading.Thread(target=count); thread.start()"


def pages(call: str, count: str) -> list[int]:
    result = run_python("-c", COUNT.format(call=call, count=count))
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@glibc
@pytest.mark.parametrize("count", [IN_MAIN, IN_THREAD], ids=["main", "thread"])
def test_freed_memory_is_used_again(count: str) -> None:
    without = pages("", count)
    kept = pages("d2lops.keep_freed_memory()", count)
    for few, many in zip(kept, without, strict=True):
        assert few < many / 100


@glibc
def test_example() -> None:
    """In a process of its own: it would hold for every test that follows."""
    source = "import doctest, d2lops.memory; assert doctest.testmod(d2lops.memory) == (0, 2)"
    result = run_python("-c", source)
    assert result.returncode == 0, result.stdout + result.stderr


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(OSError, match="needs glibc"):
        d2lops.keep_freed_memory()


@glibc
def test_refused_setting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SETTINGS", {"M_MXFAST": (1, 2**30)})  # beyond its range
    with pytest.raises(RuntimeError, match="refuses M_MXFAST = 1073741824"):
        d2lops.keep_freed_memory()
