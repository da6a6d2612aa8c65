"""The measurements as tables on the terminal, and as JSON, CSV and Markdown."""

import csv
import json
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.case import STEP
from benchmarks.measure import Row
from benchmarks.plot import plot
from benchmarks.summary import families, markdown, quotient

CAPTION = (
    "Times: median of a call; on a GPU the GPU's time, its caches cold, but for tiny cases and "
    "networks, where launches count. Of limit: the time that copying the bytes, or doing the flops "
    "in registers or on tensor cores, takes this machine, as a share of ours. Kept: memory that "
    "waits for backward beside inputs and output, in bytes per element of the output, ours and "
    "torch's. Error: the largest against float64, of the output or of a gradient, in multiples of "
    "torch's own."
)
NUMBERS = ("ours", "torch", "speed-up", "compiled", "speed-up", "rate", "of limit", "kept", "error")
TRITON = ("Triton", "over torch", "error")


def print_environment(console: Console, environment: dict) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, value in environment.items():
        grid.add_row(f"[dim]{name}", str(value))
    console.print(grid)


def print_table(console: Console, rows: list[Row]) -> None:
    table = Table(caption=CAPTION, caption_justify="left")
    for name in ("operator", "case", "dtype", "mode"):
        table.add_column(name, no_wrap=True)
    with_triton = any(row.triton_seconds for row in rows)
    for name in NUMBERS + TRITON * with_triton:
        table.add_column(name, justify="right", no_wrap=True)
    for operator, of_operator in groupby(rows, lambda row: row.operator):
        for row in of_operator:
            table.add_row(
                operator,
                row.case,
                row.dtype + " NHWC" * (row.layout == "channels_last"),
                row.mode.replace("forward", "fwd").replace(" + backward", "+bwd"),
                _time(row.ours_seconds),
                _time(row.torch_seconds),
                speedup(row.speedup),
                _time(row.compiled_seconds),
                speedup(row.compiled_speedup),
                f"{row.rate / 1e9:.3g} {'GB' if row.limited_by == 'bytes' else 'GFLOP'}/s",
                f"{row.of_limit:.0%}",
                _kept(row),
                _error(row),
                *_triton(row)[: len(TRITON) * with_triton],
            )
        table.add_section()
    console.print(table)
    for row in rows:
        for reason in filter(
            None, (row.not_compiled, row.no_triton and f"Triton: {row.no_triton}")
        ):
            console.print(f"— {row.operator} {row.case}, {row.mode}: {reason}", markup=False)


def print_families(console: Console, rows: list[Row]) -> None:
    table = Table(title="Speed-ups by family: geometric mean, and worst case", title_justify="left")
    for name in ("family", "mode", "over"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "mean", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("worst case")
    for family, modes in families(rows).items():
        for mode, rivals in modes.items():
            for rival, found in rivals.items():
                means = (speedup(found[name]) for name in ("mean", "worst"))
                table.add_row(family, mode, rival, str(found["rows"]), *means, found["case"])
        table.add_section()
    console.print(table)


def write(folder: Path, stem: str, environment: dict, limits: dict, rows: list[Row]) -> list[Path]:
    """The rows as JSON and CSV, the families as a Markdown table and a picture, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{stem}.{suffix}" for suffix in ("json", "csv", "md", "png")]
    results = {
        "environment": environment,
        "limits": limits,
        "families": families(rows),
        "rows": [asdict(row) for row in rows],
    }
    files[0].write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    with files[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(results["rows"])
    files[2].write_text(markdown(results["families"], gpu="gpu" in environment))
    plot(files[3], environment, rows)
    return files


def speedup(value: float | None) -> str:
    if value is None:
        return "—"
    return f"[{'green' if value >= 1 else 'red'}]{quotient(value)}"


def _triton(row: Row) -> tuple[str, str, str]:
    error = "—" if row.triton_error is None else quotient(row.triton_error)
    return _time(row.triton_seconds), speedup(row.triton_speedup), error


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _kept(row: Row) -> str:
    if row.outputs is None:
        return ""
    if row.mode == STEP:
        return f"{row.ours_kept / 1e6:.3g} / {row.torch_kept / 1e6:.3g} MB"
    kept = (f"{nbytes / row.outputs:.2f}" for nbytes in (row.ours_kept, row.torch_kept))
    return " / ".join(number.rstrip("0").rstrip(".") for number in kept)


def _error(row: Row) -> str:
    if row.ours_error is None:
        return "—"
    if row.error is None:
        return "0 / 0" if row.ours_error == 0 else "∞"
    return quotient(row.error)
