"""``python -m benchmarks``: measures d2lops and torch; prints a table, writes JSON, CSV, a plot."""

import argparse
import importlib
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.case import Case
from benchmarks.environment import environment
from benchmarks.limits import copy_seconds, flops_per_second
from benchmarks.measure import MODES, Row, measure

OPERATORS = ("corr2d", "pool2d", "dropout", "linear_relu")
RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parent / "results"))


def cases(operators: list[str], quick: bool) -> list[Case]:
    modules = [importlib.import_module(f"benchmarks.{operator}") for operator in operators]
    return [case for module in modules for case in module.cases() if case.quick or not quick]


def run(cases: list[Case], console: Console) -> list[Row]:
    """Measures every case in every mode. Between measurements only does the progress bar move: a
    thread that redraws it would take time from what is timed."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    rows = []
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=len(cases) * len(MODES))
        for case in cases:
            for mode in MODES:
                progress.update(task, description=f"{case.operator}: {case.name}", refresh=True)
                rows.append(measure(case, mode))
                progress.advance(task)
    return rows


def limits() -> dict[str, float]:
    """Of copies far larger than any cache, and of arithmetic in registers."""
    size = 2**28
    return {
        "copy bytes/s": size / copy_seconds(size),
        "float32 flops/s": flops_per_second(torch.float32),
        "float64 flops/s": flops_per_second(torch.float64),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(": ")[2]
    )
    parser.add_argument("--quick", action="store_true", help="the representative cases only")
    parser.add_argument("--only", choices=OPERATORS, action="append", help="this operator's cases")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the files (or RESULTS=...)"
    )
    options = parser.parse_args()
    chosen = cases(options.only or list(OPERATORS), options.quick)
    console = Console()
    console.width = max(console.width, 150)  # rather too wide than columns of one letter
    where = environment()
    report.print_environment(console, where)
    most = limits()
    console.print(
        *(f"{name.split('/')[0]} at most {rate / 1e9:.4g} G/s" for name, rate in most.items()),
        sep="; ",
    )
    torch.manual_seed(0)
    rows = run(chosen, console)
    report.print_table(console, rows)
    report.print_means(console, rows)
    for path in report.write(options.results, where, most, rows):
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
