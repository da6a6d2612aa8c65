"""What only a GPU can show: the CPU's masks, exact products, graphs, streams, the compiler.

The operators' own tests run on a GPU too: `D2LOPS_TEST_DEVICE=cuda pytest`.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from d2lops import functional as F
from d2lops import nn
from tests.accuracy import DTYPES, layouts, outputs_and_gradients
from tests.device import integers, normal
from tests.every_operator import every_operator
from tests.isolated import PACKAGE, run_python
from tests.test_corr2d import TABLE, Case, torch_conv2d
from tests.test_dropout import fingerprint
from tests.threads import bits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Around the tiles of the matrix products, and some of them whole.
SIZES = [
    *itertools.product((1, 8, 63, 129), repeat=3),
    *((4104, 136, 72), (129, 4104, 65), (65, 1000, 4104), (512, 512, 512)),
]
LAYERS = {
    **TABLE,
    "VGG": Case((3, 64, 28, 30), (128, 64, 3, 3), {"padding": 1}),
    "ResNet, down": Case((2, 128, 28, 28), (256, 128, 3, 3), {"padding": 1, "stride": 2}),
    "ResNet, 1 x 1": Case((5, 256, 14, 14), (64, 256, 1, 1)),
    "ResNet, first": Case((2, 3, 64, 60), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "depthwise, 96": Case((2, 96, 30, 28), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
}
# float32 twice: with and without TF32, which holds small integers exactly.
PRECISIONS = [*((dtype, False) for dtype in DTYPES), (torch.float32, True)]
precisions = pytest.mark.parametrize("dtype, tf32", PRECISIONS, ids=str)


@contextmanager
def tf32_allowed(allowed: bool) -> Iterator[None]:
    """For products and convolutions, by torch's own switches; in other tests it is not."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch in switches:
            switch.allow_tf32 = False


def small_integers(*sizes: tuple[int, ...]) -> list[Tensor]:
    """Products and sums of so few bits that every dtype's accumulator holds them exactly."""
    return [integers(-4, 4, *size, seed=i).double().cpu() for i, size in enumerate(sizes)]


def assert_exact(
    ours: Callable, theirs: Callable, dtype: torch.dtype, *inputs: Tensor, **layout: object
) -> None:
    """Output and gradients are what torch computes in float64 on the CPU, rounded once."""
    gradient = small_integers(theirs(*inputs).shape)[0]
    expected = outputs_and_gradients(theirs, inputs, gradient)
    moved = [
        t.to("cuda", dtype).to(**layout) if t.dim() == 4 else t.to("cuda", dtype) for t in inputs
    ]
    results = outputs_and_gradients(ours, moved, gradient.to("cuda", dtype))
    for i, (result, right) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(result.cpu(), right.to(dtype)), f"result {i} of {len(results)}"


class TestSameAsOnTheCPU:
    def test_dropout_of_every_dtype_size_and_stride(self) -> None:
        assert fingerprint("cuda") == fingerprint("cpu")

    @pytest.mark.parametrize("p", (0.1, 0.5, 0.999))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", (1, 5, 4099, 100_003, 2**20 + 1))
    def test_masks(self, size: int, dtype: torch.dtype, p: float) -> None:
        on_cpu = torch.ones(3, size, dtype=dtype, device="cpu")
        on_gpu = on_cpu.to("cuda")
        for view in (
            lambda x: x,
            lambda x: x.t(),
            lambda x: x[1],
            lambda x: x[:, 1:],
            lambda x: x[:, ::3],
            lambda x: x[:1].expand(7, -1),
        ):
            ours, expected = (F.dropout(view(x), p, seed=7) for x in (on_gpu, on_cpu))
            assert torch.equal(ours.cpu() != 0, expected != 0)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_masks_of_images(self, dtype: torch.dtype) -> None:
        expected = F.dropout(torch.ones(3, 17, 9, 11, dtype=dtype, device="cpu"), 0.4, seed=3)
        for name, x in layouts(torch.ones(3, 17, 9, 11, dtype=dtype, device="cuda")).items():
            y = F.dropout(x, 0.4, seed=3)
            assert torch.equal(y.cpu(), expected), name
            assert y.stride() == torch.empty_like(x).stride(), name


class TestExactProducts:
    """Integers leave no room for a tolerance: a number fetched from the wrong place shows."""

    @precisions
    @pytest.mark.parametrize("relu", (False, True), ids=("linear", "linear_relu"))
    def test_linear(self, relu: bool, dtype: torch.dtype, tf32: bool) -> None:
        def theirs(*inputs: Tensor) -> Tensor:
            y = torch.nn.functional.linear(*inputs)
            return y.relu() if relu else y

        with tf32_allowed(tf32):
            for m, k, n in SIZES:
                inputs = small_integers((m, k), (n, k), (n,))
                assert_exact(F.linear_relu if relu else F.linear, theirs, dtype, *inputs)

    @precisions
    @pytest.mark.parametrize(
        "memory_format", (torch.contiguous_format, torch.channels_last), ids=str
    )
    @pytest.mark.parametrize("name", LAYERS)
    def test_corr2d(
        self, name: str, memory_format: torch.memory_format, dtype: torch.dtype, tf32: bool
    ) -> None:
        case = LAYERS[name]
        inputs = small_integers(case.x, case.weight, case.weight[:1])
        with tf32_allowed(tf32):
            assert_exact(
                lambda *t: F.conv2d(*t, **case.arguments),
                lambda *t: torch_conv2d(*t, **case.arguments),
                dtype,
                *inputs,
                memory_format=memory_format,
            )

    @precisions
    def test_the_same_bits_twenty_times(self, dtype: torch.dtype, tf32: bool) -> None:
        """Random numbers, whose sums depend on the order: a race would show sooner or later."""
        x = normal(8, 64, 56, 52).to("cuda", dtype).to(memory_format=torch.channels_last)
        with tf32_allowed(tf32):
            expected = every_operator(x)
            for _ in range(20):
                assert_same_bits(every_operator(x), expected)


def assert_same_bits(results: dict[str, list[Tensor]], expected: dict[str, list[Tensor]]) -> None:
    for name, tensors in expected.items():
        for i, (ours, right) in enumerate(zip(results[name], tensors, strict=True)):
            assert torch.equal(bits(ours), bits(right)), f"{name}, result {i}"


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(3, 24, 19, 23).to("cuda", dtype)


class TestStreamsAndMemory:
    def test_kernels_run_on_the_current_stream(self) -> None:
        """On another one they would not wait for the image, which comes late."""
        x = image()
        expected = every_operator(x)
        late = torch.full_like(x, torch.nan)
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
            late.copy_(x)
            results = every_operator(late)
        stream.synchronize()
        assert_same_bits(results, expected)

    def test_what_ran_before_plays_no_part(self) -> None:
        """Dtypes and sizes in turns: nothing that is remembered belongs to another call."""
        images = [image(dtype) for dtype in DTYPES]
        images += [x[:2, :8, :, :17] for x in images]
        expected = [every_operator(x) for x in images]
        for x, results in (*zip(images, expected, strict=True),) * 2:
            assert_same_bits(every_operator(x), results)

    def test_memory_is_given_back(self) -> None:
        x = image(torch.bfloat16)
        every_operator(x)
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            every_operator(x)
        assert torch.cuda.memory_allocated() == before

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    def test_the_tensors_device_counts_not_the_current_one(self) -> None:
        expected = every_operator(image())
        results = every_operator(image().to("cuda:1"))
        assert torch.cuda.current_device() == 0
        for name, tensors in results.items():
            assert all(t.device == torch.device("cuda:1") for t in tensors)
            results[name] = [t.to("cuda:0") for t in tensors]
        assert_same_bits(results, expected)


def captured(step: Callable) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph of what `step` does, and the tensors that each replay fills."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever is set up on first use is no part of the graph
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


class TestGraphs:
    def test_each_replay_draws_fresh_masks(self) -> None:
        x = torch.ones(100_003, device="cuda", requires_grad=True)

        def step() -> tuple[Tensor, Tensor]:
            y = F.dropout(x)
            return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]

        graph, (y, gradient) = captured(step)

        def replay() -> Tensor:
            graph.replay()
            assert torch.equal(y, gradient)
            assert {*y.unique().tolist()} == {0.0, 2.0}
            return y.clone()

        torch.manual_seed(1)
        first, second = replay(), replay()
        assert not torch.equal(first, second)
        torch.manual_seed(1)
        assert torch.equal(replay(), first)

    def test_every_operator(self) -> None:
        x = image(torch.bfloat16)
        expected = every_operator(2 * x)
        graph, results = captured(lambda: every_operator(x))
        x.mul_(2)
        graph.replay()
        assert_same_bits(results, expected)

    def test_training_steps(self) -> None:
        torch.manual_seed(0)
        batch, labels = normal(16, 3, 20, 20).to("cuda"), integers(0, 9, 16).to("cuda")
        eager = network().to("cuda")
        graphed = network().to("cuda")
        graphed.load_state_dict(eager.state_dict())

        def step(net: torch.nn.Module) -> Tensor:
            loss = torch.nn.functional.cross_entropy(net(batch), labels)
            parameters = list(net.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-0.1)
            return loss.detach()

        graph, loss = captured(lambda: step(graphed))
        graphed.load_state_dict(eager.state_dict())  # the steps before the capture trained it
        for _ in range(5):
            expected = step(eager)
            graph.replay()
            torch.testing.assert_close(loss, expected)
        for ours, theirs in zip(graphed.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def network() -> torch.nn.Sequential:
    """Every kind of layer but dropout, for images of 3 x 20 x 20; on the CPU."""
    with torch.device("cpu"):
        return nn.Sequential(
            nn.ConvReLU2d(3, 16, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, stride=2, padding=(1, 0, 0, 1)),
            nn.AvgPool2d(3, 1, 1),
            nn.AdaptiveMaxPool2d((4, 3)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.LinearReLU(96, 32),
            nn.Linear(32, 10),
        )


class TestLayers:
    def test_a_network_that_moved_computes_the_same(self) -> None:
        net, batch = network(), normal(4, 3, 20, 20).cpu()
        expected = [net(batch), *torch.autograd.grad(net(batch).square().sum(), net.parameters())]
        net.to("cuda")
        y = net(batch.to("cuda"))
        results = [y, *torch.autograd.grad(y.square().sum(), net.parameters())]
        for ours, right in zip(results, expected, strict=True):
            torch.testing.assert_close(ours.cpu(), right, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        "layer, size",
        (
            (nn.Conv2d(2, 3, 3, stride=2, padding=(1, 0, 2, 1)), (2, 2, 5, 6)),
            (nn.ConvReLU2d(2, 3, 2), (2, 2, 4, 5)),
            (nn.MaxPool2d(3, 2, 1), (2, 2, 5, 6)),
            (nn.AvgPool2d(2), (2, 2, 5, 6)),
            (nn.AdaptiveAvgPool2d(2), (2, 2, 5, 6)),
            (nn.Linear(5, 3), (4, 5)),
            (nn.LinearReLU(5, 3), (4, 5)),
        ),
        ids=lambda value: type(value).__name__,
    )
    def test_derivatives_of_first_and_second_order(
        self, layer: torch.nn.Module, size: tuple
    ) -> None:
        layer = layer.to("cuda", torch.float64)
        x = normal(*size).to("cuda", torch.float64).requires_grad_()
        assert gradcheck(layer, x)
        assert gradgradcheck(layer, x)

    @pytest.mark.parametrize("mode", ("default", "reduce-overhead"))
    def test_compiled(self, mode: str) -> None:
        """The second mode puts what it compiles into CUDA graphs."""
        torch._dynamo.reset()
        net = network().to("cuda")
        compiled = torch.compile(net, fullgraph=True, mode=mode)
        for seed in range(4):  # a graph is captured in the second or third call
            batch = normal(4, 3, 20, 20, seed=seed).to("cuda")
            results = [
                torch.autograd.grad(module(batch).square().sum(), net.parameters())
                for module in (compiled, net)
            ]
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


class TestErrors:
    def test_devices_may_not_be_mixed(self) -> None:
        x, weight = normal(1, 2, 4, 4).to("cuda"), normal(3, 2, 3, 3).cpu()
        with pytest.raises(RuntimeError, match="weight is on cpu, but input is on cuda"):
            F.conv2d(x, weight)
        with pytest.raises(
            RuntimeError, match="seed must be an int64 tensor of one element on cuda"
        ):
            F.dropout(x, seed=torch.tensor(1, device="cpu"))

    def test_without_the_library(self, tmp_path: Path) -> None:
        package = shutil.copytree(PACKAGE, tmp_path / "d2lops")
        (package / "lib" / "cuda.so").unlink()
        script = """
import torch, d2lops
d2lops.functional.dropout(torch.ones(3))
try:
    d2lops.functional.dropout(torch.ones(3, device="cuda"))
except (ImportError, NotImplementedError) as error:
    print(error)
"""
        result = run_python("-c", script, path=package.parent)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("d2lops has no CUDA kernels here: not built")
