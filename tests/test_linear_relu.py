"""linear and linear_relu: three matrix products, in every size and layout; their errors."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2lops import functional as F
from d2lops.ops.linear_relu import LinearInputGrad, LinearWeightGrad
from tests import reference
from tests.accuracy import DTYPES, assert_as_accurate_as_torch, away_from_zero, differentiates
from tests.arguments import assert_on_one_device, assert_refused_as_by_torch, without_kernels
from tests.device import INTERPRETED, cpu_only, normal, on_cpu, raw
from tests.isolated import assert_survives
from tests.memory import available_memory, guarded
from tests.threads import bits, threads

pytestmark = pytest.mark.usefixtures("one_thread")

# (M, K, N): one less and one more than what the kernel cuts into: vectors of 2 ... 16 numbers, 4
# and 8 rows of a piece, 12 ... 48 columns, blocks of 192, tiles of 384 rows and 480 columns.
SIZES = [
    (1, 1, 1),
    *((7, 8, 9), (8, 9, 7), (9, 7, 8)),
    *((15, 16, 17), (16, 17, 15), (17, 15, 16)),
    *((47, 48, 49), (48, 49, 47), (49, 47, 48)),
    *((1, 191, 3), (3, 192, 1), (2, 193, 17), (5, 385, 7), (191, 3, 193), (193, 191, 2)),
    *((383, 5, 2), (385, 3, 17), (3, 17, 479), (17, 2, 481), (385, 2, 481), (481, 3, 385)),
    (2, 961, 5),
]
SIZE_IDS = {"argvalues": SIZES, "ids": lambda size: " x ".join(map(str, size))}
EMPTY = [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 4), (0, 4, 0), (3, 0, 0), (0, 0, 0)]
LAYERS = {
    "linear": (F.linear, torch.nn.functional.linear),
    "linear_relu": (F.linear_relu, lambda *a: torch.nn.functional.linear(*a).relu()),
}
BOTH = {"argvalues": LAYERS.values(), "ids": LAYERS.keys()}


def tensors(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    m, k, n = size
    return tuple(normal(*s, seed=i).to(dtype) for i, s in enumerate(((m, k), (n, k), (n,))))


def gradient(size: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    return normal(size[0], size[2], seed=3).to(dtype)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same matrix in every memory layout that kernels treat differently, among NaN."""
    rows, columns = x.shape

    def nan(*size: int) -> Tensor:
        return torch.full(size, math.nan, dtype=x.dtype)

    return {
        "contiguous": x.contiguous(),
        "transposed": x.t().contiguous().t(),
        "some rows": nan(2 * rows, columns)[::2].copy_(x),
        "some columns": nan(rows, 2 * columns)[:, ::2].copy_(x),
        "part": nan(rows + 1, columns + 3)[1:, 1:-2].copy_(x),
        "every fourth": nan(4 * columns, rows)[::4].copy_(x.t()).t(),
        "backwards strided": nan(columns, 3 * rows).t()[::3].copy_(x),
    }


def assert_layer_is_accurate(ours: Callable, theirs: Callable, *inputs: Tensor) -> None:
    """Output and all gradients, but for outputs that a ReLU may round either way.

    torch is given contiguous tensors: in bfloat16 it reads the neighbours of strided ones.
    """
    mask = away_from_zero(torch.nn.functional.linear, *inputs)
    assert_as_accurate_as_torch(
        lambda *a: ours(*a) * mask.to(a[0].dtype),
        lambda *a: theirs(*(t.contiguous() for t in a)) * mask.to(a[0].dtype),
        *inputs,
    )


def raw_calls(size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> dict[str, Callable]:
    """Every raw operator on a size, as functions without arguments."""
    x, weight, bias = tensors(size, dtype)
    x, weight, g = (layouts(t)[layout] for t in (x, weight, gradient(size, dtype)))
    y = raw.linear_relu(x, weight, bias)
    calls = {
        "linear": lambda: raw.linear(x, weight, bias),
        "linear, no bias": lambda: raw.linear(x, weight, None),
        "linear_relu": lambda: raw.linear_relu(x, weight, bias),
    }
    for name, mask in (("", None), (", masked", y)):
        calls[f"input_grad{name}"] = lambda y=mask: raw.linear_input_grad(g, y, weight)
        calls[f"weight_grad{name}"] = lambda y=mask: raw.linear_weight_grad(g, y, x)
        calls[f"bias_grad{name}"] = lambda y=mask: raw.bias_grad(g, y)
    return calls


class TestValues:
    @pytest.mark.parametrize("size", ((1, 1, 1), (3, 5, 2), (7, 17, 9), (2, 0, 3)))
    def test_loops(self, size: tuple) -> None:
        x, weight, bias = tensors(size, torch.float64)
        for b in (None, bias):
            torch.testing.assert_close(F.linear(x, weight, b), reference.linear(x, weight, b))
            expected = reference.linear_relu(x, weight, b)
            torch.testing.assert_close(F.linear_relu(x, weight, b), expected)

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", **SIZE_IDS)
    def test_every_size(
        self, size: tuple, dtype: torch.dtype, ours: Callable, theirs: Callable
    ) -> None:
        x, weight, bias = tensors(size, dtype)
        assert_layer_is_accurate(ours, theirs, x, weight, bias)
        assert_layer_is_accurate(ours, theirs, x, weight)

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_layout(self, dtype: torch.dtype, ours: Callable, theirs: Callable) -> None:
        for size in ((7, 9, 17), (49, 33, 18), (3, 197, 50)):
            x, weight, bias = tensors(size, dtype)
            spread = torch.stack((bias, bias), 1)[:, 0]
            for a, b in itertools.product(layouts(x).values(), layouts(weight).values()):
                assert_layer_is_accurate(ours, theirs, a, b, spread)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradients_as_functions_of_any_gradient(self, dtype: torch.dtype) -> None:
        for size in ((7, 9, 17), (49, 33, 18), (3, 197, 50)):
            x, weight, _ = tensors(size, dtype)
            for g in layouts(gradient(size, dtype)).values():
                assert_as_accurate_as_torch(
                    lambda g, w: LinearInputGrad.apply(g, None, w),
                    lambda g, w: g.contiguous() @ w,
                    g,
                    weight,
                )
                assert_as_accurate_as_torch(
                    lambda g, x: LinearWeightGrad.apply(g, None, x),
                    lambda g, x: g.t().contiguous() @ x,
                    g,
                    x,
                )

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("lead", ((), (1,), (5,), (2, 3), (2, 1, 3), (2, 0, 3), (3, 2, 1, 2)))
    def test_any_number_of_dimensions(
        self, lead: tuple, dtype: torch.dtype, ours: Callable, theirs: Callable
    ) -> None:
        _, weight, bias = tensors((1, 9, 4), dtype)
        x = normal(*lead, 9).to(dtype)
        views = [x, x.mT.contiguous().mT] if x.dim() > 1 else [x, x.repeat_interleave(2)[::2]]
        for view in views:
            assert_layer_is_accurate(ours, theirs, view, weight, bias)
            assert_layer_is_accurate(ours, theirs, view, weight[0])
            for one in (bias[0], bias[:1]):
                assert_layer_is_accurate(ours, theirs, view, weight, one)
        if len(lead) != 1:  # torch refuses the bias for a matrix
            assert_layer_is_accurate(ours, theirs, x, weight[0], bias[0])

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    @pytest.mark.parametrize("size", EMPTY, ids=str)
    def test_empty(self, size: tuple, ours: Callable, theirs: Callable) -> None:
        """Sums of no terms are zero: in the output, but for its bias, and in gradients."""
        x, weight, bias = tensors(size, torch.float32)
        for lead in ((), (2,), (0, 2)):
            for inputs in (
                (x.expand(*lead, *x.shape), weight),
                (x.expand(*lead, *x.shape), weight, bias),
            ):
                leaves = [t.detach().clone().requires_grad_() for t in inputs]
                outputs = [f(*leaves) for f in (ours, theirs)]
                assert outputs[0].shape == outputs[1].shape and torch.equal(*outputs)
                gradients = (torch.autograd.grad(y.sum(), leaves) for y in outputs)
                assert all(map(torch.equal, *gradients))

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_expanded_tensors(self, ours: Callable, theirs: Callable) -> None:
        x, weight, bias = tensors((19, 21, 50), torch.float32)
        for inputs in (
            (x[:1].expand(19, 21), weight, bias),
            (x[:, :1].expand(19, 21), weight, bias),
            (x[:1, :1].expand(19, 21), weight, bias),
            (x[:1].expand(2, 3, 21), weight, bias),
            (x, weight[:1].expand(50, 21), bias),
            (x, weight[:, :1].expand(50, 21), bias),
            (x, weight, bias[:1].expand(50)),
        ):
            assert_layer_is_accurate(ours, theirs, *inputs)

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_expanded_gradients(self, ours: Callable, theirs: Callable) -> None:
        leaves = [t.requires_grad_() for t in tensors((19, 21, 50), torch.float64)]
        y = ours(*leaves)
        g = gradient((19, 21, 50), torch.float64)
        for view in (g[:1, :1], g[:1], g[:, :1]):
            view = view.expand(19, 50)
            result = torch.autograd.grad(y, leaves, view, retain_graph=True)
            expected = torch.autograd.grad(theirs(*leaves), leaves, view.contiguous())
            torch.testing.assert_close(result, expected)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_masking_while_reading_is_masking_before(self, dtype: torch.dtype) -> None:
        """Bit for bit, whatever the layouts of the gradient and of the ReLU's output."""
        for size in ((1, 1, 1), (7, 9, 17), (49, 33, 18), (3, 197, 50)):
            x, weight, bias = tensors(size, dtype)
            y = raw.linear_relu(x, weight, bias)
            image = gradient(size, dtype)
            before = layouts(torch.where(y <= 0, 0, image))
            for name, g in layouts(image).items():
                for mask in layouts(y).values():
                    for masked, plain in (
                        (
                            raw.linear_input_grad(g, mask, weight),
                            raw.linear_input_grad(before[name], None, weight),
                        ),
                        (
                            raw.linear_weight_grad(g, mask, x),
                            raw.linear_weight_grad(before[name], None, x),
                        ),
                        (raw.bias_grad(g, mask), raw.bias_grad(before[name], None)),
                    ):
                        assert torch.equal(masked, plain), name

    def test_lazily_negated_tensor(self) -> None:
        x, weight = torch.randn(5, 4, dtype=torch.complex64).conj().imag, torch.randn(3, 4)
        assert x.is_neg()
        assert torch.equal(F.linear(x, weight), F.linear(x.clone(), weight))

    @pytest.mark.skipif(available_memory() < 14 * 2**30, reason="needs 14 GiB of free memory")
    def test_beyond_two_to_the_31_elements(self) -> None:
        rows, columns = 2**16 + 1, 2**15
        x = torch.empty(rows * columns, dtype=torch.bfloat16)  # filled only where it is looked at
        x[::columns] = 1
        x[-columns] = 42
        weight = torch.full((2, 1), 2, dtype=torch.bfloat16)
        y = F.linear(x.view(rows, columns)[:, :1], weight)
        assert (y[:-1] == 2).all() and y[-1].tolist() == [84, 84]


class TestSpecialValues:
    @pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_reach_what_they_reach_in_torch(
        self, ours: Callable, theirs: Callable, dtype: torch.dtype, value: float
    ) -> None:
        size = (9, 17, 50)
        for which, place in ((0, (4, 5)), (1, (49, 16)), (2, (48,))):
            inputs = tensors(size, dtype)
            inputs[which][place] = value
            leaves = [t.requires_grad_() for t in inputs]
            outputs = [f(*leaves) for f in (ours, on_cpu(theirs))]
            pairs = [outputs]
            pairs += zip(
                *(torch.autograd.grad(y, leaves, gradient(size, dtype)) for y in outputs),
                strict=True,
            )
            for our, their in pairs:
                assert torch.equal(our.isnan(), their.isnan())
                assert torch.equal(our.isposinf(), their.isposinf())
                assert torch.equal(our.isneginf(), their.isneginf())

    @pytest.mark.parametrize("value", (math.nan, math.inf))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_gradient_that_relu_masks_is_zero_whatever_it_is(
        self, dtype: torch.dtype, value: float
    ) -> None:
        leaves = [t.requires_grad_() for t in tensors((9, 17, 50), dtype)]
        y = F.linear_relu(*leaves)
        for name in layouts(y):
            special, zero = (
                layouts(torch.where(y > 0, 1, v).to(dtype))[name] for v in (value, 0.0)
            )
            ours = torch.autograd.grad(y, leaves, special, retain_graph=True)
            expected = torch.autograd.grad(y, leaves, zero, retain_graph=True)
            assert all(map(torch.equal, ours, expected)), name

    def test_relu_of_nan_is_nan_and_lets_the_gradient_pass(self) -> None:
        bias = torch.tensor([math.nan, -1.0, math.inf, -math.inf], requires_grad=True)
        y = F.linear_relu(torch.zeros(3, 1), torch.ones(4, 1), bias)
        assert torch.equal(y[0].nan_to_num(7), bias.relu().nan_to_num(7))
        (ours,) = torch.autograd.grad(y.sum(), bias)
        (expected,) = torch.autograd.grad((bias.relu() * 3).sum(), bias)
        assert torch.equal(ours, expected)

    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
    def test_sixteen_bits_are_summed_in_float32(self, dtype: torch.dtype) -> None:
        """4096 ones: in 16 bits the sum would stop growing at 256 or 2048."""
        ones = torch.ones(1, 4096, dtype=dtype)
        assert F.linear(ones, ones).item() == 4096
        assert raw.linear_input_grad(ones, None, ones.t()).item() == 4096
        assert raw.linear_weight_grad(ones.t(), None, ones.t()).item() == 4096
        assert raw.bias_grad(ones.t(), None).item() == 4096


class TestDeterminism:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("layout", ("contiguous", "transposed"))
    def test_number_of_threads_plays_no_part(self, layout: str, dtype: torch.dtype) -> None:
        for size in (*SIZES, (1000, 200, 3), (3, 200, 1000)):
            calls = raw_calls(size, dtype, layout)
            expected = {op: bits(call()) for op, call in calls.items()}
            for count in (2, 3):
                with threads(count):
                    for op, call in calls.items():
                        assert torch.equal(bits(call()), expected[op]), (size, op, count)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_other_rows_play_no_part(self, dtype: torch.dtype) -> None:
        """Four or more rows are multiplied alike; fewer have a kernel of their own."""
        sizes = [size for size in SIZES if size[0] > 4]
        assert sizes
        for size in sizes:
            x, weight, bias = tensors(size, dtype)
            y = F.linear_relu(x, weight, bias)
            for count in {4, max(4, size[0] // 2)}:
                assert torch.equal(F.linear_relu(x[-count:], weight, bias), y[-count:]), size

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_what_was_in_memory_plays_no_part(self, dtype: torch.dtype) -> None:
        """Outputs are born in memory full of NaN, and scratch memory was last used for NaN."""
        reused = 0
        for size in SIZES:
            for op, call in raw_calls(size, dtype, "contiguous").items():
                expected = call()
                nan = torch.full((50, 400), math.nan, dtype=dtype)
                raw.linear(nan, nan, None)
                used = [torch.full_like(expected, math.nan) for _ in range(8)]
                places = {t.data_ptr() for t in used}
                del used
                result = call()
                reused += result.data_ptr() in places
                assert torch.equal(bits(result), bits(expected)), (size, op)
        assert reused > 0  # or this test would say nothing


class TestGradients:
    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_first_and_second_order(self, ours: Callable, theirs: Callable) -> None:
        x, weight, bias = tensors((5, 4, 3), torch.float64)
        for inputs in (
            (x, weight, bias),
            (x, weight),
            (x.t().contiguous().t(), weight.t().contiguous().t(), bias),
            (x[0], weight, bias),
            (x.view(5, 1, 4), weight, bias[0]),
            (x, weight[0]),
            (x, weight[0], bias[0]),
            (x[:0], weight, bias),
            (x[:, :0], weight[:, :0], bias),
        ):
            leaves = [t.detach().requires_grad_() for t in inputs]
            assert differentiates(ours, leaves)

    @pytest.mark.parametrize("size", ((49, 17, 9), (17, 193, 50)))
    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_large(self, ours: Callable, theirs: Callable, size: tuple) -> None:
        leaves = [t.requires_grad_() for t in tensors(size, torch.float64)]
        assert differentiates(ours, leaves, fast=True)

    @pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:])
    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_only_what_is_asked_for(
        self, ours: Callable, theirs: Callable, wanted: tuple[bool, ...]
    ) -> None:
        """No more is computed than that, nor saved than torch saves."""
        inputs = tensors((7, 9, 17), torch.float64)
        leaves = [t.requires_grad_(want) for t, want in zip(inputs, wanted, strict=True)]
        asked = [t for t in leaves if t.requires_grad]
        sizes, gradients = [], []
        for f in (ours, theirs):
            saved = {}

            def pack(t: Tensor, saved: dict = saved) -> Tensor:
                saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                y = f(*leaves)
            sizes.append(sum(saved.values()))
            gradients.append(torch.autograd.grad(y.sum(), asked))
        assert sizes[0] <= sizes[1]
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_functional_transforms(self, ours: Callable, theirs: Callable) -> None:
        inputs = tensors((7, 9, 17), torch.float64)
        g = gradient((7, 9, 17), torch.float64)
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = ours(*leaves)
        expected = torch.autograd.grad(y, leaves, g)
        result = torch.func.grad(lambda *t: (ours(*t) * g).sum(), (0, 1, 2))(*inputs)
        assert all(map(torch.equal, result, expected))
        output, pullback = torch.func.vjp(ours, *inputs)
        assert torch.equal(output, y) and all(map(torch.equal, pullback(g), expected))


class TestCompiler:
    @pytest.mark.parametrize("size", ((7, 9, 17), (0, 9, 4), (3, 0, 4), (3, 4, 0)), ids=str)
    def test_opcheck(self, size: tuple) -> None:
        x, weight, bias = tensors(size, torch.float32)
        y, g = raw.linear_relu(x, weight, bias), gradient(size, torch.float32)
        layout = "transposed" if min(size) > 0 else "contiguous"
        x, weight, g = (layouts(t)[layout] for t in (x, weight, g))
        for b in (None, bias):
            torch.library.opcheck(raw.linear.default, (x, weight, b))
            torch.library.opcheck(raw.linear_relu.default, (x, weight, b))
        for mask in (None, y):
            torch.library.opcheck(raw.linear_input_grad.default, (g, mask, weight))
            torch.library.opcheck(raw.linear_weight_grad.default, (g, mask, x))
            torch.library.opcheck(raw.bias_grad.default, (g, mask))

    @pytest.mark.parametrize("lead", ((), (5,), (2, 3)))
    @pytest.mark.parametrize("ours, theirs", **BOTH)
    def test_traced_equals_eager(self, ours: Callable, theirs: Callable, lead: tuple) -> None:
        torch._dynamo.reset()
        _, weight, bias = tensors((1, 9, 4), torch.float32)
        leaves = [t.requires_grad_() for t in (torch.randn(*lead, 9), weight, bias)]
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        results, expected = compiled(*leaves), ours(*leaves)
        assert torch.equal(results, expected)
        gradients = (torch.autograd.grad(y.square().sum(), leaves) for y in (results, expected))
        assert all(map(torch.equal, *gradients))

    def test_compiled_equals_eager(self) -> None:
        def net(x: Tensor, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
            return F.linear(F.linear_relu(x / 2, weight, bias) * 2, last).square().mean()

        leaves = [torch.randn(s, requires_grad=True) for s in ((7, 9), (17, 9), (17,), (3, 17))]
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True)
        results, expected = compiled(*leaves), net(*leaves)
        torch.testing.assert_close(results, expected)
        torch.testing.assert_close(
            torch.autograd.grad(results, leaves), torch.autograd.grad(expected, leaves)
        )

    def test_one_graph_for_all_sizes(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(F.linear_relu, fullgraph=True, backend="aot_eager", dynamic=True)
        weight = torch.randn(4, 9, requires_grad=True)
        with torch.compiler.set_stance("eager_on_recompile"):
            for rows in (2, 5, 17):
                x = torch.randn(rows, 9)
                assert torch.equal(compiled(x, weight), F.linear_relu(x, weight))


X, WEIGHT, BIAS = tensors((5, 4, 3), torch.float32)
REFUSED = {  # arguments, and what the message says
    "input: list": (([1.0], WEIGHT), "argument 'input' must be Tensor, not list"),
    "input: number": ((X[0, 0], WEIGHT), r"but got \[\] and \[3, 4\]"),
    "input: columns": ((X[:, :3], WEIGHT), r"but got \[5, 3\] and \[3, 4\]"),
    "weight: list": ((X, [1.0]), "argument 'weight' must be Tensor, not list"),
    "weight: number": ((X, WEIGHT[0, 0]), r"but got \[5, 4\] and \[\]"),
    "weight: 3 dimensions": ((X, WEIGHT[None]), r"but got \[5, 4\] and \[1, 3, 4\]"),
    "weight: 1 dimension, size": ((X, WEIGHT[0, :3]), r"but got \[5, 4\] and \[3\]"),
    "weight: dtype": ((X, WEIGHT.double()), r"weight has dtype torch\.float64, but input has"),
    "bias: float": ((X, WEIGHT, 1.0), "argument 'bias' must be Tensor, not float"),
    "bias: size": ((X, WEIGHT, X[0]), r"bias must have one number or 3, but has size \[4\]"),
    "bias: dtype": ((X, WEIGHT, BIAS.double()), r"bias has dtype torch\.float64, but input has"),
}


class TestArguments:
    @pytest.mark.parametrize("name", LAYERS)
    @pytest.mark.parametrize("inputs, message", argvalues=REFUSED.values(), ids=REFUSED.keys())
    def test_refused_as_by_torch(self, inputs: tuple, message: str, name: str) -> None:
        ours, _ = LAYERS[name]
        raised = assert_refused_as_by_torch(ours, torch.nn.functional.linear, message, *inputs)
        assert str(raised.value).startswith(f"{name}(): ")

    @pytest.mark.parametrize("inputs, message", without_kernels(X, WEIGHT, BIAS))
    def test_no_kernel(self, inputs: tuple, message: str) -> None:
        with pytest.raises(NotImplementedError, match=message):
            F.linear(*inputs)

    def test_one_device(self) -> None:
        assert_on_one_device(F.linear, X, WEIGHT, BIAS)

    def test_bias_of_more_dimensions(self) -> None:
        """torch adds it if it can be expanded, though its documentation allows one dimension."""
        with pytest.raises(RuntimeError, match=r"one number or 3, but has size \[5, 3\]"):
            F.linear(X, WEIGHT, torch.ones(5, 3))

    @settings(derandomize=True, max_examples=150, deadline=None, database=None)
    @given(data=st.data())
    def test_anything_agrees_with_torch(self, data: st.DataObject) -> None:
        size = tuple(
            data.draw(st.integers(0, most), name)
            for most, name in zip((9, 40, 60), "MKN", strict=True)
        )
        dtype = data.draw(st.sampled_from(DTYPES), "dtype")
        x, weight, bias = tensors(size, dtype)
        of_x, of_weight = (st.sampled_from(sorted(layouts(t))) for t in (x, weight))
        inputs = [layouts(x)[data.draw(of_x)], layouts(weight)[data.draw(of_weight)]]
        inputs += [bias] * data.draw(st.booleans(), "bias")
        assert_layer_is_accurate(*data.draw(st.sampled_from(sorted(LAYERS.items())))[1], *inputs)


G = torch.ones(5, 3)
NONSENSE = {
    "linear, x of 1 dimension": lambda: raw.linear(X[0], WEIGHT, BIAS),
    "linear, x of 3 dimensions": lambda: raw.linear(X[None], WEIGHT, BIAS),
    "linear, x of other size": lambda: raw.linear(X[:, :3], WEIGHT, BIAS),
    "linear, x of no columns": lambda: raw.linear(X[:, :0], WEIGHT, BIAS),
    "linear, x of other dtype": lambda: raw.linear(X.half(), WEIGHT, BIAS),
    "linear, integers": lambda: raw.linear(X.int(), WEIGHT.int(), None),
    "linear, complex numbers": lambda: raw.linear(X.cfloat(), WEIGHT.cfloat(), None),
    "linear, sparse": lambda: raw.linear(X, WEIGHT.to_sparse(), None),
    "linear, x without data": lambda: raw.linear(X.to("meta"), WEIGHT, None),
    "linear, weight without data": lambda: raw.linear(X, WEIGHT.to("meta"), None),
    "linear, bias without data": lambda: raw.linear(X, WEIGHT, BIAS.to("meta")),
    "linear, bias of other size": lambda: raw.linear_relu(X, WEIGHT, BIAS[:2]),
    "linear, bias of one number": lambda: raw.linear_relu(X, WEIGHT, BIAS[:1]),
    "linear, bias of 2 dimensions": lambda: raw.linear_relu(X, WEIGHT, BIAS[None]),
    "linear, bias of other dtype": lambda: raw.linear_relu(X, WEIGHT, BIAS.double()),
    "linear, None": lambda: raw.linear(None, WEIGHT, BIAS),
    "input_grad, weight of other size": lambda: raw.linear_input_grad(G, None, WEIGHT[:2]),
    "input_grad, weight of other dtype": lambda: raw.linear_input_grad(G, None, WEIGHT.half()),
    "input_grad, g of 1 dimension": lambda: raw.linear_input_grad(G[0], None, WEIGHT),
    "input_grad, y of other size": lambda: raw.linear_input_grad(G, G[:4], WEIGHT),
    "input_grad, y of other rank": lambda: raw.linear_input_grad(G, G[0], WEIGHT),
    "input_grad, y of other dtype": lambda: raw.linear_input_grad(G, G.double(), WEIGHT),
    "input_grad, y without data": lambda: raw.linear_input_grad(G, G.to("meta"), WEIGHT),
    "weight_grad, x of other size": lambda: raw.linear_weight_grad(G, None, X[:4]),
    "weight_grad, x of other dtype": lambda: raw.linear_weight_grad(G, None, X.half()),
    "weight_grad, y of other size": lambda: raw.linear_weight_grad(G, G[:, :2], X),
    "weight_grad, y of other dtype": lambda: raw.linear_weight_grad(G, G.double(), X),
    "bias_grad, 1 dimension": lambda: raw.bias_grad(G[0], None),
    "bias_grad, y of other size": lambda: raw.bias_grad(G, G[:4]),
    "an output beyond all memory": lambda: raw.linear(
        torch.ones(2**40, 0), torch.ones(2**40, 0), None
    ),
}


def touch_guarded(at_end: bool) -> None:
    """In a process of its own: reading beyond a tensor ends it."""
    torch.set_num_threads(1)
    for size, dtype in itertools.product(SIZES, DTYPES[:1] if INTERPRETED else DTYPES):
        x, weight, bias = tensors(size, dtype)
        bias = guarded(bias, at_end)
        for layout in layouts(x):
            a, b = (guarded(layouts(t)[layout], at_end) for t in (x, weight))
            y = raw.linear_relu(a, b, bias)
            g, y = (guarded(layouts(t)[layout], at_end) for t in (gradient(size, dtype), y))
            for mask in (None, y):
                raw.linear_input_grad(g, mask, b)
                raw.linear_weight_grad(g, mask, a)
                raw.bias_grad(g, mask)


class TestRawOperators:
    @pytest.mark.parametrize("call", argvalues=NONSENSE.values(), ids=NONSENSE.keys())
    def test_nonsense_is_refused(self, call: Callable) -> None:
        with pytest.raises(RuntimeError):
            call()

    def test_rows_without_end_of_nothing(self) -> None:
        assert raw.linear(torch.ones(2**40, 0), torch.ones(0, 0), None).shape == (2**40, 0)
        assert raw.linear_weight_grad(torch.ones(2**40, 0), None, torch.ones(2**40, 0)).numel() == 0

    @cpu_only
    @pytest.mark.parametrize("at_end", (True, False), ids=("after", "before"))
    def test_nothing_beyond_a_tensor_is_read(self, at_end: bool) -> None:
        assert_survives(f"from tests import test_linear_relu as t; t.touch_guarded({at_end})")
