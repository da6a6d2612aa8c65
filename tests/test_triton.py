"""Triton as a backend: when it is taken, what the compiler sees of it, and how kernels are chosen.

What its kernels compute is for the operators' tests to say: `test_triton_kernels.py`.
"""

import contextlib
import itertools
import math
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._functorch.aot_autograd import aot_export_module
from torch._inductor.codegen import wrapper
from torch._subclasses.fake_tensor import FakeTensorMode

import d2lops
from d2lops import backends
from d2lops import functional as F
from tests.device import cpu_only
from tests.isolated import run_python

triton = pytest.importorskip("triton")

with d2lops.backend("triton"):
    from d2lops.triton_kernels import device, launch, operators, taps

pytestmark = cpu_only
HOPPER = device.Device("cuda", 90, 132, 232448, True)


class TestBackend:
    def test_there_is_a_launcher_for_every_operator(self) -> None:
        assert set(operators.LAUNCHERS) == set(backends._rules)
        assert set(operators.LAUNCHERS) == set(vars(backends._triton.plain))

    @pytest.mark.parametrize("name", operators.LAUNCHERS)
    def test_schemas_are_the_librarys(self, name: str) -> None:
        """But for which integers the compiler may leave open."""
        ours, theirs = (
            str(getattr(getattr(torch.ops, library), name).default._schema)
            for library in ("d2lops_triton", "d2lops")
        )
        assert ours.removeprefix("d2lops_triton::").replace("SymInt", "int") == (
            theirs.removeprefix("d2lops::").replace("SymInt", "int")
        )

    def test_tensors_on_the_cpu_are_refused(self) -> None:
        with d2lops.backend("triton"), pytest.raises(NotImplementedError, match="TRITON_INTERPRET"):
            F.dropout(torch.ones(3))

    def test_auto_takes_it_where_a_gpu_has_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "cuda" not in backends._tables("auto")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert backends._tables("auto")["cuda"] is backends._triton
        assert "cuda" not in backends._tables("cpp")
        monkeypatch.setattr(backends, "cuda_library", (True, "it was built"))
        assert backends._tables("auto")["cuda"] is backends._cpp

    @pytest.mark.parametrize(
        "absent", ("sys.modules['triton'] = None", "import triton; triton.__version__ = '3.5.1'")
    )
    def test_without_a_triton_of_use(self, absent: str) -> None:
        """Importing d2lops works, and so do the other kernels."""
        script = f"""
import sys
import torch
{absent}
import d2lops
print(len(d2lops.functional.dropout(torch.ones(3))))
with d2lops.backend("triton"):
    pass
"""
        result = run_python("-c", script)
        assert result.stdout == "3\n"
        assert "ImportError: d2lops's Triton kernels need triton 3.6 or later" in result.stderr

    def test_chosen_by_the_environment_without_one(self) -> None:
        script = """
import sys
sys.modules["triton"] = None
import torch, d2lops
print("imported")
d2lops.functional.dropout(torch.ones(3))
"""
        result = run_python("-c", script, D2LOPS_BACKEND="triton")
        assert result.stdout == "imported\n"
        assert "need triton 3.6 or later" in result.stderr

    def test_what_triton_lacks_is_said(self) -> None:
        """NumPy, which d2lops itself and compiled kernels do without."""
        script = """
import sys
sys.modules["numpy"] = None
import d2lops
d2lops.backend("triton").__enter__()
"""
        result = run_python("-c", script, TRITON_INTERPRET="1")
        assert "ModuleNotFoundError: import of numpy" in result.stderr


class TestCompiler:
    """With tensors that pretend to be on a GPU, which is all that tracing needs."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        driver = SimpleNamespace(get_current_target=lambda: target)
        monkeypatch.setattr(device, "_device", lambda index: HOPPER)
        monkeypatch.setattr(torch.cuda, "device_of", contextlib.nullcontext)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
        before = triton.runtime.driver._active
        triton.runtime.driver.set_active(driver)
        yield
        triton.runtime.driver._active = before

    @pytest.mark.parametrize("size", ((2, 3, 9, 16), (8, 64, 56, 56)))
    def test_sees_every_kernel_and_what_it_writes(self, size: tuple[int, ...]) -> None:
        with FakeTensorMode():
            image = torch.empty(size, device="cuda", dtype=torch.bfloat16)
            graph = aot_export_module(EveryRawOperator(), [image], trace_joint=False)[0].graph
        kernels = [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]
        assert len(kernels) >= len(operators.LAUNCHERS)
        assert not any("d2lops" in str(node.target) for node in graph.nodes)
        for node in kernels:
            written = [node.kwargs["kwargs"][name] for name in node.kwargs["tensors_to_clone"]]
            assert written and all("empty" in str(tensor.target) for tensor in written)

    def test_copies_kernels_with_all_that_they_name(self, tmp_path: Path) -> None:
        """Each into a file of its own, where infinity, as it is printed, would be a name."""
        copied = wrapper.user_defined_triton_kernel_transitive_closure_source_code
        modules = [module for name, module in sys.modules.items() if "triton_kernels." in name]
        values = [value for module in modules for value in vars(module).values()]
        kernels = {value for value in values if isinstance(value, triton.JITFunction)}
        assert kernels
        for number, kernel in enumerate(kernels):
            path = tmp_path / f"kernel_{number}.py"
            path.write_text(f"import triton\nimport triton.language as tl\n{copied(kernel)}")
            runpy.run_path(str(path))


class EveryRawOperator(torch.nn.Module):
    """Derivatives included. Not by autograd: for GPUs it has threads, which need one."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return every_raw_operator(x)


def every_raw_operator(x: Tensor) -> list[Tensor]:
    raw = torch.ops.d2lops_triton
    _, channels, height, width = x.shape
    weight, bias = x.new_empty(24, channels, 3, 3), x.new_empty(24)
    window = [1, 1, 1, 1, 1, 1, 1, 1, 1]
    y = raw.corr2d(x, weight, bias, window, True)
    depthwise, grouped = x.new_empty(channels, 1, 3, 3), [*window[:-1], channels]
    z = raw.corr2d(x, depthwise, None, grouped, False)
    rows, matrix = x.reshape(-1, width), x.new_empty(19, width)
    h = raw.linear_relu(rows, matrix, x.new_empty(19))
    pool = [2, 2, 2, 2, 0, 0, 0, 0]
    (most, argmax), average = raw.max_pool2d(x, [*pool, 1, 1], False), (pool, True, None)
    most_of_all, place = raw.adaptive_max_pool2d(x, 2, 2)
    return [
        raw.corr2d_input_grad(y, y, weight, height, width, window),
        raw.corr2d_weight_grad(y, y, x, 3, 3, window),
        raw.corr2d_input_grad(z, None, depthwise, height, width, grouped),
        raw.corr2d_weight_grad(z, None, x, 3, 3, grouped),
        raw.bias_grad(y, y),
        raw.linear(rows, matrix, None),
        raw.linear_input_grad(h, h, matrix),
        raw.linear_weight_grad(h, h, rows),
        raw.max_pool2d_gather(x, argmax, [*pool, 1, 1]),
        raw.max_pool2d_scatter(most, argmax, height, width, [*pool, 1, 1]),
        raw.max_pool2d_indices(argmax, height, width, [*pool, 1, 1]),
        raw.adaptive_max_pool2d_gather(x, place),
        raw.adaptive_max_pool2d_scatter(most_of_all, place, height, width),
        raw.adaptive_max_pool2d_indices(place, height, width),
        raw.avg_pool2d_adjoint(raw.avg_pool2d(x, *average, False), height, width, *average),
        raw.adaptive_avg_pool2d_adjoint(raw.adaptive_avg_pool2d(x, 1, 1), height, width),
        raw.dropout(x, x.new_empty((), dtype=torch.int64), 0.5),
        raw.fma_chain(x, 2),
    ]


class TestBoxes:
    """Of positions, that tiles of corr2d are made of."""

    @pytest.mark.parametrize("sizes", ((1, 1, 1), (3, 5, 7), (64, 14, 14), (2, 28, 57)))
    @pytest.mark.parametrize("size", (1, 64, 256))
    def test_are_as_few_as_can_be(self, sizes: tuple[int, int, int], size: int) -> None:
        powers = [2**i for i in range(9)]
        possible = [box for box in itertools.product(powers, repeat=3) if math.prod(box) == size]
        box = taps.box_of(*sizes, size)
        assert box in possible
        fewest = min(taps.boxes_in(sizes, other) for other in possible)
        assert taps.boxes_in(sizes, box) == fewest

    def test_are_looked_for_once(self) -> None:
        """The search takes longer than all else that a launch takes."""
        taps.box_of(11, 12, 13, 128)
        before = taps._box_of.cache_info()
        assert taps.box_of(11, 12, 13, 128) == taps._box_of.__wrapped__(11, 12, 13, 128)
        after = taps._box_of.cache_info()
        assert (after.hits, after.misses) == (before.hits + 1, before.misses)


class TestChoice:
    """Of a configuration, on a GPU that is only thought of."""

    class Kernel:
        __name__, cache_key = "kernel", "source"

    KERNEL = Kernel()
    X = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float32)
    CONFIGS = tuple(triton.Config({"BLOCK": block}) for block in (1, 2, 4))

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[list[int]]:
        self.ran, self.measured, self.allowed = [], [], True

        def milliseconds(run: Callable, config: Any) -> float:
            self.measured.append(config.kwargs["BLOCK"])
            return abs(config.kwargs["BLOCK"] - 2)

        monkeypatch.setattr(launch, "_fastest", {})
        monkeypatch.setattr(launch, "_milliseconds", milliseconds)
        monkeypatch.setattr(launch, "_may_measure", lambda x: self.allowed)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
        monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
        yield

    def launch(self, *problem: int | str, x: Any = X, configs: tuple = CONFIGS) -> int:
        launch.launch_fastest(self.ran.append, configs, self.KERNEL, problem, x)
        return self.ran[-1].kwargs["BLOCK"]

    def test_fastest_of_each_kind_of_problem(self) -> None:
        assert self.launch(100, "layout") == 2 and self.measured == [1, 2, 4]
        assert self.launch(127, "layout") == 2 and len(self.measured) == 3  # the same power of two
        assert self.launch(128, "layout") == 2 and len(self.measured) == 6
        assert self.launch(127, "other") == 2 and len(self.measured) == 9

    def test_is_kept_on_disk(self) -> None:
        assert self.launch(100) == 2
        launch._fastest.clear()
        self.allowed = False
        assert self.launch(100) == 2 and len(self.measured) == 3

    def test_best_guess_where_nothing_may_be_measured(self) -> None:
        self.allowed = False
        assert self.launch(100) == 1
        self.allowed = True
        on_cpu = SimpleNamespace(**{**vars(self.X), "is_cuda": False})
        assert self.launch(100, x=on_cpu) == 1
        assert self.launch(100, configs=self.CONFIGS[2:]) == 4
        assert not self.measured

    def test_what_fails_is_not_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()

        def run(config: Any) -> None:
            raise RuntimeError("out of resources")

        monkeypatch.setattr(triton.testing, "do_bench", lambda call, **_: call())
        assert launch._milliseconds(run, self.CONFIGS[0]) == float("inf")

    @pytest.mark.parametrize("traced", (False, True))
    def test_only_where_it_can_be_measured(
        self, traced: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        x = torch.nn.Parameter(torch.ones(1))
        if traced:
            with FakeTensorMode() as mode:
                x = mode.from_tensor(torch.ones(1))
        assert launch._may_measure(x) != traced
        monkeypatch.setenv("D2LOPS_TRITON_TUNE", "0")
        assert not launch._may_measure(x)
