"""``python -m benchmarks compare OLD NEW``: what got faster or slower between two runs.

Machines are noisy, and not always the same: what counts is each run's own ratio to torch. It has
fallen when it did so by more than the noise of both runs together.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

KEY = ("operator", "case", "dtype", "layout", "mode")
# What the same code differs by from one process to the next, where memory happens to lie elsewhere:
# rounds within one process do not show it.
BETWEEN_PROCESSES = 0.05


class Pair(NamedTuple):
    """A row of both runs."""

    old: dict
    new: dict

    @property
    def time_ratio(self) -> float:
        return self.old["ours_seconds"] / self.new["ours_seconds"]

    @property
    def ratio(self) -> float:
        """Of the speed-ups over torch: below 1 where d2lops got slower next to it."""
        return self.new["speedup"] / self.old["speedup"]

    @property
    def noise(self) -> float:
        """By what share of itself the ratio is uncertain."""
        spreads = (row[f"{side}_spread"] for row in self for side in ("ours", "torch"))
        return math.hypot(BETWEEN_PROCESSES, *spreads)

    @property
    def is_slower(self) -> bool:
        return self.ratio < 1 / (1 + self.noise)

    @property
    def is_faster(self) -> bool:
        return self.ratio > 1 + self.noise


def compare(old: Path, new: Path, console: Console) -> bool:
    """Prints a table; whether there is no regression."""
    before, after = _load(old), _load(new)
    for name in ("gpu", "processor", "threads", "library", "torch"):
        values = [run["environment"].get(name) for run in (before, after)]
        if values[0] != values[1]:
            console.print(f"[yellow]{name} differs: {values[0]} → {values[1]}")
    old_rows, new_rows = _by_key(before), _by_key(after)
    pairs = {key: Pair(old_rows[key], new_rows[key]) for key in old_rows if key in new_rows}
    _print(console, pairs)
    for which, only in (("OLD", old_rows.keys() - pairs), ("NEW", new_rows.keys() - pairs)):
        for key in sorted(only):
            console.print(f"only in {which}: {' · '.join(key)}")
    slower = sum(pair.is_slower for pair in pairs.values())
    faster = sum(pair.is_faster for pair in pairs.values())
    console.print(f"{len(pairs)} rows: {faster} faster, {slower} slower beyond noise")
    return slower == 0


def _print(console: Console, pairs: dict[tuple, Pair]) -> None:
    table = Table(
        caption="New / old: of our speed, and of our speed-up over torch. Noise: by how much the "
        "latter is uncertain.",
        caption_justify="left",
    )
    for name in KEY:
        table.add_column(name, no_wrap=True)
    for name in ("old", "new", "speed", "× torch, old", "new", "new / old", "noise", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for key, pair in pairs.items():
        verdict = "[red]slower" if pair.is_slower else "[green]faster" if pair.is_faster else ""
        table.add_row(
            *key,
            *(f"{row['ours_seconds'] * 1e3:.4g} ms" for row in pair),
            f"{pair.time_ratio:.2f}×",
            *(f"{row['speedup']:.2f}×" for row in pair),
            f"{pair.ratio:.2f}×",
            f"{pair.noise:.0%}",
            verdict,
        )
    console.print(table)


def _load(path: Path) -> dict:
    return json.loads((path / "results.json" if path.is_dir() else path).read_text())


def _by_key(run: dict) -> dict[tuple[str, ...], dict]:
    return {tuple(row[name] for name in KEY): row for row in run["rows"]}
