"""Which library is loaded, what happens where none can be, and how a backend is chosen."""

import functools
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import d2lops
from d2lops import backends, info
from d2lops import functional as F
from tests.device import cpu_only
from tests.isolated import PACKAGE, run_python

pytestmark = cpu_only
LIBRARIES = sorted((PACKAGE / "lib").glob("*.so"))
FIRST_USE = """
import torch, d2lops
try:
    d2lops.functional.dropout(torch.ones(3))
except Exception as error:
    print(type(error).__name__, type(error.__cause__).__name__, error)
else:
    print("ran", d2lops.backends.cpu_library[0])
"""


def first_use(path: Path = PACKAGE.parent, **environment: str) -> str:
    """What the first use of an operator does in a new process: importing always works."""
    result = run_python("-c", FIRST_USE, path=path, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package, to break."""
    return shutil.copytree(PACKAGE, tmp_path / "d2lops")


def spoil_extension_module(package: Path) -> None:
    """Were it only missing, an editable installation of d2lops would lend its own."""
    next(package.glob("_C*.so")).unlink()
    (package / "_C.py").write_text("raise ImportError('no extension module here')\n")


def without_features(package: Path) -> None:
    """Make the package see a processor that has none of the instruction sets."""
    next(package.glob("_C*.so")).unlink()
    (package / "_C.py").write_text(
        f"build_record = {d2lops._C.build_record!r}\ncpu_features = dict\n"
    )


class TestLibraries:
    @pytest.mark.parametrize("library", backends.CPU_LIBRARIES)
    def test_forced(self, library: str) -> None:
        output = first_use(D2LOPS_CPU=library)
        if missing := backends.missing_features(library):
            assert f"this processor lacks {', '.join(missing)}" in output
        else:
            assert output == f"ran {library}\n"

    def test_best_one_by_itself(self) -> None:
        best = next(name for name in backends.CPU_LIBRARIES if not backends.missing_features(name))
        assert first_use() == f"ran {best}\n"

    def test_unknown_name(self) -> None:
        output = first_use(D2LOPS_CPU="sse9")
        assert output.startswith("ImportError ValueError d2lops could not load its kernels: ")
        allowed = ", ".join(backends.CPU_LIBRARIES)
        assert f"D2LOPS_CPU='sse9': allowed are {allowed}" in output

    def test_processor_without_extensions(self, copied: Path) -> None:
        without_features(copied)
        assert first_use(copied.parent) == "ran generic\n"
        output = first_use(copied.parent, D2LOPS_CPU="avx2")
        assert output.startswith("ImportError OSError")
        assert "D2LOPS_CPU=avx2: this processor lacks avx2, fma, f16c, bmi2" in output

    @pytest.mark.parametrize("content", (b"", b"\x7fELF", b"no library " * 1000))
    def test_corrupt_library(self, copied: Path, content: bytes) -> None:
        for library in copied.glob("lib/*.so"):
            library.write_bytes(content)
        output = first_use(copied.parent)
        assert output.startswith("ImportError OSError d2lops could not load its kernels: OSError: ")
        assert str(copied) in output  # what the system's loader says of the file
        assert "torch, running" in output  # what helps to find out why

    def test_no_library(self, copied: Path) -> None:
        for library in copied.glob("lib/*.so"):
            library.unlink()
        output = first_use(copied.parent)
        assert output.startswith("ImportError OSError")
        assert f"no CPU library under {copied / 'lib'}" in output

    def test_no_extension_module(self, copied: Path) -> None:
        spoil_extension_module(copied)
        output = first_use(copied.parent)
        assert output.startswith("ImportError ImportError")
        assert "no extension module here" in output

    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
    def test_needs_nothing_of_torch_but_its_stable_interface(self, library: Path) -> None:
        """Only then does a library built with one torch run on another."""
        if not shutil.which("nm"):
            pytest.skip("needs nm, of the GNU binutils")
        command = ["nm", "-D", "--undefined-only", library]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        symbols = [line.split()[-1] for line in output.splitlines()]
        assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
        stable = re.compile(r"(aoti_torch|torch)_[a-z]\w*")
        system = re.compile(r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC|G?OMP)_[\d.]+|__gmon_start__|_ITM_\w+")
        strange = [s for s in symbols if not stable.fullmatch(s) and not system.fullmatch(s)]
        assert not strange

    @pytest.mark.parametrize("library", backends.CPU_LIBRARIES)
    def test_subnormal_numbers_stay(self, library: str) -> None:
        """A library linked with -ffast-math would turn them off for the whole process."""
        if missing := backends.missing_features(library):
            pytest.skip(f"this processor lacks {', '.join(missing)}")
        script = """
import torch, d2lops
x = torch.tensor([1e-40, -1e-40]).repeat(100)
assert (d2lops.functional.dropout(x, 0.5, seed=1) != 0).any()
assert (x * 1 != 0).all() and 2.0**-1074 * 1.0 > 0
"""
        assert run_python("-c", script, D2LOPS_CPU=library).returncode == 0


class TestBackend:
    X = torch.ones(3)

    def test_blocks_nest(self) -> None:
        assert backends._backend == "auto"
        with d2lops.backend("cpp"):
            F.dropout(self.X)
            with d2lops.backend("triton"):
                with pytest.raises(NotImplementedError, match="no Triton kernels"):
                    F.dropout(self.X)
                with d2lops.backend("auto"):
                    F.dropout(self.X)
            F.dropout(self.X)
        assert backends._backend == "auto"

    def test_a_block_ends_with_an_exception_too(self) -> None:
        with pytest.raises(KeyError), d2lops.backend("triton"):
            raise KeyError
        F.dropout(self.X)

    def test_holds_in_every_thread(self) -> None:
        raised = []

        def work() -> None:
            try:
                F.dropout(self.X)
            except NotImplementedError as error:
                raised.append(error)

        with d2lops.backend("triton"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert len(raised) == 1

    def test_compiled_code_follows(self) -> None:
        compiled = torch.compile(F.dropout, backend="eager")
        compiled(self.X)
        with d2lops.backend("triton"), pytest.raises(Exception, match="no Triton kernels"):
            compiled(self.X)
        compiled(self.X)

    @pytest.mark.parametrize("name", ("cuda", "", "AUTO"))
    def test_unknown_name(self, name: str) -> None:
        with (
            pytest.raises(ValueError, match="one of auto, cpp, triton, got"),
            d2lops.backend(name),
        ):
            pass
        F.dropout(self.X)

    def test_environment(self) -> None:
        assert first_use(D2LOPS_BACKEND="cpp").startswith("ran")
        assert first_use(D2LOPS_BACKEND="").startswith("ran")
        output = first_use(D2LOPS_BACKEND="triton")
        assert output.startswith("NotImplementedError")
        assert "unset D2LOPS_BACKEND" in output
        output = first_use(D2LOPS_BACKEND="cuda")
        assert output.startswith("ImportError ValueError")
        assert "D2LOPS_BACKEND='cuda': allowed are auto, cpp, triton" in output

    def test_meta_tensors_have_shapes(self) -> None:
        y = F.dropout(torch.empty(2, 3, device="meta"))
        assert y.device.type == "meta" and y.shape == (2, 3)

    def test_device_without_kernels(self) -> None:
        x = torch.empty(1)

        class Elsewhere:
            is_cpu = False
            device = torch.device("xla")

        with pytest.raises(NotImplementedError, match=r"'xla' with backend 'auto'; allowed: cpu"):
            backends.kernels(Elsewhere)
        assert backends.kernels(x).dropout is torch.ops.d2lops.dropout.default


class TestTF32:
    """The CPU ignores what it is allowed, so its results tell that everything gets there."""

    @pytest.mark.parametrize(
        ("operator", "switch"),
        [("matmul", torch.backends.cuda.matmul), ("conv", torch.backends.cudnn.conv)],
    )
    def test_follows_torchs_switches(self, operator: str, switch: Any) -> None:
        before = switch.fp32_precision
        try:
            for precision in ("tf32", "ieee"):
                switch.fp32_precision = precision
                assert backends._allows_tf32(operator) == (precision == "tf32")
        finally:
            switch.fp32_precision = before

    @pytest.mark.parametrize("switches", backends._cpp.tf32)
    def test_is_for_the_operators_of_the_switch(self, switches: tuple[bool, bool]) -> None:
        table = vars(backends._cpp.tf32[switches])
        allowed = {name for name, raw in table.items() if isinstance(raw, functools.partial)}
        assert {name.partition("_")[0] for name in allowed} == {
            prefix for prefix, on in zip(("linear", "corr2d"), switches, strict=True) if on
        }
        assert "bias_grad" in table

    def test_goes_through_the_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        allowing = backends.Kernels()
        allowing.plain = backends._cpp.tf32[True, True]
        monkeypatch.setattr(backends, "_table", {"cpu": allowing})
        layers = torch.nn.Sequential(d2lops.nn.Conv2d(2, 3, 3), d2lops.nn.LinearReLU(4, 5))
        x = torch.randn(1, 2, 5, 6, requires_grad=True)
        expected = torch.autograd.grad(layers(x).sum(), x)

        @torch.compile(fullgraph=True, backend="aot_eager")
        def compiled(x: torch.Tensor) -> torch.Tensor:
            return layers(x) if backends._allows_tf32("conv") else layers(x) + 0

        assert torch.equal(torch.autograd.grad(compiled(x).sum(), x)[0], expected[0])


class TestInfo:
    def test_command(self) -> None:
        result = run_python("-m", "d2lops.info", D2LOPS_CPU="generic")
        assert result.returncode == 0 and not result.stderr
        rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines())
        assert rows["d2lops"] == d2lops.__version__
        assert rows["torch, running"] == torch.__version__
        assert rows["torch, built with"].startswith(d2lops._C.build_record["torch"])
        assert rows["loaded"] == "cpu_generic (D2LOPS_CPU=generic)"
        assert rows["D2LOPS_CPU"] == "generic"
        assert rows["D2LOPS_BACKEND"] == "not set"
        for name in ("compiler", "cuda", "processor", "threads", "cpu_generic"):
            assert rows[name]
        if "cpu_avx2" in rows:
            assert "-mavx2" in rows["cpu_avx2"]

    def test_tells_why_nothing_is_loaded(self, copied: Path) -> None:
        spoil_extension_module(copied)
        result = run_python("-m", "d2lops.info", path=copied.parent)
        assert result.returncode == 0
        assert "d2lops._C cannot be imported" in result.stdout
        assert re.search(r"loaded +none: ImportError", result.stdout)

    def test_same_in_this_process(self) -> None:
        assert f"cpu_{backends.cpu_library[0]}" in info.summary()
