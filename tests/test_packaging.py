"""What is shipped: the source distribution, the wheel built from it, and how it is built."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from d2lops import backends
from tests.device import cpu_only
from tests.isolated import ROOT, run_python

# Says what it is told to do, and does it without optimising: the tests of kernels are elsewhere.
COMPILER = """#!/bin/sh
echo "$@" >> {log}
exec c++ "$@" -O0
"""
# Makes empty files of what it is told to compile or link, or CUDA would take minutes.
NVCC = """#!/bin/sh
test "$1" = --version && exec echo "nvcc of the tests"
echo "$@" >> {log}
for output; do :; done
case " $* " in
*" -c "*) exec c++ -x c++ -c /dev/null -o "$output" ;;
*) exec c++ -shared -x c++ /dev/null -o "$output" ;;
esac
"""
pytestmark = [
    cpu_only,
    pytest.mark.skipif(find_spec("build.__main__") is None, reason="needs the package `build`"),
]


class Built:
    """A source distribution, and the wheel that was built from it, both unpacked."""

    def __init__(self, folder: Path) -> None:
        log, cuda_log = folder / "log", folder / "cuda_log"
        compiler, nvcc = folder / "c++", folder / "bin" / "nvcc"
        nvcc.parent.mkdir()
        for path, text in ((compiler, COMPILER.format(log=log)), (nvcc, NVCC.format(log=cuda_log))):
            path.write_text(text)
            path.chmod(0o755)
        cuda = {
            "D2LOPS_CUDA": "1",
            "CUDA_HOME": str(folder),
            "D2LOPS_CUDA_ARCHS": "8.0;9.0 10.0+PTX",
        }
        options = ["--no-isolation", "--skip-dependency-check", "--outdir", folder]
        result = subprocess.run(
            [sys.executable, "-m", "build", *options, ROOT],
            env={**os.environ, "CXX": str(compiler), **cuda},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        self.output = result.stdout
        self.commands = log.read_text().splitlines()
        self.cuda_commands = cuda_log.read_text().splitlines()
        (sdist,) = folder.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            paths = [Path(member.name) for member in archive if member.isfile()]
        self.sdist = {str(path.relative_to(path.parts[0])) for path in paths}
        (wheel,) = folder.glob("*.whl")
        self.unpacked = folder / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            self.wheel = {*archive.namelist()}
            archive.extractall(self.unpacked)

    def compilations(self) -> list[str]:
        return [command for command in self.commands if " -c " in command]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("dist"))


def files(folder: str, pattern: str) -> set[str]:
    found = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}
    assert found, f"{folder} has no {pattern}"
    return found


class TestSourceDistribution:
    def test_has_what_a_wheel_is_built_from(self, built: Built) -> None:
        assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= built.sdist
        assert files("csrc", "*.[ch]*") <= built.sdist
        assert files("d2lops", "*.py") | files("triton_kernels", "*.py") <= built.sdist
        assert "d2lops/py.typed" in built.sdist

    def test_has_nothing_that_was_built(self, built: Built) -> None:
        assert not [name for name in built.sdist if name.endswith((".so", ".o", ".pyc"))]
        assert not [name for name in built.sdist if name.startswith(("build/", "."))]


class TestWheel:
    def test_has_the_package(self, built: Built) -> None:
        package = files("d2lops", "*.py") | {f"d2lops/{f}" for f in files("triton_kernels", "*.py")}
        assert package | {"d2lops/py.typed"} <= built.wheel

    def test_has_the_libraries(self, built: Built) -> None:
        libraries = {name for name in built.wheel if name.endswith(".so")}
        modules = {name for name in libraries if name.startswith("d2lops/_C.")}
        assert len(modules) == 1
        known = {f"d2lops/lib/cpu_{name}.so" for name in backends.CPU_LIBRARIES}
        cuda = {"d2lops/lib/cuda.so"}
        assert {"d2lops/lib/cpu_generic.so"} | cuda <= libraries - modules <= known | cuda

    def test_has_nothing_else(self, built: Built) -> None:
        folders = {name.partition("/")[0] for name in built.wheel}
        (metadata,) = folders - {"d2lops"}
        assert metadata.endswith(".dist-info")
        assert f"{metadata}/licenses/LICENSE" in built.wheel
        suffixes = {Path(name).suffix for name in built.wheel if name.startswith("d2lops/")}
        assert suffixes == {".py", ".so", ".typed"}

    def test_runs(self, built: Built) -> None:
        script = """
import torch, d2lops, d2lops.triton_kernels
print(d2lops.__file__)
print(d2lops.functional.dropout(torch.ones(8), 0.5, seed=42).tolist())
"""
        result = run_python("-c", script, path=built.unpacked)
        assert result.returncode == 0, result.stderr
        file, numbers = result.stdout.splitlines()
        assert Path(file).is_relative_to(built.unpacked)
        assert numbers == "[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 2.0, 0.0]"


class TestBuild:
    def test_says_what_it_decided(self, built: Built) -> None:
        assert "d2lops: CPU libraries: cpu_generic" in built.output
        assert "d2lops: CUDA library: yes (D2LOPS_CUDA=1, nvcc is " in built.output

    def test_wheel_knows_how_it_was_built(self, built: Built) -> None:
        result = run_python("-m", "d2lops.info", path=built.unpacked)
        assert "nvcc of the tests: 8.0 9.0 10.0+PTX" in result.stdout

    def test_cuda_library(self, built: Built) -> None:
        """Every kernel for each architecture, and the bindings once more, for CUDA."""
        *compilations, link = built.cuda_commands
        sources = {c.split(" -c ")[1].split()[0].rpartition("csrc/")[2] for c in compilations}
        kernels = files("csrc/cuda", "*.cu") | files("csrc/cuda", "*.cpp")
        assert {f"csrc/{source}" for source in sources} == kernels
        for architecture in ("80,code=sm_80", "90a,code=sm_90a", "100,code=compute_100"):
            flag = f"-gencode=arch=compute_{architecture}"
            assert all(flag in command for command in compilations)
        assert all("-DD2LOPS_SM90A" in command.split() for command in compilations)
        assert "--no-as-needed -ltorch " in link
        bindings = [c for c in built.compilations() if "/cuda/bindings/" in c]
        assert len(bindings) == len(files("csrc/bindings", "*.cpp"))
        assert all("-DD2LOPS_CUDA" in command.split() for command in bindings)

    def test_runs_anywhere_and_computes_exactly(self, built: Built) -> None:
        """Nothing of this machine's processor, and no arithmetic that is free to differ."""
        assert built.compilations()
        for flag in ("-march=", "-mtune=", "-Ofast", "-ffast-math", "-funsafe-math", "-fassoc"):
            assert not [command for command in built.commands if flag in command]

    def test_each_library_has_its_instruction_set_alone(self, built: Built) -> None:
        for command in built.compilations():
            flags = {flag for flag in command.split() if flag.startswith("-m")}
            target = re.search(r" -o \S*/ninja-[^/]+/([^/]+)/", command)[1]
            assert ("-mavx2" in flags) == target.startswith(("cpu_avx2", "cpu_avx512", "cpu_amx"))
            assert ("-mavx512f" in flags) == target.startswith(("cpu_avx512", "cpu_amx"))
            assert ("-mavx512bf16" in flags) == (target in ("cpu_avx512_bf16", "cpu_amx"))
            assert ("-mamx-bf16" in flags) == (target == "cpu_amx")
            assert ("-DTORCH_TARGET_VERSION" in command) == (target != "_C")

    @pytest.mark.parametrize(
        "choice, expected",
        (
            ("1", "no nvcc was found. Install the CUDA toolkit"),
            ("bogus", "D2LOPS_CUDA='bogus': allowed are 'auto', '0' and '1'"),
        ),
    )
    def test_cuda_that_cannot_be_built_is_an_error(self, choice: str, expected: str) -> None:
        result = run_python(
            "setup.py", "--name", path=ROOT, D2LOPS_CUDA=choice, PATH="", CUDA_HOME="", CUDA_PATH=""
        )
        assert result.returncode != 0
        assert expected in result.stderr

    def test_no_cuda_is_no_error_by_itself(self) -> None:
        result = run_python("setup.py", "--name", path=ROOT, PATH="", CUDA_HOME="", CUDA_PATH="")
        assert result.returncode == 0
        assert "d2lops" in result.stdout
