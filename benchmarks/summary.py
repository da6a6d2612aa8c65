"""What the rows of a family have in common: the geometric mean of the speed-ups, and the least."""

from collections import Counter
from collections.abc import Iterable
from statistics import geometric_mean

from benchmarks.case import FORWARD, STEP, TRAINING, Case
from benchmarks.measure import Row

# What a speed-up is over, and the row's field that holds it. Triton's is that of the Triton kernels
# over torch.
RIVALS = {"torch": "speedup", "torch.compile": "compiled_speedup"}
GPU_RIVALS = {"torch": "speedup", "Triton": "triton_speedup", "torch.compile": "compiled_speedup"}


def families(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, dict]]]:
    """Per family, mode and rival: "mean", "worst" and its "case", of how many "rows"."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.family, {}).setdefault(row.mode, []).append(row)
    return {
        family: {mode: _over_rivals(of_mode) for mode, of_mode in modes.items()}
        for family, modes in groups.items()
    }


def _over_rivals(rows: list[Row]) -> dict[str, dict]:
    summaries = {}
    for rival, field in GPU_RIVALS.items():
        measured = [row for row in rows if getattr(row, field) is not None]
        if measured:
            speedups = [getattr(row, field) for row in measured]
            worst = min(measured, key=lambda row: getattr(row, field))
            summaries[rival] = {
                "mean": geometric_mean(speedups),
                "worst": getattr(worst, field),
                "case": f"{worst.operator} {worst.case}, {worst.dtype}",
                "rows": len(measured),
            }
    return summaries


HEADER = """\
| family | cases | forward: torch | torch.compile | forward + backward: torch | torch.compile |
|---|--:|--:|--:|--:|--:|
"""
GPU_HEADER = """\
| family | cases | forward: torch | Triton, torch | torch.compile | forward + backward: torch | \
Triton, torch | torch.compile |
|---|--:|--:|--:|--:|--:|--:|--:|
"""


def markdown(found: dict[str, dict[str, dict[str, dict]]], gpu: bool = False) -> str:
    """What `families` found, as a table; a training step counts as forward and backward.

    On a GPU, also the speed-ups of the Triton kernels over torch; the others are the CUDA kernels'.
    """
    lines = []
    for family, modes in found.items():
        columns = (modes.get(FORWARD, {}), modes.get(TRAINING) or modes.get(STEP, {}))
        rivals = GPU_RIVALS if gpu else RIVALS
        cells = [_cell(column.get(rival)) for column in columns for rival in rivals]
        count = max(column["torch"]["rows"] for column in columns if column)
        lines.append(f"| {family} | {count} | {' | '.join(cells)} |\n")
    return (GPU_HEADER if gpu else HEADER) + "".join(lines)


def not_measured(cases: Iterable[Case]) -> str:
    """The GPU's table, of what is yet to be measured."""
    counts = Counter(case.family for case in cases)
    cells = " | ".join(["not measured yet"] * 2 * len(GPU_RIVALS))
    return GPU_HEADER + "".join(f"| {family} | {n} | {cells} |\n" for family, n in counts.items())


def _cell(summary: dict | None) -> str:
    """The mean, and the worst in brackets."""
    return "" if summary is None else f"{_short(summary['mean'])} ({_short(summary['worst'])})"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def quotient(value: float) -> str:
    if value < 0.1:
        return f"{value:.1g}×"
    return f"{value:.2f}×" if value < 10 else f"{value:.0f}×"
