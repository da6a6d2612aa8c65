"""Runs the book's scripts, all or the named ones, and writes what they reached into README.md.

In quick mode, which reaches nothing worth a table, nothing but pictures is written.
"""

import argparse
import ast
import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

from examples import book

FOLDER = Path(__file__).parent
INDEX = FOLDER / "README.md"
# What other modules import, and what takes several processes.
NO_SCRIPTS = {"__main__", "book", "networks", "train_ddp"}
MARKERS = re.compile(r"(<!-- index -->\n).*(<!-- end of index -->)", re.DOTALL)
ROW = re.compile(r"^\| \[(\w+)\.py\].*\| (.*) \| (.*) \|$", re.MULTILINE)


class About(NamedTuple):
    """What the first sentence of a script says."""

    sections: str
    shows: str

    def place(self) -> list[int]:
        """In the book."""
        return [int(number) for number in re.findall(r"\d+", self.sections)]


def scripts() -> dict[str, About]:
    """Every script of the folder by its name, in the book's order."""
    names = {path.stem for path in FOLDER.glob("*.py")} - NO_SCRIPTS
    found = {name: about(FOLDER / f"{name}.py") for name in names}
    return dict(sorted(found.items(), key=lambda script: (script[1].place(), script[0])))


def about(script: Path) -> About:
    docstring = " ".join((ast.get_docstring(ast.parse(script.read_text())) or "").split())
    sentence = re.match(r"D2L ([\d., to]+): (.*?)\.(?: |$)", docstring)
    if sentence is None:
        raise ValueError(f"{script.name} must begin 'D2L 7.6: what it shows.', not {docstring!r}")
    return About(*sentence.groups())


def write_index(path: Path, figures: dict[str, dict[str, str]]) -> None:
    """Rewrites the table between the markers; a script that did not run keeps its figures."""
    text = path.read_text()
    reached = {name: columns for name, *columns in ROW.findall(text)}
    reached |= {name: [row[layers] for layers in book.LAYERS] for name, row in figures.items()}
    lines = [
        "| script | D2L | what it shows | " + " | ".join(book.LAYERS) + " |",
        "|---|---|---|--:|--:|",
    ]
    for name, (sections, shows) in scripts().items():
        columns = reached.get(name, ["not run yet"] * len(book.LAYERS))
        link = f"[{name}.py]({name}.py) ([picture](pictures/{name}.png))"
        lines.append(f"| {link} | {sections} | {shows} | {' | '.join(columns)} |")
    table = "\n".join(lines) + "\n"
    path.write_text(MARKERS.sub(lambda between: between[1] + table + between[2], text))


def main() -> None:
    known = scripts()
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="a fraction of the work")
    parser.add_argument("--pictures", type=Path, default=book.PICTURES, help="where to draw")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"NAME must be one of {', '.join(known)}, not {', '.join(unknown)}")
    figures = {}
    for name in track(arguments.names or list(known), description="the book's systems"):
        script = import_module(f"examples.{name}")
        figures[name] = script.main(quick=arguments.quick, pictures=arguments.pictures)
    if not arguments.quick:
        write_index(INDEX, figures)


if __name__ == "__main__":
    main()
