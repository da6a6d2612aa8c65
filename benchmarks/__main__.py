"""``python -m benchmarks``: measures d2lops and torch; prints a table, writes JSON, CSV, a plot."""

import argparse
import importlib
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import d2lops
from benchmarks import report, returned
from benchmarks.case import Case
from benchmarks.compare import compare
from benchmarks.environment import environment
from benchmarks.limits import copy_seconds, flops_per_second
from benchmarks.measure import Row, measure
from benchmarks.rival import compiled

OPERATORS = ("corr2d", "pool2d", "dropout", "linear_relu", "network")
RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parent / "results"))


def cases(operators: list[str], quick: bool) -> list[Case]:
    modules = [importlib.import_module(f"benchmarks.{operator}") for operator in operators]
    return [case for module in modules for case in module.cases() if case.quick or not quick]


def run(cases: list[Case], console: Console) -> list[Row]:
    """Measures every case in every mode, and drops it: a network holds much memory.

    Between measurements only does the progress bar move: a thread that redraws it would take time
    from what is timed.
    """
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    rows = []
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=sum(len(case.modes) for case in cases))
        while cases:
            case = cases.pop(0)
            for mode in case.modes:
                name = f"{case.operator}: {case.name}, {mode}"
                progress.update(task, description=f"{name}: torch.compile", refresh=True)
                rival = compiled(case, mode)
                progress.update(task, description=name, refresh=True)
                rows.append(measure(case, mode, *rival))
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


def benchmark(options: argparse.Namespace, console: Console) -> None:
    operators = options.only or list(OPERATORS)
    where = environment()
    report.print_environment(console, where)
    most = limits()
    console.print(
        *(f"{name.split('/')[0]} at most {rate / 1e9:.4g} G/s" for name, rate in most.items()),
        sep="; ",
    )
    rows = []
    if "dropout" in operators:
        rows += returned.rows()
    d2lops.keep_freed_memory()
    console.print(
        "Freed memory stays in the process, for torch as for d2lops (d2lops.keep_freed_memory()), "
        f"but for the row “{returned.WITHOUT.strip(', ')}”."
    )
    torch.manual_seed(0)
    rows = run(cases(operators, options.quick), console) + rows
    report.print_table(console, rows)
    report.print_families(console, rows)
    for path in report.write(options.results, where, most, rows):
        console.print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(": ")[2]
    )
    parser.add_argument("--quick", action="store_true", help="the representative cases only")
    parser.add_argument("--only", choices=OPERATORS, action="append", help="this operator's cases")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the files (or RESULTS=...)"
    )
    commands = parser.add_subparsers(dest="command", metavar="compare OLD NEW")
    comparison = commands.add_parser("compare", help="two runs; fails if something got slower")
    for name in ("old", "new"):
        comparison.add_argument(name, type=Path, help="results.json, or the folder that has it")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 220)  # rather too wide than columns of one letter
    if options.command == "compare":
        sys.exit(not compare(options.old, options.new, console))
    benchmark(options, console)


if __name__ == "__main__":
    main()
