"""Two processes of one job, started once and kept for many checks."""

import faulthandler
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed

COUNT = 2
SECONDS = 150  # for one check: a machine may be busy, but what takes longer hangs


class Ranks:
    """Processes that run the same function at once, which finds out its rank by itself."""

    def __init__(self, meeting_point: Path) -> None:
        # A pool for each rank: one pool for both would leave to chance who gets which task.
        self.pools = [
            ProcessPoolExecutor(1, get_context("spawn"), _join, (meeting_point, rank))
            for rank in range(COUNT)
        ]

    def run(self, check: Callable, *arguments: Any) -> None:
        """Raises what the check raises on a rank; a rank that hangs ends with its traceback."""
        results = [pool.submit(_within_time, check, *arguments) for pool in self.pools]
        wait(results)
        for result in results:
            result.result()

    def end(self) -> None:
        for pool in self.pools:
            pool.submit(distributed.destroy_process_group)
        for pool in self.pools:
            pool.shutdown()


@contextmanager
def two_ranks() -> Iterator[Ranks]:
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(Path(folder) / "meeting_point")
        try:
            yield ranks
        finally:
            ranks.end()


def _join(meeting_point: Path, rank: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=COUNT,
        timeout=timedelta(seconds=SECONDS / 2),
    )


def _within_time(check: Callable, *arguments: Any) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        check(*arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()
