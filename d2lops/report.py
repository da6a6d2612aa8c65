"""What `convert` has done to a model, as a table to read and a file to apply elsewhere."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Row:
    """What became of one layer, or of one call of a function.

    Attributes:
        name: the layer's; or, with a colon between them, a module's and that of a call in its
            forward.
        was: its class, or the function.
        now: whose it is now: ``"d2lops"`` or ``"torch"``.
        note: why; or what it has become one with.
        times: seconds by backend, and by ``"torch"``: of forward, and of forward and backward.
    """

    name: str
    was: str
    now: str
    note: str = ""
    times: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def cells(self, backends: list[str]) -> list[str]:
        times = [
            " / ".join(f"{1e6 * seconds:,.0f}" for seconds in self.times[backend])
            if backend in self.times
            else ""
            for backend in backends
        ]
        return [self.name, self.was, self.now, *times, self.note]


@dataclasses.dataclass
class Report:
    """What became of each layer of a model. It prints as a table.

    Times are those of forward / forward and backward, in microseconds.

    Attributes:
        rows: by the layers' order in the model.

    Example:
        >>> import torch, d2lops
        >>> report = d2lops.convert(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> report.rows[0].now
        'd2lops'
    """

    rows: list[Row]

    def __str__(self) -> str:
        backends = list(dict.fromkeys(backend for row in self.rows for backend in row.times))
        titles = ["layer", "was", "now", *(f"{backend}, µs" for backend in backends), "note"]
        table = [titles, *(row.cells(backends) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            for line in table
        )
        return "\n".join(line.rstrip() for line in lines)

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON: ``d2lops.convert(model, tune=path)`` makes the same choices again."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        Path(path).write_text(json.dumps({"rows": rows}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Report":
        """What `save` has written.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no report.
        """
        try:
            rows: list[dict[str, Any]] = json.loads(Path(path).read_text())["rows"]
            return cls([Row(**{**row, "times": _times(row["times"])}) for row in rows])
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"Report.load(): {path} holds no report: {error!r}") from error


def _times(saved: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {backend: (forward, both) for backend, (forward, both) in saved.items()}
