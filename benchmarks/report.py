"""The measurements as a table on the terminal, JSON, CSV and a plot."""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean

from rich.console import Console
from rich.table import Table

from benchmarks.measure import FORWARD, MODES, TRAINING, Row

COLOURS = {
    "corr2d": "#0072b2",
    "pool2d": "#d55e00",
    "dropout": "#009e73",
    "linear_relu": "#cc79a7",
}


def geometric_means(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Of the speed-ups, per operator and mode."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.operator, {}).setdefault(row.mode, []).append(row.speedup)
    return {
        operator: {mode: geometric_mean(speedups) for mode, speedups in modes.items()}
        for operator, modes in groups.items()
    }


def print_environment(console: Console, environment: dict) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, value in environment.items():
        grid.add_row(f"[dim]{name}", str(value))
    console.print(grid)


def print_table(console: Console, rows: list[Row]) -> None:
    table = Table(
        caption="Times: median of a call. Of limit: the time that copying the bytes, or doing the "
        "flops in registers, takes this machine, as a share of ours. Error: the largest against "
        "float64, of the output or of a gradient, in multiples of torch's own.",
        caption_justify="left",
    )
    for name in ("operator", "case", "dtype", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "torch", "speed-up", "rate", "of limit", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for operator, of_operator in groupby(rows, lambda row: row.operator):
        for row in of_operator:
            table.add_row(
                operator,
                row.case,
                _kind(row),
                row.mode.replace("forward", "fwd").replace(" + backward", "+bwd"),
                _time(row.ours_seconds),
                _time(row.torch_seconds),
                _speedup(row.speedup),
                f"{row.rate / 1e9:.3g} {'GB' if row.limited_by == 'bytes' else 'GFLOP'}/s",
                f"{row.of_limit:.0%}",
                _error(row),
            )
        table.add_section()
    console.print(table)


def print_means(console: Console, rows: list[Row]) -> None:
    table = Table(title="Geometric mean of the speed-ups", title_justify="left")
    table.add_column("operator")
    for mode in MODES:
        table.add_column(mode, justify="right")
    for operator, means in geometric_means(rows).items():
        table.add_row(operator, *(_speedup(means[mode]) for mode in MODES))
    console.print(table)


def write(folder: Path, environment: dict, limits: dict, rows: list[Row]) -> list[Path]:
    """results.json, results.csv and speedup.png in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("results.json", "results.csv", "speedup.png")]
    results = {
        "environment": environment,
        "limits": limits,
        "geometric_means": geometric_means(rows),
        "rows": [asdict(row) for row in rows],
    }
    files[0].write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    with files[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(results["rows"])
    plot(files[2], environment, rows)
    return files


def plot(path: Path, environment: dict, rows: list[Row]) -> None:
    """A pair of bars per case, from 1× to the right where d2lops is faster, else to the left."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    def pale(colour: str) -> list[float]:
        return [(1 + channel) / 2 for channel in to_rgb(colour)]

    labels = list(dict.fromkeys(_label(row) for row in rows))
    figure, axes = pyplot.subplots(figsize=(10, 2 + 0.4 * len(labels)), layout="constrained")
    for row in rows:
        place = labels.index(_label(row)) + (0.2 if row.mode == TRAINING else -0.2)
        colour = COLOURS[row.operator]
        colour = pale(colour) if row.mode == TRAINING else colour
        axes.barh(place, row.speedup - 1, left=1, height=0.36, color=colour)
        axes.annotate(
            _quotient(row.speedup),
            (row.speedup, place),
            xytext=(3 if row.speedup >= 1 else -3, 0),
            textcoords="offset points",
            horizontalalignment="left" if row.speedup >= 1 else "right",
            verticalalignment="center_baseline",
            fontsize=7,
        )
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xscale("log")
    slowest, fastest = (pick(row.speedup for row in rows) for pick in (min, max))
    axes.set_xlim(min(0.9, slowest / 1.5), max(1.1, fastest * 1.3))  # room for the numbers
    axes.xaxis.set_major_locator(ticker.LogLocator(base=2))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:.3g}×"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", linewidth=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("speed-up over torch")
    figure.suptitle(
        f"d2lops {environment['d2lops']} against torch {environment['torch']}: "
        f"{environment['processor']}, {environment['threads']} threads",
        fontsize=10,
    )
    operators = dict.fromkeys(row.operator for row in rows)
    keys = [Patch(color=COLOURS[operator], label=operator) for operator in operators]
    keys += [Patch(color="#555555", label=FORWARD), Patch(color=pale("#555555"), label=TRAINING)]
    figure.legend(
        handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(row: Row) -> str:
    return f"{row.case} · {_kind(row)}"


def _kind(row: Row) -> str:
    return row.dtype + " NHWC" * (row.layout == "channels_last")


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _speedup(speedup: float) -> str:
    return f"[{'green' if speedup >= 1 else 'red'}]{_quotient(speedup)}"


def _quotient(value: float) -> str:
    if value < 0.1:
        return f"{value:.1g}×"
    return f"{value:.2f}×" if value < 10 else f"{value:.0f}×"


def _error(row: Row) -> str:
    if row.ours_error is None:
        return "—"
    if row.error is None:
        return "0 / 0" if row.ours_error == 0 else "∞"
    return _quotient(row.error)
