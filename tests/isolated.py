"""Python in a process of its own, for what is decided once per process: libraries, environment."""

import os
import subprocess
import sys
from pathlib import Path

import d2lops
from d2lops import backends
from tests.device import BACKEND

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


def start_pytest(*arguments: str, **environment: str) -> subprocess.Popen:
    """Run tests, in the environment given besides this one's. It goes on while others start."""
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_passed(tests: subprocess.Popen) -> None:
    output, _ = tests.communicate()
    assert tests.returncode == 0, output[-3000:]
    assert " passed" in output


def assert_survives(script: str) -> None:
    """The script neither raises nor crashes, on the kernels that are tested here."""
    library = os.environ.get("D2LOPS_CPU") or backends.cpu_library[0]
    script = f"import tests.conftest\n{script}"  # which makes the interpreter fast
    result = run_python("-c", script, D2LOPS_CPU=library, D2LOPS_BACKEND=BACKEND)
    assert result.returncode == 0, result.stderr or f"ended by {result.returncode}"
