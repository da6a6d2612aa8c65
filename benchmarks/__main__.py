"""``python -m benchmarks``: measures d2lops and torch; prints tables, writes them and a plot."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import d2lops
from benchmarks import device, report, returned
from benchmarks.case import Case, tf32_allowed
from benchmarks.compare import compare
from benchmarks.device import on_gpu
from benchmarks.environment import environment
from benchmarks.limits import copy_seconds, flops_per_second
from benchmarks.measure import Row, measure
from benchmarks.rival import compiled

OPERATORS = ("corr2d", "pool2d", "dropout", "linear_relu", "network", "converted")
RESULTS = Path(os.environ.get("RESULTS", Path(__file__).parent / "results"))


class Run(NamedTuple):
    rows: list[Row]
    failures: list[str]


def cases(operators: list[str], quick: bool, device: str = "cpu") -> list[Case]:
    modules = [importlib.import_module(f"benchmarks.{operator}") for operator in operators]
    sets = [module.cuda_cases() if device == "cuda" else module.cases() for module in modules]
    return [case for of_operator in sets for case in of_operator if case.quick or not quick]


def run(cases: list[Case], console: Console) -> Run:
    """Measures every case in every mode, and drops it: a network holds much memory.

    A case that fails does not keep the others from being measured, nor does an interrupt lose what
    has been. Between measurements only does the progress bar move: a thread that redraws it would
    take time from what is timed.
    """
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    rows, failures = [], []
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=sum(len(case.modes) for case in cases))
        try:
            while cases:
                case = cases.pop(0)
                for mode in case.modes:
                    name = f"{case.operator}: {case.name}, {case.dtype}, {mode}"
                    progress.update(task, description=name, refresh=True)
                    try:
                        rows.append(_row(case, mode))
                        _print_progress(console, name, rows[-1])
                    except Exception as error:
                        failures.append(f"{name}: {type(error).__name__}: {error}")
                        console.print(failures[-1], style="red", markup=False)
                    progress.advance(task)
        except KeyboardInterrupt:
            failures.append("interrupted: not every case was measured")
    return Run(rows, failures)


def _row(case: Case, mode: str) -> Row:
    if on_gpu() and not case.quick:  # compilation takes longer than all the rest, Triton's too
        return measure(case, mode, not_compiled="")
    with tf32_allowed(case.tf32):
        rival = compiled(case, mode)
    return measure(case, mode, *rival, triton=on_gpu())


def _print_progress(console: Console, name: str, row: Row) -> None:
    """Where no bar moves: in a log."""
    if not console.is_terminal:
        times = f"{row.ours_seconds * 1e6:.4g} µs, torch {row.torch_seconds * 1e6:.4g} µs"
        console.print(f"{name}: {times}", markup=False)


def limits() -> dict[str, float]:
    """Of copies far larger than any cache, of arithmetic in registers and on tensor cores."""
    size = 2**32 if on_gpu() else 2**28
    found = {
        "copy bytes/s": size / copy_seconds(size),
        "float32 flops/s": flops_per_second(torch.float32),
        "float64 flops/s": flops_per_second(torch.float64),
    }
    if on_gpu():
        found["TF32 flops/s"] = flops_per_second(torch.float32, tf32=True)
        found["bfloat16 flops/s"] = flops_per_second(torch.bfloat16)
        found["float16 flops/s"] = flops_per_second(torch.float16)
    return found


def benchmark(options: argparse.Namespace, console: Console) -> bool:
    """Whether every case could be measured."""
    operators = options.only or list(OPERATORS)
    device.name = options.device
    torch.backends.cudnn.benchmark = True  # torch may look for its fastest convolutions
    where = environment()
    report.print_environment(console, where)
    most = limits()
    console.print(
        *(f"{name.split('/')[0]} at most {rate / 1e9:.4g} G/s" for name, rate in most.items()),
        sep="; ",
    )
    rows = []
    if not on_gpu():
        if "dropout" in operators:
            rows += returned.rows()
        d2lops.keep_freed_memory()
        console.print(
            "Freed memory stays in the process, for torch as for d2lops "
            "(d2lops.keep_freed_memory()), "
            f"but for the row “{returned.WITHOUT.strip(', ')}”."
        )
    torch.manual_seed(0)
    measured, failures = run(cases(operators, options.quick, options.device), console)
    rows = measured + rows
    report.print_table(console, rows)
    report.print_families(console, rows)
    stem = "cuda" if on_gpu() else "results"
    if rows:
        for path in report.write(options.results, stem, where, most, rows):
            console.print(f"wrote {path}")
    for failure in failures:
        console.print(failure, style="red", markup=False)
    return not failures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(": ")[2]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
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
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    sys.exit(not benchmark(options, console))


if __name__ == "__main__":
    main()
