"""corr2d: its three maps, in every geometry, dtype and layout; the book's examples; its errors."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2lops import functional as F
from d2lops.ops.bias_grad import BiasGrad
from d2lops.ops.corr2d import Corr2dInputGrad, Corr2dWeightGrad, Window
from tests import reference
from tests.accuracy import (
    DTYPES,
    assert_as_accurate_as_torch,
    away_from_zero,
    differentiates,
    layouts,
)
from tests.arguments import assert_on_one_device, assert_refused_as_by_torch, without_kernels
from tests.device import INTERPRETED, cpu_only, normal, on_cpu, raw
from tests.isolated import assert_survives
from tests.memory import available_memory, guarded
from tests.threads import bits, threads

pytestmark = pytest.mark.usefixtures("one_thread")


class Case(NamedTuple):
    """Sizes of input and weight, and the arguments that go with them."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: dict[str, Any] = {}  # noqa: RUF012

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (self.x, self.weight, self.weight[:1])
        return tuple(normal(*size, seed=i).to(dtype) for i, size in enumerate(sizes))

    @property
    def window(self) -> Window:
        """The arguments as the raw operators take them, worked out anew."""
        pair = {"stride": 1, "dilation": 1, **self.arguments}
        stride, dilation = (
            (value, value) if isinstance(value, int) else value
            for value in (pair["stride"], pair["dilation"])
        )
        padding = self.arguments.get("padding", 0)
        if padding == "valid":
            padding = 0
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, self.weight[2:], strict=True)]
            padding = [part for t in total for part in (t // 2, t - t // 2)]
        elif isinstance(padding, int):
            padding = [padding] * 4
        elif len(padding) == 2:
            padding = [padding[0]] * 2 + [padding[1]] * 2
        return (*stride, *padding, *dilation, self.arguments.get("groups", 1))


CASES = {
    "plain": Case((2, 3, 6, 7), (5, 3, 3, 2)),
    "one number": Case((1, 1, 1, 1), (1, 1, 1, 1)),
    "one row": Case((2, 3, 1, 9), (4, 3, 1, 4), {"padding": (0, 2)}),
    "one column": Case((2, 3, 9, 1), (4, 3, 4, 1), {"stride": (2, 1)}),
    "stride": Case((2, 3, 7, 6), (4, 3, 3, 3), {"stride": 2}),
    "stride, pair": Case((2, 2, 7, 8), (3, 2, 2, 3), {"stride": (3, 1)}),
    "stride > kernel": Case((2, 2, 9, 8), (3, 2, 2, 2), {"stride": 4}),
    "stride > input": Case((2, 2, 5, 4), (3, 2, 3, 3), {"stride": 9, "padding": 1}),
    "padding": Case((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    "padding, pair": Case((2, 3, 5, 4), (4, 3, 5, 3), {"padding": (2, 1)}),
    "padding, sides": Case((2, 3, 5, 4), (4, 3, 3, 3), {"padding": (1, 0, 2, 3)}),
    "padding, one side": Case((2, 3, 5, 4), (4, 3, 2, 2), {"padding": (0, 1, 0, 1)}),
    "padding > kernel": Case((1, 2, 2, 3), (3, 2, 2, 2), {"padding": 4}),
    "padding, sides, stride": Case(
        (2, 3, 5, 6), (4, 3, 3, 3), {"padding": (0, 2, 3, 1), "stride": (2, 3)}
    ),
    "same": Case((2, 3, 5, 6), (4, 3, 4, 3), {"padding": "same"}),
    "same, dilation": Case((2, 3, 5, 6), (4, 3, 2, 2), {"padding": "same", "dilation": (3, 2)}),
    "valid": Case((2, 3, 5, 6), (4, 3, 2, 3), {"padding": "valid", "stride": 2}),
    "dilation": Case((2, 3, 6, 7), (4, 3, 3, 2), {"dilation": 2}),
    "dilation, stride": Case(
        (2, 3, 7, 8), (4, 3, 3, 3), {"dilation": (2, 3), "stride": (3, 2), "padding": 2}
    ),
    "groups": Case((2, 4, 5, 6), (6, 2, 3, 3), {"groups": 2}),
    "depthwise": Case((2, 9, 5, 4), (9, 1, 3, 3), {"groups": 9, "padding": 1}),
    "depthwise, multiplier": Case((2, 3, 5, 6), (6, 1, 2, 3), {"groups": 3, "stride": 2}),
    "1 x 1": Case((2, 5, 3, 7), (4, 5, 1, 1)),
    "1 x 1, stride": Case((2, 3, 6, 5), (4, 3, 1, 1), {"stride": 2}),
    "1 x 1, padding": Case((2, 3, 3, 4), (4, 3, 1, 1), {"padding": (1, 0, 0, 2)}),
    "1 x 1, groups": Case((2, 4, 3, 4), (6, 2, 1, 1), {"groups": 2}),
    "3 x 3, 16 channels": Case((2, 16, 7, 6), (16, 16, 3, 3), {"padding": 1}),
    "kernel = input": Case((2, 3, 5, 4), (4, 3, 5, 4)),
    "kernel = input, groups": Case((2, 4, 3, 4), (6, 2, 3, 4), {"groups": 2}),
    "kernel = input, dilation": Case(
        (2, 3, 3, 3), (4, 3, 3, 3), {"dilation": 2, "padding": (0, 2, 0, 2)}
    ),
    "all at once": Case(
        (2, 4, 8, 7),
        (6, 2, 3, 2),
        {"stride": (3, 2), "padding": (2, 1, 1, 3), "dilation": (2, 3), "groups": 2},
    ),
}

# One less and one more than what kernels cut into: vectors of 2 ... 16 numbers, 4 and 8 rows of a
# piece, 12 ... 48 columns, blocks of 192, tiles of 384 and 480, chunks of 1024 pixels.
SIZES = {
    "1 channel, 47 pixels": Case((1, 1, 1, 47), (1, 1, 1, 1)),
    "3 channels, 48 pixels": Case((1, 3, 6, 8), (7, 3, 1, 1)),
    "8 channels, 49 pixels": Case((1, 8, 7, 7), (8, 8, 1, 1)),
    "9 channels, 7 and 17 wide": Case((2, 9, 7, 17), (9, 9, 3, 3), {"padding": 1}),
    "widths 15, 16, 17": Case((2, 3, 3, 17), (15, 3, 2, 2), {"padding": (0, 0, 0, 0)}),
    "191 deep": Case((1, 191, 3, 5), (17, 191, 1, 1)),
    "192 deep": Case((1, 64, 3, 5), (17, 64, 1, 3)),
    "193 deep": Case((2, 193, 3, 5), (3, 193, 1, 1)),
    "two blocks and one more": Case((1, 7, 12, 9), (5, 7, 11, 5)),
    "193 channels out": Case((1, 3, 5, 5), (193, 3, 3, 3), {"padding": 1}),
    "385 channels out": Case((1, 2, 3, 7), (385, 2, 2, 2)),
    "479 pixels": Case((1, 2, 1, 479), (9, 2, 1, 1)),
    "481 pixels": Case((1, 2, 13, 37), (9, 2, 3, 3), {"padding": 1}),
    "961 pixels": Case((1, 3, 31, 31), (8, 3, 1, 1)),
    "481 taps": Case((1, 160, 4, 7), (5, 160, 3, 3)),
    "1023 pixels": Case((3, 2, 11, 31), (3, 2, 3, 3), {"padding": 1}),
    "2049 pixels": Case((1, 2, 3, 683), (9, 2, 3, 3), {"padding": 1}),
    "5 chunks": Case((5, 3, 33, 35), (4, 3, 5, 5), {"padding": 2}),
    "33 -> 97 channels, 3 x 3": Case((2, 33, 7, 9), (97, 33, 3, 3), {"padding": 1}),
    "97 -> 99 channels, stride": Case((2, 97, 9, 8), (99, 97, 2, 3), {"stride": 2}),
    "37 images of 3 x 3": Case((37, 3, 3, 3), (17, 3, 5, 5), {"padding": 2}),
    "19 images of 5 x 4, in groups": Case((19, 6, 5, 4), (66, 3, 2, 3), {"groups": 2}),
    "23 images, stride": Case((23, 5, 9, 7), (33, 5, 3, 3), {"stride": 2, "padding": 1}),
    "many strides": Case((2, 9, 37, 41), (8, 9, 3, 3), {"stride": 2, "padding": 1}),
}

# What the transforms of winograd.h cut into: tiles of 2 x 2, 64 or more channels, 48 or 144
# tiles, images that end inside a task, 128 outputs and 2048 tiles of the weight gradient.
TRANSFORMED = {
    "5 x 9 pixels": Case((3, 17, 5, 9), (19, 17, 3, 3), {"padding": 1}),
    "no padding": Case((2, 16, 8, 9), (18, 16, 3, 3)),
    "padding, sides": Case((2, 16, 6, 7), (16, 16, 3, 3), {"padding": (0, 2, 3, 1)}),
    "65 -> 33 channels": Case((1, 65, 7, 8), (33, 65, 3, 3), {"padding": 1}),
    "129 -> 16 channels": Case((2, 129, 6, 6), (16, 129, 3, 3), {"padding": 1}),
    "16 -> 131 channels": Case((2, 16, 7, 7), (131, 16, 3, 3), {"padding": 1}),
    "groups": Case((2, 34, 7, 6), (36, 17, 3, 3), {"padding": 1, "groups": 2}),
    "157 tiles across": Case((1, 16, 3, 313), (16, 16, 3, 3), {"padding": 1}),
    "2178 tiles": Case((2, 16, 66, 65), (16, 16, 3, 3), {"padding": 1}),
    "3 x 3 in a phase": Case((2, 17, 9, 12), (18, 17, 5, 5), {"stride": 2, "padding": (1, 2)}),
    "3 x 3 in phases down": Case((1, 16, 17, 9), (17, 16, 9, 3), {"stride": (3, 1)}),
}
SIZES.update({f"transformed: {name}": case for name, case in TRANSFORMED.items()})

# What Hopper fetches in boxes of pixels and blocks of 64 channels (triton_kernels/corr2d_tma.py).
BOXED = {
    "65 -> 130 channels": Case((3, 65, 7, 9), (130, 65, 3, 3), {"padding": 1}),
    "stride": Case((2, 64, 9, 6), (66, 64, 2, 2), {"stride": 2, "padding": (1, 2)}),
    "stride, dilation": Case(
        (3, 80, 8, 7), (64, 80, 2, 3), {"stride": (2, 3), "dilation": (4, 3), "padding": (1, 5)}
    ),
    "stride > kernel": Case((5, 64, 7, 5), (72, 64, 1, 1), {"stride": (2, 3)}),
    "stride > input": Case((2, 64, 2, 3), (64, 64, 2, 1), {"stride": 4, "padding": (1, 0)}),
    "groups": Case((2, 128, 5, 4), (140, 64, 2, 2), {"groups": 2, "padding": (0, 1)}),
    "padding > kernel": Case((2, 64, 1, 2), (64, 64, 2, 2), {"padding": 3}),
}
SIZES.update({f"boxed: {name}": case for name, case in BOXED.items()})

TABLE = CASES if INTERPRETED else {**CASES, **SIZES}
CASE_IDS = {"argvalues": CASES.values(), "ids": CASES.keys()}


def torch_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """torch's, which pads all sides of an axis alike: four numbers go to `pad` first."""
    if isinstance(padding, tuple) and len(padding) == 4:
        top, bottom, left, right = padding
        x, padding = torch.nn.functional.pad(x, (left, right, top, bottom)), 0
    return torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)


def assert_layer_is_accurate(case: Case, relu: bool, *tensors: Tensor) -> None:
    """conv2d or conv_relu2d of (x, weight) or (x, weight, bias): output and all gradients."""
    if relu:
        mask = away_from_zero(lambda *inputs: torch_conv2d(*inputs, **case.arguments), *tensors)
        assert_as_accurate_as_torch(
            lambda *inputs: F.conv_relu2d(*inputs, **case.arguments) * mask.to(inputs[0].dtype),
            lambda *inputs: (
                torch_conv2d(*inputs, **case.arguments).relu() * mask.to(inputs[0].dtype)
            ),
            *tensors,
        )
    else:
        assert_as_accurate_as_torch(
            lambda *inputs: F.conv2d(*inputs, **case.arguments),
            lambda *inputs: torch_conv2d(*inputs, **case.arguments),
            *tensors,
        )


def raw_calls(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> dict[str, Callable]:
    """Every raw operator on a case, as functions without arguments."""
    x, weight, bias = case.tensors(dtype)
    x, weight = layouts(x)[layout], layouts(weight)[layout]
    window = case.window
    y = raw.corr2d(x, weight, bias, window, True)
    g = layouts(normal(*y.shape, seed=3).to(dtype))[layout]
    return {
        "corr2d": lambda: raw.corr2d(x, weight, bias, window, False),
        "corr2d, relu": lambda: raw.corr2d(x, weight, bias, window, True),
        "corr2d, no bias": lambda: raw.corr2d(x, weight, None, window, False),
        **{
            f"{name}{', masked' if mask is not None else ''}": call
            for mask in (None, y)
            for name, call in {
                "input_grad": lambda mask=mask: raw.corr2d_input_grad(
                    g, mask, weight, *x.shape[2:], window
                ),
                "weight_grad": lambda mask=mask: raw.corr2d_weight_grad(
                    g, mask, x, *weight.shape[2:], window
                ),
                "bias_grad": lambda mask=mask: raw.bias_grad(g, mask),
            }.items()
        },
    }


class TestBook:
    """The examples of D2L 7.2 to 7.4, and its loops."""

    X = torch.arange(9.0).reshape(3, 3)
    K = torch.arange(4.0).reshape(2, 2)
    X2 = torch.stack((X, X + 1))
    K2 = torch.stack((K, K + 1))

    def test_cross_correlation(self) -> None:
        assert F.corr2d(self.X, self.K).tolist() == [[19, 25], [37, 43]]

    def test_edge_detection(self) -> None:
        image = torch.ones(6, 8)
        image[:, 2:6] = 0
        kernel = torch.tensor([[1.0, -1.0]])
        assert F.corr2d(image, kernel).tolist() == [[0, 1, 0, 0, 0, -1, 0]] * 6
        assert F.corr2d(image.t(), kernel).tolist() == [[0] * 5] * 8

    def test_learning_a_kernel(self) -> None:
        image = torch.ones(6, 8)
        image[:, 2:6] = 0
        wanted = F.corr2d(image, torch.tensor([[1.0, -1.0]]))
        kernel = torch.zeros(1, 2, requires_grad=True)
        for _ in range(200):
            loss = (F.corr2d(image, kernel) - wanted).square().sum()
            (gradient,) = torch.autograd.grad(loss, kernel)
            with torch.no_grad():
                kernel -= 3e-2 * gradient
        torch.testing.assert_close(kernel.detach(), torch.tensor([[1.0, -1.0]]))

    def test_multiple_input_channels(self) -> None:
        assert F.corr2d(self.X2, self.K2).tolist() == [[56, 72], [104, 120]]

    def test_multiple_output_channels(self) -> None:
        kernels = torch.stack((self.K2, self.K2 + 1, self.K2 + 2))
        expected = [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]
        assert F.corr2d(self.X2, kernels).tolist() == expected

    def test_1x1_is_a_matrix_product(self) -> None:
        x, kernels = torch.randn(3, 4, 5).double(), torch.randn(2, 3, 1, 1).double()
        expected = (kernels.flatten(1) @ x.flatten(1)).reshape(2, 4, 5)
        torch.testing.assert_close(F.corr2d(x, kernels), expected)

    @pytest.mark.parametrize(
        "kernel, padding, stride, expected",
        (
            ((3, 3), 1, 1, (8, 8)),
            ((5, 3), (2, 1), 1, (8, 8)),
            ((3, 3), 1, 2, (4, 4)),
            ((3, 5), (0, 1), (3, 4), (2, 2)),
        ),
    )
    def test_padding_and_stride(
        self, kernel: Any, padding: Any, stride: Any, expected: Any
    ) -> None:
        y = F.conv2d(torch.rand(1, 8, 8), torch.rand(1, 1, *kernel), None, stride, padding)
        assert y.shape == (1, *expected)

    @pytest.mark.parametrize(
        "size, kernel", (((1, 1), (1, 1)), ((7, 5), (3, 2)), ((4, 17), (4, 1)))
    )
    def test_loops(self, size: tuple, kernel: tuple) -> None:
        x = torch.randn(3, *size, dtype=torch.float64)
        k = torch.randn(2, 3, *kernel, dtype=torch.float64)
        torch.testing.assert_close(F.corr2d(x[0], k[0, 0]), reference.corr2d(x[0], k[0, 0]))
        torch.testing.assert_close(F.corr2d(x, k[0]), reference.corr2d_multi_in(x, k[0]))
        torch.testing.assert_close(F.corr2d(x, k), reference.corr2d_multi_in_out(x, k))

    def test_gradients(self) -> None:
        x, k = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 6), (2, 3)))
        assert differentiates(F.corr2d, [x, k])

    @pytest.mark.parametrize("x, k", ((2, 3), (2, 4), (3, 2), (4, 4), (1, 1), (0, 2)))
    def test_ranks(self, x: int, k: int) -> None:
        with pytest.raises(RuntimeError, match=f"but have {x} and {k}"):
            F.corr2d(torch.ones([1] * x), torch.ones([1] * k))


class TestValues:
    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_loops(self, case: Case) -> None:
        x, weight, bias = case.tensors(torch.float64)
        s_h, s_w, *padding, d_h, d_w, groups = case.window
        expected = reference.conv2d(x, weight, bias, (s_h, s_w), padding, (d_h, d_w), groups)
        torch.testing.assert_close(F.conv2d(x, weight, bias, **case.arguments), expected)
        relu = F.conv_relu2d(x, weight, bias, **case.arguments)
        torch.testing.assert_close(relu, expected.clamp(min=0))

    def test_every_width(self) -> None:
        """Rows of the image begin anywhere in a panel of columns, and end anywhere in a vector."""
        for width in range(1, 66, 16 if INTERPRETED else 1):
            case = Case((1, 64, 64, width), (64, 64, 2, 3), {"padding": (1, 0, 1, 1)})
            x, weight, bias = case.tensors(torch.float32)
            with threads(1):
                assert_layer_is_accurate(case, False, x, weight, bias)

    @pytest.mark.parametrize("relu", (False, True), ids=("conv2d", "conv_relu2d"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_every_layout(self, case: Case, dtype: torch.dtype, relu: bool) -> None:
        x, weight, bias = case.tensors(dtype)
        spread = torch.stack((bias, bias), 1)[:, 0]
        for a, b in zip(layouts(x).values(), layouts(weight).values(), strict=True):
            assert_layer_is_accurate(case, relu, a, b, spread)
            assert_layer_is_accurate(case, relu, a, b)

    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_every_pair_of_layouts(self, case: Case) -> None:
        x, weight, bias = case.tensors(torch.float32)
        for a, b in itertools.product(layouts(x).values(), layouts(weight).values()):
            assert_layer_is_accurate(case, False, a, b, bias)

    @pytest.mark.parametrize("relu", (False, True), ids=("conv2d", "conv_relu2d"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("case", argvalues=SIZES.values(), ids=SIZES.keys())
    def test_every_size(self, case: Case, dtype: torch.dtype, relu: bool) -> None:
        x, weight, bias = case.tensors(dtype)
        for layout in ("contiguous", "channels_last"):
            assert_layer_is_accurate(case, relu, layouts(x)[layout], layouts(weight)[layout], bias)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_gradients_as_functions_of_any_gradient(self, case: Case, dtype: torch.dtype) -> None:
        """The two adjoints, and their derivatives, for gradients in every layout."""
        x, weight, _ = case.tensors(dtype)
        y = torch_conv2d(x, weight, **case.arguments)
        g = normal(*y.shape, seed=3).to(dtype)

        def input_grad(g: Tensor, weight: Tensor) -> Tensor:
            at = torch.zeros(case.x, dtype=g.dtype, requires_grad=True)
            y = torch_conv2d(at, weight, **case.arguments)
            return torch.autograd.grad(y, at, g, create_graph=True)[0]

        def weight_grad(g: Tensor, x: Tensor) -> Tensor:
            at = torch.zeros(case.weight, dtype=g.dtype, requires_grad=True)
            y = torch_conv2d(x, at, **case.arguments)
            return torch.autograd.grad(y, at, g, create_graph=True)[0]

        for a, b in zip(layouts(g).values(), layouts(x).values(), strict=True):
            assert_as_accurate_as_torch(
                lambda g, w: Corr2dInputGrad.apply(g, None, w, case.x[2:], case.window),
                input_grad,
                a,
                weight,
            )
            assert_as_accurate_as_torch(
                lambda g, x: Corr2dWeightGrad.apply(g, None, x, case.weight[2:], case.window),
                weight_grad,
                a,
                b,
            )
            assert_as_accurate_as_torch(
                lambda g: BiasGrad.apply(g, None), lambda g: g.sum((0, 2, 3)), a
            )

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(
        "size", ((3, 5, 7, 17), (2, 257, 3, 5), (1, 2, 16, 33), (300, 3, 1, 1))
    )
    def test_bias_gradient(self, size: tuple, dtype: torch.dtype) -> None:
        image = normal(*size).to(dtype)
        for g in layouts(image).values():
            assert_as_accurate_as_torch(
                lambda g: BiasGrad.apply(g, None), lambda g: g.sum((0, 2, 3)), g
            )

    def test_memory_layout_of_outputs_follows_torch(self) -> None:
        x, weight, _ = CASES["padding"].tensors(torch.float32)
        for a, b in itertools.product(("contiguous", "channels_last"), repeat=2):
            tensors = [layouts(x)[a].requires_grad_(), layouts(weight)[b].requires_grad_()]
            ours, theirs = (f(*tensors, padding=1) for f in (F.conv2d, on_cpu(torch_conv2d)))
            assert ours.stride() == theirs.stride()
            gradients = (
                torch.autograd.grad(y, tensors[0], torch.ones_like(y)) for y in (ours, theirs)
            )
            assert next(gradients)[0].stride() == next(gradients)[0].stride()

    @pytest.mark.parametrize("relu", (False, True), ids=("conv2d", "conv_relu2d"))
    def test_unbatched(self, relu: bool) -> None:
        for case in CASES.values():
            x, weight, bias = case.tensors(torch.float32)
            assert_layer_is_accurate(case, relu, x[0], weight, bias)

    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_empty_batch(self, case: Case) -> None:
        x, weight, bias = case.tensors(torch.float32)
        for relu in (False, True):
            assert_layer_is_accurate(case, relu, x[:0], weight, bias)
        leaves = [t.requires_grad_() for t in (x[:0].detach(), weight, bias)]
        y = F.conv_relu2d(*leaves, **case.arguments)
        gradients = torch.autograd.grad(y.sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            assert torch.equal(gradient, torch.zeros_like(leaf))

    def test_nothing_but_the_bias(self) -> None:
        """No input channels, or no input pixels but padding: sums without terms."""
        bias = torch.randn(4)
        expected = bias.view(1, 4, 1, 1).expand(2, 4, 3, 2)
        y = F.conv2d(torch.ones(2, 0, 5, 4), torch.ones(4, 0, 3, 3), bias)
        assert torch.equal(y, expected)
        y = F.conv2d(torch.ones(2, 3, 0, 4), torch.ones(4, 3, 3, 3), bias, padding=(2, 3, 0, 0))
        assert torch.equal(y, expected)

    @pytest.mark.parametrize("relu", (False, True), ids=("conv2d", "conv_relu2d"))
    def test_expanded_tensors(self, relu: bool) -> None:
        case = CASES["all at once"]
        x, weight, bias = case.tensors(torch.float32)
        assert_layer_is_accurate(case, relu, x[:1].expand(5, -1, -1, -1), weight, bias)
        assert_layer_is_accurate(case, relu, x[..., :1, :1].expand(x.shape), weight, bias)
        assert_layer_is_accurate(case, relu, x[:, :1].expand(x.shape), weight, bias)
        assert_layer_is_accurate(case, relu, x, weight[:1, :1].expand(weight.shape), bias)
        assert_layer_is_accurate(case, relu, x, weight, bias[:1].expand(bias.shape))

    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_expanded_gradients(self, case: Case) -> None:
        """That of a sum has no memory of its own: one number, with strides of zero."""
        for x in layouts(case.tensors(torch.float64)[0]).values():
            leaves = [t.requires_grad_() for t in (x, *case.tensors(torch.float64)[1:])]
            y = F.conv2d(*leaves, **case.arguments)
            expected = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
            ours = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
            torch.testing.assert_close(ours, expected)
            for dim in range(4):
                g = torch.randn(y.shape, dtype=torch.float64)
                g = g.select(dim, 0).unsqueeze(dim).expand(y.shape)
                expected = torch.autograd.grad(y, leaves, g.contiguous(), retain_graph=True)
                ours = torch.autograd.grad(y, leaves, g, retain_graph=True)
                torch.testing.assert_close(ours, expected)

    @pytest.mark.parametrize("layout", ("contiguous", "channels_last", "sliced", "transposed"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_masking_while_reading_is_masking_before(self, dtype: torch.dtype, layout: str) -> None:
        """Bit for bit, whatever the layouts of the gradient and of the ReLU's output."""
        for case in (*CASES.values(), SIZES["9 channels, 7 and 17 wide"], SIZES["1023 pixels"]):
            x, weight, bias = case.tensors(dtype)
            x, window = layouts(x)[layout], case.window
            y = raw.corr2d(x, weight, bias, window, True)
            image = normal(*y.shape, seed=3).to(dtype)
            g = layouts(image)[layout]
            before = layouts(torch.where(y <= 0, 0, image))[layout]
            for mask in layouts(y).values():
                assert torch.equal(
                    raw.corr2d_input_grad(g, mask, weight, *x.shape[2:], window),
                    raw.corr2d_input_grad(before, None, weight, *x.shape[2:], window),
                )
                assert torch.equal(
                    raw.corr2d_weight_grad(g, mask, x, *weight.shape[2:], window),
                    raw.corr2d_weight_grad(before, None, x, *weight.shape[2:], window),
                )
                sums = raw.bias_grad(g, mask), raw.bias_grad(before, None)
                if mask.stride() == g.stride():
                    assert torch.equal(*sums)
                else:  # rows may not be merged, and then the order of the sum is another
                    torch.testing.assert_close(*sums)

    def test_lazily_negated_tensor(self) -> None:
        x = torch.randn(2, 3, 5, 4, dtype=torch.complex64).conj().imag
        weight = torch.randn(4, 3, 3, 3)
        assert x.is_neg()
        assert torch.equal(F.conv2d(x, weight), F.conv2d(x.clone(), weight))

    @pytest.mark.skipif(available_memory() < 14 * 2**30, reason="needs 14 GiB of free memory")
    @pytest.mark.parametrize("dim", (0, 1, 2))
    def test_beyond_two_to_the_31_input_elements(self, dim: int) -> None:
        many, wide, stride = 2**15 + 1, 2**16, 2**15
        x = torch.empty(many * wide, dtype=torch.bfloat16)  # filled only where it is looked at
        x[::stride] = 1
        x[-stride] = 42
        size = [1, 1, 1, wide]
        size[dim] = many
        weight = torch.ones(1, size[1], 1, 1, dtype=torch.bfloat16)
        weight[0, -1] = 2
        y = F.conv2d(x.view(size), weight, stride=(1, stride)).flatten()
        if dim == 1:
            assert y.tolist() == torch.tensor([many + 1, many - 1 + 2 * 42]).bfloat16().tolist()
        else:
            assert y.numel() == 2 * many and y[-1] == 84 and (y[:-1] == 2).all()

    @pytest.mark.skipif(available_memory() < 14 * 2**30, reason="needs 14 GiB of free memory")
    def test_beyond_two_to_the_31_input_elements_in_channels_last(self) -> None:
        images, rows, stride = 2**15 + 1, 2**15, 2**14
        flat = torch.empty(images * rows * 2, dtype=torch.bfloat16)
        x = flat.view(images, rows, 1, 2).permute(0, 3, 1, 2)
        x[:, :, ::stride] = 1
        x[-1, 1, -stride] = 41
        y = F.conv2d(x, torch.ones(1, 2, 1, 1, dtype=torch.bfloat16), stride=(stride, 1)).flatten()
        assert y.numel() == 2 * images and y[-1] == 42 and (y[:-1] == 2).all()

    @pytest.mark.skipif(available_memory() < 14 * 2**30, reason="needs 14 GiB of free memory")
    @pytest.mark.parametrize("images, channels", ((1, 2049), (2049, 1)))
    def test_beyond_two_to_the_31_output_elements(self, images: int, channels: int) -> None:
        x = torch.ones(1, 1, 1024, 1024, dtype=torch.bfloat16)
        weight = torch.ones(channels, 1, 1, 1, dtype=torch.bfloat16)
        x[..., -1, -1] = 21
        weight[-1] = 2
        with threads(2):
            y = F.conv2d(x.expand(images, -1, -1, -1), weight)
        assert y.numel() > 2**31
        assert y[-1, -1, -1, -2:].tolist() == [2, 42]
        assert y[0, 0, -1, -2:].tolist() == ([2, 42] if channels == 1 else [1, 21])


class TestSpecialValues:
    ARGUMENTS = (
        "plain",
        "stride",
        "padding, sides",
        "padding, sides, stride",
        "dilation, stride",
        "groups",
        "depthwise",
        "1 x 1",
        "3 x 3, 16 channels",
    )

    @pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", (*ARGUMENTS, "boxed: stride"))
    def test_an_input_pixel_reaches_what_it_reaches_in_torch(
        self, name: str, dtype: torch.dtype, value: float
    ) -> None:
        case = {**CASES, **SIZES}[name]
        x, weight, bias = case.tensors(dtype)
        x[1, 1, 2, 3] = value
        for image in layouts(x).values():
            leaves = [t.requires_grad_() for t in (image, weight, bias)]
            for ours, theirs in (
                (F.conv2d, on_cpu(torch_conv2d)),
                (F.conv_relu2d, on_cpu(lambda *a, **b: torch_conv2d(*a, **b).relu())),
            ):
                outputs = [f(*leaves, **case.arguments) for f in (ours, theirs)]
                pairs = [outputs]
                pairs += zip(
                    *(torch.autograd.grad(y, leaves, torch.ones_like(y)) for y in outputs),
                    strict=True,
                )
                for our, their in pairs:
                    assert torch.equal(our.isnan(), their.isnan())
                    assert torch.equal(our.isposinf(), their.isposinf())
                    assert torch.equal(our.isneginf(), their.isneginf())

    @pytest.mark.parametrize("name", ARGUMENTS)
    def test_a_nan_in_the_gradient_reaches_what_depends_on_it(self, name: str) -> None:
        """Whether it meets padding, and 0 times NaN, is open: torch's own kernels do not agree."""
        case = CASES[name]
        leaves = [t.requires_grad_() for t in case.tensors(torch.float64)]
        outputs = [f(*leaves, **case.arguments) for f in (F.conv2d, on_cpu(torch_conv2d))]
        g = torch.ones_like(outputs[0])
        g[1, 2, 0, 0] = math.nan
        ours, theirs = (torch.autograd.grad(y, leaves, g) for y in outputs)
        ones = [torch.ones_like(t).requires_grad_() for t in leaves]
        paths = torch.autograd.grad(
            on_cpu(torch_conv2d)(*ones, **case.arguments), ones, g.isnan().to(g.dtype)
        )
        for our, their, count in zip(ours, theirs, paths, strict=True):
            assert our.isnan()[count > 0].all()
            assert not our.isnan()[~their.isnan()].any()

    @pytest.mark.parametrize("value", (math.nan, math.inf))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_gradient_that_relu_masks_is_zero_whatever_it_is(
        self, dtype: torch.dtype, value: float
    ) -> None:
        for case in CASES.values():
            x, weight, bias = case.tensors(dtype)
            for image in layouts(x).values():
                leaves = [t.requires_grad_() for t in (image, weight, bias)]
                y = F.conv_relu2d(*leaves, **case.arguments)
                special, zero = (torch.where(y > 0, 1, v).to(dtype) for v in (value, 0.0))
                ours = torch.autograd.grad(y, leaves, special, retain_graph=True)
                expected = torch.autograd.grad(y, leaves, zero)
                for our, their in zip(ours, expected, strict=True):
                    assert torch.equal(our, their)

    def test_relu_of_nan_is_nan_and_lets_the_gradient_pass(self) -> None:
        bias = torch.tensor([math.nan, -1.0, math.inf, -math.inf], requires_grad=True)
        y = F.conv_relu2d(torch.zeros(1, 1, 2, 2), torch.ones(4, 1, 1, 1), bias)
        assert torch.equal(y[0, :, 0, 0].nan_to_num(7), bias.relu().nan_to_num(7))
        (gradient,) = torch.autograd.grad(y.sum(), bias)
        (expected,) = torch.autograd.grad((bias.relu() * 4).sum(), bias)
        assert torch.equal(gradient, expected)

    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
    def test_sixteen_bits_are_summed_in_float32(self, dtype: torch.dtype) -> None:
        """4096 ones: in 16 bits the sum would stop growing at 256 or 2048."""
        x, weight = torch.ones(1, 4096, 1, 1, dtype=dtype), torch.ones(1, 4096, 1, 1, dtype=dtype)
        assert F.conv2d(x, weight).item() == 4096
        g = torch.ones(1, 1, 64, 64, dtype=dtype)
        window = CASES["1 x 1"].window
        assert raw.corr2d_weight_grad(g, None, g, 1, 1, window).item() == 4096
        assert raw.bias_grad(g, None).item() == 4096

    def test_results_too_large_for_float16_are_infinite(self) -> None:
        x = torch.full((1, 2, 1, 1), 60000.0, dtype=torch.float16)
        weight = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).half().view(3, 2, 1, 1)
        assert F.conv2d(x, weight).flatten().tolist() == [math.inf, 0, -math.inf]


class TestDeterminism:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
    def test_number_of_threads_plays_no_part(self, layout: str, dtype: torch.dtype) -> None:
        for name, case in {**SIZES, "all at once": CASES["all at once"]}.items():
            calls = raw_calls(case, dtype, layout)
            with threads(1):
                expected = {op: bits(call()) for op, call in calls.items()}
            for count in (2, 3):
                with threads(count):
                    for op, call in calls.items():
                        assert torch.equal(bits(call()), expected[op]), (name, op, count)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_batch_plays_no_part_in_an_image(self, dtype: torch.dtype) -> None:
        """The bits of an image's output do not depend on the images beside it."""
        for name, case in TABLE.items():
            x, weight, bias = case.tensors(dtype)
            y = F.conv2d(x, weight, bias, **case.arguments)
            for n in range(len(x)):
                assert torch.equal(F.conv2d(x[n], weight, bias, **case.arguments), y[n]), name

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_what_was_in_memory_plays_no_part(self, dtype: torch.dtype) -> None:
        """Outputs are born in memory full of NaN, and scratch memory was last used for NaN."""
        reused = 0
        for name, case in TABLE.items():
            calls = raw_calls(case, dtype)
            expected = {op: bits(call()) for op, call in calls.items()}
            size = [max(part) for part in zip(case.x, (1, 64, 9, 49), strict=True)]
            nan = torch.full(size, math.nan, dtype=dtype)
            raw.corr2d(nan, nan[:1].contiguous(), None, CASES["padding > kernel"].window, True)
            for op, call in calls.items():
                count = expected[op].numel() // torch.finfo(dtype).bits * 8
                used = [torch.full((count,), math.nan, dtype=dtype) for _ in range(8)]
                places = {t.data_ptr() for t in used}
                del used
                result = call()
                reused += result.data_ptr() in places
                assert torch.equal(bits(result), expected[op]), (name, op)
        assert reused > 0  # or this test would say nothing


class TestGradients:
    @pytest.mark.parametrize("layer", (F.conv2d, F.conv_relu2d), ids=("conv2d", "conv_relu2d"))
    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_first_and_second_order(self, case: Case, layer: Callable) -> None:
        tensors = case.tensors(torch.float64)
        leaves = [t.requires_grad_() for t in tensors]
        assert differentiates(lambda *t: layer(*t, **case.arguments), leaves, fast=True)

    @pytest.mark.parametrize("layout", ("channels_last", "sliced", "transposed"))
    @pytest.mark.parametrize("layer", (F.conv2d, F.conv_relu2d), ids=("conv2d", "conv_relu2d"))
    def test_in_full(self, layer: Callable, layout: str) -> None:
        """Every entry of the Jacobians, not a random projection of them."""
        case = Case(
            (1, 4, 4, 3), (2, 2, 2, 2), {"stride": (2, 1), "padding": (1, 0, 0, 1), "groups": 2}
        )
        x, weight, bias = case.tensors(torch.float64)
        leaves = [t.requires_grad_() for t in (layouts(x)[layout], layouts(weight)[layout], bias)]
        assert differentiates(lambda *t: layer(*t, **case.arguments), leaves)

    @pytest.mark.parametrize("layer", (F.conv2d, F.conv_relu2d), ids=("conv2d", "conv_relu2d"))
    def test_third_order(self, layer: Callable) -> None:
        case = CASES["padding, sides, stride"]
        tensors = case.tensors(torch.float64)

        def second(f: Callable) -> list[Tensor]:
            leaves = [t.clone().requires_grad_() for t in tensors]
            value = f(*leaves).pow(3).sum()
            for _ in range(2):
                gradients = torch.autograd.grad(value, leaves, create_graph=True)
                value = sum(gradient.square().sum() for gradient in gradients)
            return torch.autograd.grad(value, leaves)

        relu = torch.relu if layer is F.conv_relu2d else lambda y: y
        torch.testing.assert_close(
            second(lambda *t: layer(*t, **case.arguments)),
            second(lambda *t: relu(torch_conv2d(*t, **case.arguments))),
        )

    @pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:])
    def test_only_what_is_asked_for(self, wanted: tuple[bool, ...]) -> None:
        case = CASES["padding, sides"]
        leaves = [
            t.requires_grad_(want)
            for t, want in zip(case.tensors(torch.float64), wanted, strict=True)
        ]
        y = F.conv_relu2d(*leaves, **case.arguments)
        expected = torch_conv2d(*leaves, **case.arguments).relu()
        asked = [t for t in leaves if t.requires_grad]
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), asked), torch.autograd.grad(expected.sum(), asked)
        )

    @pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3))[1:])
    @pytest.mark.parametrize("relu", (False, True), ids=("conv2d", "conv_relu2d"))
    def test_no_more_is_saved_than_torch_saves(self, relu: bool, wanted: tuple) -> None:
        x, weight, bias = CASES["padding"].tensors(torch.float32)
        leaves = [t.requires_grad_(w) for t, w in zip((x, weight, bias), wanted, strict=True)]

        def saved(f: Callable) -> int:
            storages = {}

            def pack(t: Tensor) -> Tensor:
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                y = f(*leaves, padding=1)
            assert y.grad_fn is not None
            return sum(storages.values())

        if relu:
            ours, theirs = saved(F.conv_relu2d), saved(lambda *a, **b: torch_conv2d(*a, **b).relu())
        else:
            ours, theirs = saved(F.conv2d), saved(torch_conv2d)
        assert ours <= theirs

    def test_no_graph_without_gradients(self) -> None:
        x, weight, bias = (t.requires_grad_() for t in CASES["plain"].tensors(torch.float32))
        with torch.no_grad():
            assert not F.conv2d(x, weight, bias).requires_grad
        assert not F.conv2d(x.detach(), weight.detach()).requires_grad

    def test_changing_what_was_saved_is_found_out(self) -> None:
        x, weight, bias = (t.requires_grad_() for t in CASES["plain"].tensors(torch.float32))
        y = F.conv_relu2d(x, weight, bias)
        with torch.no_grad():
            weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    @pytest.mark.parametrize("layer", (F.conv2d, F.conv_relu2d), ids=("conv2d", "conv_relu2d"))
    def test_functional_transforms(self, layer: Callable) -> None:
        case = CASES["all at once"]
        tensors = case.tensors(torch.float64)
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = layer(*leaves, **case.arguments)
        g = torch.randn_like(y)
        expected = torch.autograd.grad(y, leaves, g)

        def loss(*inputs: Tensor) -> Tensor:
            return (layer(*inputs, **case.arguments) * g).sum()

        assert all(map(torch.equal, torch.func.grad(loss, (0, 1, 2))(*tensors), expected))
        output, pullback = torch.func.vjp(lambda *t: layer(*t, **case.arguments), *tensors)
        assert torch.equal(output, y)
        assert all(map(torch.equal, pullback(g), expected))


class TestCompiler:
    @pytest.mark.parametrize(
        "layout, empty",
        (
            *(("contiguous", False), ("channels_last", False), ("sliced", False)),
            *(("contiguous", True), ("channels_last", True)),  # opcheck cannot copy the third
        ),
    )
    def test_opcheck(self, layout: str, empty: bool) -> None:
        case = CASES["padding, sides, stride"]
        x, weight, bias = case.tensors(torch.float32)
        x, weight, window = (
            layouts(x[:0] if empty else x)[layout],
            layouts(weight)[layout],
            case.window,
        )
        y = raw.corr2d(x, weight, bias, window, True)
        g = layouts(torch.randn_like(y))[layout]
        for b, relu in itertools.product((None, bias), (False, True)):
            torch.library.opcheck(raw.corr2d.default, (x, weight, b, window, relu))
        for mask in (None, y):
            arguments = (g, mask, weight, *x.shape[2:], window)
            torch.library.opcheck(raw.corr2d_input_grad.default, arguments)
            arguments = (g, mask, x, *weight.shape[2:], window)
            torch.library.opcheck(raw.corr2d_weight_grad.default, arguments)
            torch.library.opcheck(raw.bias_grad.default, (g, mask))

    @pytest.mark.parametrize("case", **CASE_IDS)
    def test_shapes_on_meta_tensors(self, case: Case) -> None:
        tensors = case.tensors(torch.bfloat16)
        for image in layouts(tensors[0]).values():
            real = F.conv2d(image, *tensors[1:], **case.arguments)
            meta = F.conv2d(*(t.to("meta") for t in (image, *tensors[1:])), **case.arguments)
            assert meta.shape == real.shape and meta.dtype == real.dtype
            assert meta.stride() == real.stride()

    @pytest.mark.parametrize(
        "name", ("plain", "padding, sides, stride", "same", "1 x 1, stride", "all at once")
    )
    def test_traced_equals_eager(self, name: str) -> None:
        case = CASES[name]

        def loss(*inputs: Tensor) -> Tensor:
            y = F.conv2d(*inputs, **case.arguments) + F.conv_relu2d(*inputs, **case.arguments)
            return y.square().sum()

        torch._dynamo.reset()
        leaves = [t.requires_grad_() for t in case.tensors(torch.float32)]
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        ours = torch.autograd.grad(compiled(*leaves), leaves)
        assert all(map(torch.equal, ours, torch.autograd.grad(loss(*leaves), leaves)))

    def test_compiled_equals_eager(self) -> None:
        def net(x: Tensor, weight: Tensor, bias: Tensor, last: Tensor) -> Tensor:
            y = F.conv_relu2d(x / 2, weight, bias, stride=2, padding=(1, 0, 2, 1))
            return F.conv2d(y * 2, last, padding="same").square().mean()

        sizes = ((2, 3, 9, 8), (4, 3, 3, 3), (4,), (5, 4, 2, 2))
        leaves = [torch.randn(size, requires_grad=True) for size in sizes]
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True)
        torch.testing.assert_close(compiled(*leaves), net(*leaves))
        torch.testing.assert_close(
            torch.autograd.grad(compiled(*leaves), leaves),
            torch.autograd.grad(net(*leaves), leaves),
        )

    def test_one_graph_for_all_sizes(self) -> None:
        torch._dynamo.reset()
        compiled = torch.compile(F.conv_relu2d, fullgraph=True, backend="aot_eager", dynamic=True)
        weight = torch.randn(4, 3, 3, 3, requires_grad=True)
        with torch.compiler.set_stance("eager_on_recompile"):
            for size in ((2, 3, 9, 8), (3, 3, 5, 17), (5, 3, 4, 4)):
                x = torch.randn(size)
                ours, eager = (f(x, weight, padding=1) for f in (compiled, F.conv_relu2d))
                assert torch.equal(ours, eager)
                (ours,), (eager,) = (torch.autograd.grad(y.sum(), weight) for y in (ours, eager))
                assert torch.equal(ours, eager)


X, WEIGHT, BIAS = CASES["padding"].tensors(torch.float32)  # 3 -> 4 channels, 5 x 6, kernel 3 x 3
OVERFLOWS = "size (of the output overflows|calculation overflowed)"  # in C++, in torch
REFUSED = {  # arguments for conv2d, and what the message says
    "input: list": (([1.0], WEIGHT), {}, "argument 'input' must be Tensor, not list"),
    "input: None": ((None, WEIGHT), {}, "argument 'input' must be Tensor, not NoneType"),
    "input: 2 dimensions": ((X[0, 0], WEIGHT), {}, r"input has size \[5, 6\]"),
    "input: 5 dimensions": ((X[None], WEIGHT), {}, r"input has size \[1, 2, 3, 5, 6\]"),
    "input: bool": (
        (X.bool(), WEIGHT.bool()),
        {},
        r"input has dtype torch\.bool; allowed: float32",
    ),
    "input: no rows": ((X[:, :, :0], WEIGHT), {}, r"larger than the input of size \[0, 6\]"),
    "weight: float": ((X, 1.0), {}, "argument 'weight' must be Tensor, not float"),
    "weight: 3 dimensions": ((X, WEIGHT[0]), {}, r"weight must have 4 .*size \[3, 3, 3\]"),
    "weight: dtype": ((X, WEIGHT.double()), {}, r"weight has dtype torch\.float64, but input has"),
    "weight: channels": ((X, WEIGHT[:, :2]), {}, "2 channels, but input has 3"),
    "weight: no outputs": ((X, WEIGHT[:0]), {}, r"weight\.size\(0\) = 0"),
    "weight: empty kernel": ((X, WEIGHT[:, :, :0]), {}, r"kernel of size \[0, 3\]"),
    "weight: too large": ((X, torch.ones(4, 3, 6, 3)), {}, r"kernel of size \[6, 3\].*\[5, 6\]"),
    "bias: float": ((X, WEIGHT, 1.0), {}, "argument 'bias' must be Tensor, not float"),
    "bias: size": ((X, WEIGHT, BIAS[:3]), {}, r"bias must have size \[4\], but has \[3\]"),
    "bias: dimensions": ((X, WEIGHT, BIAS[None]), {}, r"bias must have size \[4\], .* \[1, 4\]"),
    "bias: number": ((X, WEIGHT, BIAS[0]), {}, r"bias must have size \[4\], but has \[\]"),
    "bias: dtype": (
        (X, WEIGHT, BIAS.double()),
        {},
        r"bias has dtype torch\.float64, but input has",
    ),
    "stride: 0": ((X, WEIGHT), {"stride": 0}, r"stride must be at least 1 .* got \(0, 0\)"),
    "stride: negative": ((X, WEIGHT), {"stride": (1, -2)}, r"stride must be .* got \(1, -2\)"),
    "stride: none": ((X, WEIGHT), {"stride": ()}, r"stride must have 1 or 2 .* got \(\)"),
    "stride: three": ((X, WEIGHT), {"stride": (1, 2, 3)}, r"stride must have .* got \(1, 2, 3\)"),
    "stride: float": ((X, WEIGHT), {"stride": 1.5}, r"stride must be int .* got 1\.5"),
    "stride: floats": ((X, WEIGHT), {"stride": (1, 1.5)}, r"stride must be int .* got \(1, 1\.5\)"),
    "stride: bool": ((X, WEIGHT), {"stride": True}, "stride must be int .* got True"),
    "stride: str": ((X, WEIGHT), {"stride": "1"}, "stride must be int .* got '1'"),
    "stride: None": ((X, WEIGHT), {"stride": None}, "stride must be int .* got None"),
    "padding: negative": ((X, WEIGHT), {"padding": -1}, r"padding must be at least 0 .* got \(-1"),
    "padding: three": ((X, WEIGHT), {"padding": (1, 1, 1)}, r"padding must have .*\(1, 1, 1\)"),
    "padding: name": ((X, WEIGHT), {"padding": "Same"}, "'valid' or 'same', but got 'Same'"),
    "padding: names": ((X, WEIGHT), {"padding": ["same"]}, r"padding must be int .* \['same'\]"),
    "padding: None": ((X, WEIGHT), {"padding": None}, "padding must be int .* got None"),
    "padding: same": ((X, WEIGHT), {"padding": "same", "stride": 2}, r"stride is \(2, 2\)"),
    "padding: huge": ((X, WEIGHT), {"padding": 2**31 - 3}, OVERFLOWS),
    "dilation: 0": ((X, WEIGHT), {"dilation": 0}, r"dilation must be .* got \(0, 0\)"),
    "dilation: negative": ((X, WEIGHT), {"dilation": -1}, r"dilation must be .* got \(-1, -1\)"),
    "dilation: too large": ((X, WEIGHT), {"dilation": 3}, r"dilation \(3, 3\), must not .* larger"),
    "dilation: float": ((X, WEIGHT), {"dilation": 2.0}, r"dilation must be int .* got 2\.0"),
    "groups: 0": ((X, WEIGHT), {"groups": 0}, "groups must be positive .* got 0"),
    "groups: negative": ((X, WEIGHT), {"groups": -1}, "groups must be positive .* got -1"),
    "groups: outputs": ((X, WEIGHT), {"groups": 3}, "groups must .* divide .* = 4 > 0, but got 3"),
    "groups: inputs": ((X, WEIGHT), {"groups": 2}, "6 channels, but input has 3"),
    "groups: float": ((X, WEIGHT), {"groups": 1.0}, r"groups must be int, but got 1\.0"),
    "groups: bool": ((X, WEIGHT), {"groups": True}, "groups must be int, but got True"),
    "groups: tuple": ((X, WEIGHT), {"groups": (1,)}, r"groups must be int, but got \(1,\)"),
}


Range = tuple[int, int]  # least and most
EXAMPLES = 15 if INTERPRETED else 150


class TestArguments:
    @pytest.mark.parametrize("layer", (F.conv2d, F.conv_relu2d), ids=("conv2d", "conv_relu2d"))
    @pytest.mark.parametrize("tensors, named, message", argvalues=REFUSED.values(), ids=REFUSED)
    @pytest.mark.filterwarnings("ignore")
    def test_refused_as_by_torch(
        self, tensors: tuple, named: dict, message: str, layer: Callable
    ) -> None:
        theirs = torch.nn.functional.conv2d
        raised = assert_refused_as_by_torch(layer, theirs, message, *tensors, **named)
        if message != OVERFLOWS:
            assert str(raised.value).startswith(f"{layer.__name__}(): ")

    @pytest.mark.parametrize("tensors, message", without_kernels(X, WEIGHT, BIAS))
    def test_no_kernel(self, tensors: tuple, message: str) -> None:
        with pytest.raises(NotImplementedError, match=message):
            F.conv2d(*tensors)

    def test_one_device(self) -> None:
        assert_on_one_device(F.conv2d, X, WEIGHT, BIAS)

    @pytest.mark.parametrize("name", ("stride", "padding", "dilation"))
    @pytest.mark.parametrize(
        "value",
        (2, (2,), (2, 1), [1, 2], np.int64(2), (np.int32(2), 1), torch.tensor(2, device="cpu")),
    )
    def test_numbers_that_torch_takes(self, name: str, value: Any) -> None:
        ours, theirs = (
            f(X, WEIGHT, **{name: value}) for f in (F.conv2d, torch.nn.functional.conv2d)
        )
        torch.testing.assert_close(ours, theirs)

    def test_by_position(self) -> None:
        arguments = (X, torch.ones(6, 1, 2, 2), torch.ones(6), 2, 1, 3, 3)
        torch.testing.assert_close(F.conv2d(*arguments), torch.nn.functional.conv2d(*arguments))

    @settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
    @given(data=st.data())
    def test_anything_agrees_with_torch(self, data: st.DataObject) -> None:
        self.draw_and_check(data, channels=(1, 5), height=(1, 12), width=(1, 18), kernel=(1, 4))

    @settings(derandomize=True, max_examples=EXAMPLES, deadline=None, database=None)
    @given(data=st.data())
    def test_anything_larger_agrees_with_torch(self, data: st.DataObject) -> None:
        self.draw_and_check(data, channels=(14, 50), height=(6, 24), width=(6, 60), kernel=(1, 6))

    def draw_and_check(
        self, data: st.DataObject, channels: Range, height: Range, width: Range, kernel: Range
    ) -> None:
        def pick(name: str, least: int, most: int) -> int:
            return data.draw(st.integers(least, most), name)

        groups = pick("groups", 1, 3)
        inputs, outputs = pick("channels in", *channels), pick("channels out", *channels)
        case = Case(
            (pick("images", 0, 3), groups * inputs, pick("height", *height), pick("width", *width)),
            (
                groups * outputs,
                inputs,
                pick("kernel height", *kernel),
                pick("kernel width", *kernel),
            ),
            {
                "stride": (pick("stride down", 1, 4), pick("stride across", 1, 4)),
                "padding": tuple(pick(side, 0, 3) for side in ("top", "bottom", "left", "right")),
                "dilation": (pick("dilation down", 1, 3), pick("dilation across", 1, 3)),
                "groups": groups,
            },
        )
        top, bottom, left, right = case.arguments["padding"]
        down, across = case.arguments["dilation"]
        assume(case.x[2] + top + bottom > down * (case.weight[2] - 1))
        assume(case.x[3] + left + right > across * (case.weight[3] - 1))
        x, weight, bias = case.tensors(data.draw(st.sampled_from(DTYPES), "dtype"))
        of_x, of_weight = (st.sampled_from(sorted(layouts(t))) for t in (x, weight))
        tensors = [layouts(x)[data.draw(of_x)], layouts(weight)[data.draw(of_weight)]]
        tensors += [bias] * data.draw(st.booleans(), "bias")
        assert_layer_is_accurate(case, data.draw(st.booleans(), "relu"), *tensors)


G = torch.ones(2, 4, 5, 6)  # of CASES["padding"]
PLAIN = (1, 1, 1, 1, 1, 1, 1, 1, 1)
LARGEST = 2**31 - 1


def plain_but(**changed: list[int]) -> list[int]:
    """A window that is plain but for the given part."""
    parts = {"stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "groups": [1], **changed}
    return list(itertools.chain(*parts.values()))


def corr2d_with(**changed: Any) -> Callable:
    """corr2d on good arguments but for those given."""
    good = {"x": X, "weight": WEIGHT, "bias": BIAS, "window": PLAIN, "relu": False}
    return lambda: raw.corr2d(**{**good, **changed})


def input_grad_with(**changed: Any) -> Callable:
    good = {"g": G, "y": G, "weight": WEIGHT, "height": 5, "width": 6, "window": PLAIN}
    return lambda: raw.corr2d_input_grad(**{**good, **changed})


def weight_grad_with(**changed: Any) -> Callable:
    good = {"g": G, "y": G, "x": X, "height": 3, "width": 3, "window": PLAIN}
    return lambda: raw.corr2d_weight_grad(**{**good, **changed})


NONSENSE = {
    **{
        f"{make.__name__.removesuffix('_with')}, {name} = {value}": make(
            window=plain_but(**{name: value})
        )
        for make in (corr2d_with, input_grad_with, weight_grad_with)
        for name, values in {
            "stride": ([], [1], [1, 1, 1], [0, 1], [1, -1], [2**62, 1], [-(2**63), 1]),
            "padding": ([], [1, 1], [1] * 5, [0, 0, 0, -1], [2**62] * 4, [LARGEST] * 4),
            "dilation": ([], [1], [1, 1, 1], [0, 1], [1, -1], [2**62, 2**62], [LARGEST] * 2),
            "groups": ([], [0], [-1], [3], [2**31 - 1], [2**62], [-(2**63)]),
        }.items()
        for value in values
    },
    **{
        f"{make.__name__.removesuffix('_with')}, {name} = {value.dtype!s}, {value.layout}, "
        f"{value.device}, {list(value.shape)}": make(**{name: value})
        for make, name, values in (
            (corr2d_with, "x", (X[0], X[:, :2], X.double(), X.int(), X.to_sparse(), X.to("meta"))),
            (corr2d_with, "weight", (WEIGHT[0], WEIGHT[:, :2], WEIGHT[:, :, :0], WEIGHT.half())),
            (
                corr2d_with,
                "weight",
                (WEIGHT.to_sparse(), WEIGHT.cpu().to_mkldnn(), WEIGHT.to("meta")),
            ),
            (corr2d_with, "bias", (BIAS[:3], BIAS[None], BIAS[0], BIAS.half(), BIAS.to("meta"))),
            (input_grad_with, "g", (G[0], G[:1], G[:, :3], G[..., :5], G.double(), G.to("meta"))),
            (input_grad_with, "y", (G[0], G[:1], G[:, :3], G[..., :5], G.double(), G.to("meta"))),
            (input_grad_with, "weight", (WEIGHT[0], WEIGHT[:3], WEIGHT.double(), WEIGHT.int())),
            (weight_grad_with, "g", (G[0], G[:1], G[..., :5], G.double(), G.to("meta"))),
            (weight_grad_with, "y", (G[0], G[:1], G[:, :3], G[..., :5], G.double(), G.to("meta"))),
            (weight_grad_with, "x", (X[0], X[:1], X[..., :5], X.double(), X.to("meta"))),
        )
        for value in values
    },
    **{
        f"input_grad, size {(height, width)}": input_grad_with(height=height, width=width)
        for height, width in ((5, 7), (-5, 6), (2**62, 6), (0, 6))
    },
    **{
        f"weight_grad, size {(height, width)}": weight_grad_with(height=height, width=width)
        for height, width in ((2, 3), (-3, 3), (2**62, 3), (0, 3))
    },
    "corr2d, x = None": corr2d_with(x=None),
    "bias_grad, 3 dimensions": lambda: raw.bias_grad(G[0], None),
    "bias_grad, y smaller": lambda: raw.bias_grad(G, G[:1]),
    "bias_grad, y of other rank": lambda: raw.bias_grad(G, G[0, 0]),
    "bias_grad, y of other dtype": lambda: raw.bias_grad(G, G.double()),
    "bias_grad, y without data": lambda: raw.bias_grad(G, G.to("meta")),
    "bias_grad, dtype": lambda: raw.bias_grad(G.int(), None),
}

ENORMOUS = {  # more memory than there is, or none at all; each takes no time
    "sums of 2^40 images": lambda: raw.bias_grad(torch.ones(1).expand(2**40, 1), None),
    "sums of 2^40 channels": lambda: raw.bias_grad(torch.ones(1).expand(1, 2**40), None),
    "2^40 weights": lambda: raw.corr2d_weight_grad(
        torch.ones(1).expand(1, 2**20, 1, 1), None, torch.ones(1).expand(1, 2**20, 1, 1), 1, 1,
        plain_but(padding=[0] * 4),
    ),
    "2^60 outputs": lambda: raw.corr2d(
        torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), None, plain_but(padding=[2**29] * 4), False
    ),
}  # fmt: skip
NOTHING = {
    "a large kernel of no channels": (
        lambda: raw.corr2d(
            torch.ones(1, 0, 1, 1), torch.ones(4, 0, LARGEST, 1), None,
            plain_but(padding=[LARGEST - 1, 0, 0, 0]), False,
        ),
        (1, 4, 1, 1),
    ),
    "its gradient": (
        lambda: raw.corr2d_input_grad(
            torch.ones(1, 0, 1, 1), None, torch.ones(0, 4, LARGEST, 1), 1, 1,
            plain_but(padding=[LARGEST - 1, 0, 0, 0]),
        ),
        (1, 4, 1, 1),
    ),
    "many phases of no images": (
        lambda: raw.corr2d_input_grad(
            torch.ones(0, 1, 1, 1), None, torch.ones(1, 1, 1, 1), LARGEST, LARGEST,
            plain_but(stride=[LARGEST] * 2, padding=[0] * 4),
        ),
        (0, 1, LARGEST, LARGEST),
    ),
}  # fmt: skip


def try_enormous_and_nothing() -> None:
    """In a process of its own, whose memory is limited: a failure here may be a crash."""
    import resource

    limit = 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, call in ENORMOUS.items():
        try:
            call()
        except (RuntimeError, MemoryError):
            continue
        raise AssertionError(name)
    for name, (call, size) in NOTHING.items():
        assert call().shape == size, name


def touch_guarded(at_end: bool) -> None:
    """In a process of its own: reading beyond a tensor ends it."""
    torch.set_num_threads(1)
    dtypes = DTYPES[:1] if INTERPRETED else DTYPES
    for case, dtype in itertools.product(TABLE.values(), dtypes):
        x, weight, bias = case.tensors(dtype)
        bias = guarded(bias, at_end)
        for layout in layouts(x):
            image, kernel = (guarded(layouts(t)[layout], at_end) for t in (x, weight))
            y = raw.corr2d(image, kernel, bias, case.window, True)
            g, y = (guarded(layouts(t)[layout], at_end) for t in (torch.ones_like(y), y))
            for mask in (None, y):
                raw.corr2d_input_grad(g, mask, kernel, *image.shape[2:], case.window)
                raw.corr2d_weight_grad(g, mask, image, *kernel.shape[2:], case.window)
                raw.bias_grad(g, mask)


class TestRawOperators:
    @pytest.mark.parametrize("call", argvalues=NONSENSE.values(), ids=NONSENSE.keys())
    def test_nonsense_is_refused(self, call: Callable) -> None:
        with pytest.raises(RuntimeError):
            call()

    @cpu_only
    def test_enormous_and_nothing(self) -> None:
        assert_survives("from tests import test_corr2d as t; t.try_enormous_and_nothing()")

    @cpu_only
    @pytest.mark.parametrize("at_end", (True, False), ids=("after", "before"))
    def test_nothing_beyond_a_tensor_is_read(self, at_end: bool) -> None:
        assert_survives(f"from tests import test_corr2d as t; t.touch_guarded({at_end})")
