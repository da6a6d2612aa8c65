"""Python in a process of its own, for what is decided once per process: libraries, environment."""

import os
import subprocess
import sys
from pathlib import Path

import d2lops

PACKAGE = Path(d2lops.__file__).parent
ROOT = Path(__file__).parents[1]
SWITCHES = ("D2LOPS_BACKEND", "D2LOPS_CPU", "D2LOPS_CUDA", "D2LOPS_CUDA_ARCHS")


def run_python(
    *arguments: str, path: Path = PACKAGE.parent, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python on the d2lops that is in `path`, with no switches set but those given."""
    inherited = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **environment},
        cwd=path,
        capture_output=True,
        text=True,
    )
