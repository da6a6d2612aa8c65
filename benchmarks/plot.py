"""The speed-ups as a picture: a line for each family, a dot for each row, a bar at their mean."""

from pathlib import Path
from statistics import geometric_mean

from benchmarks.case import FORWARD, STEP, TRAINING
from benchmarks.measure import Row
from benchmarks.summary import quotient

COLOURS = {FORWARD: "#0072b2", TRAINING: "#d55e00", STEP: "#009e73"}


def plot(path: Path, environment: dict, rows: list[Row]) -> None:
    """Right of 1× are rows where d2lops is faster than torch, eager."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.family, row.mode), []).append(row.speedup)
    families = list(dict.fromkeys(row.family for row in rows))
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.45 * len(families)), layout="constrained")
    for (family, mode), speedups in groups.items():
        places = [families.index(family) + {FORWARD: -0.17, TRAINING: 0.17, STEP: 0}[mode]]
        colour, mean = COLOURS[mode], geometric_mean(speedups)
        axes.plot(speedups, places * len(speedups), "o", color=colour, markersize=4, alpha=0.5)
        axes.plot([mean], places, "|", color=colour, markersize=13, markeredgewidth=2.5)
        axes.annotate(
            quotient(mean),
            (max(speedups), places[0]),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center_baseline",
            color=colour,
            fontsize=7,
        )
    axes.set_yticks(range(len(families)), families, fontsize=8)
    axes.set_ylim(len(families) - 0.4, -0.6)
    axes.set_xscale("log")
    slowest, fastest = (pick(row.speedup for row in rows) for pick in (min, max))
    axes.set_xlim(min(0.9, slowest / 1.2), max(1.1, fastest * 1.3))  # room for the numbers
    axes.xaxis.set_major_locator(ticker.LogLocator(base=2))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:.3g}×"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", linewidth=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("speed-up over torch, eager; bars and numbers: geometric mean")
    figure.suptitle(
        f"d2lops {environment['d2lops']} against torch {environment['torch']}: "
        + environment.get("gpu", f"{environment['processor']}, {environment['threads']} threads"),
        fontsize=10,
    )
    for mode in dict.fromkeys(row.mode for row in rows):
        axes.plot([], [], "o", color=COLOURS[mode], label=mode)
    figure.legend(loc="outside lower center", ncols=len(COLOURS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
