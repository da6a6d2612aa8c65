"""Pooling: the same numbers, indices, gradients and errors as torch, for every layout and dtype."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2lops import functional as ours
from tests import reference
from tests.accuracy import DTYPES, assert_as_accurate_as_torch, differentiates, layouts
from tests.device import integers, normal, on_cpu, permutation, raw
from tests.memory import available_memory

# torch on the CPU says what is right, also for empty tensors and windows that see nothing but -inf.
BUILT_INS = ("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d", "pad")
F = SimpleNamespace(**{name: on_cpu(getattr(torch.nn.functional, name)) for name in BUILT_INS})
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")

# Sizes around the vector widths: channels beside, on and above them; images of which a plane is
# smaller than a vector, and larger than a tile.
SIZES = ((2, 3, 7, 9), (1, 17, 12, 17), (3, 33, 5, 6), (1, 1, 40, 33), (2, 8, 31, 16))
WINDOWS = (
    dict(kernel_size=2),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=1, padding=1),
    dict(kernel_size=(5, 2), stride=(3, 1), padding=(2, 0)),
    dict(kernel_size=(1, 5), stride=(2, 4), padding=(0, 2)),
    dict(kernel_size=2, stride=3, ceil_mode=True),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kernel_size=(5, 5), stride=(5, 3), padding=2, ceil_mode=True),
)
DILATED = (
    dict(kernel_size=2, stride=1, dilation=3),
    dict(kernel_size=2, stride=3, dilation=2, padding=1),
    dict(kernel_size=(3, 2), stride=(2, 4), dilation=(2, 4), padding=(1, 1), ceil_mode=True),
)
AVERAGED = (
    dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, divisor_override=5),
    dict(kernel_size=2, divisor_override=-3),
)
OUTPUT_SIZES = (1, (2, 3), (None, 1), (1, None), (5, 4), (11, 45), None)


def image(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return normal(*size, seed=seed).to(dtype)


def distinct(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """No two elements of a plane are the same, whatever the precision."""
    planes = size[0] * size[1]
    generator = torch.Generator().manual_seed(0)
    values = [permutation(size[2] * size[3], generator) for _ in range(planes)]
    return torch.stack(values).reshape(size).to(dtype)


def output_size_of(size: object) -> object:
    return (None, None) if size is None else size


def assert_same_pooling(ours_pool, torch_pool, x: Tensor) -> None:
    """Maxima, indices and the gradient are torch's to the last bit, in the layout of the input."""
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine.data, theirs.data = x, x
    y, indices = ours_pool(mine)
    expected, expected_indices = torch_pool(theirs)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, expected_indices)
    channels_last = x.stride(1) == 1 and x.size(1) > 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    # Small integers: sums are exact in every dtype and order.
    g = integers(-2, 2, *y.shape, seed=1).to(x.dtype)
    (d_mine,) = torch.autograd.grad(y, mine, g)
    (d_theirs,) = torch.autograd.grad(expected, theirs, g)
    assert torch.equal(d_mine, d_theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_max_is_torchs(size, dtype, layout):
    x = layouts(image(*size, dtype=dtype))[layout]
    for arguments in (*WINDOWS, *DILATED):
        span = 6 if isinstance(arguments["kernel_size"], tuple) else 4
        if min(size[2:]) < span:
            continue
        assert_same_pooling(
            lambda x, a=arguments: ours.max_pool2d(x, **a, return_indices=True),
            lambda x, a=arguments: F.max_pool2d(x, **a, return_indices=True),
            x,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 2, 150, 67), (1, 1, 9, 1500), (7, 9, 17, 18)])
def test_planes_of_several_bands_and_many_small_planes(size, dtype):
    x = image(*size, dtype=dtype)
    for arguments in (*WINDOWS[:3], dict(kernel_size=(4, 3), stride=(1, 2), padding=(2, 0))):
        assert_same_pooling(
            lambda x, a=arguments: ours.max_pool2d(x, **a, return_indices=True),
            lambda x, a=arguments: F.max_pool2d(x, **a, return_indices=True),
            x,
        )
        assert_as_accurate_as_torch(
            lambda x, a=arguments: ours.avg_pool2d(x, **a, count_include_pad=False),
            lambda x, a=arguments: F.avg_pool2d(x, **a, count_include_pad=False),
            x,
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_adaptive_max_is_torchs(size, dtype, layout):
    x = layouts(image(*size, dtype=dtype))[layout]
    for output_size in map(output_size_of, OUTPUT_SIZES):
        assert_same_pooling(
            lambda x, s=output_size: ours.adaptive_max_pool2d(x, s, return_indices=True),
            lambda x, s=output_size: F.adaptive_max_pool2d(x, s, return_indices=True),
            x,
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_average_is_as_accurate_as_torchs(size, dtype, layout):
    x = layouts(image(*size, dtype=dtype))[layout]
    for arguments in (*WINDOWS, *AVERAGED):
        assert_as_accurate_as_torch(
            lambda x, a=arguments: ours.avg_pool2d(x, **a),
            lambda x, a=arguments: F.avg_pool2d(x, **a),
            x,
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_adaptive_average_is_as_accurate_as_torchs(size, dtype, layout):
    x = layouts(image(*size, dtype=dtype))[layout]
    for output_size in map(output_size_of, OUTPUT_SIZES):
        assert_as_accurate_as_torch(
            lambda x, s=output_size: ours.adaptive_avg_pool2d(x, s),
            lambda x, s=output_size: F.adaptive_avg_pool2d(x, s),
            x,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_average_of_a_constant_is_that_constant(dtype):
    x = torch.full((2, 17, 9, 9), 3.0, dtype=dtype)
    for layout, constant in layouts(x).items():
        for y in (ours.avg_pool2d(constant, 3, 1), ours.adaptive_avg_pool2d(constant, 4)):
            assert torch.equal(y, torch.full_like(y, 3.0)), layout


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("pool_size", [(2, 2), (1, 3), (4, 1), (6, 5)])
def test_the_books_loops(mode, pool_size):
    x = image(6, 5, dtype=torch.float64)
    torch.testing.assert_close(
        ours.pool2d(x, pool_size, mode), reference.pool2d(x, pool_size, mode)
    )
    batch = image(2, 3, 6, 5, dtype=torch.float64)
    expected = torch.stack([reference.pool2d(p, pool_size, mode) for p in batch.flatten(0, 1)])
    y = ours.pool2d(batch, pool_size, mode)
    torch.testing.assert_close(y.flatten(0, 1), expected)
    torch.testing.assert_close(ours.pool2d(batch[0], pool_size, mode), y[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padding", [(1, 0, 0, 1), (0, 2, 1, 0), (2, 1, 0, 2), (0, 0, 0, 1)])
def test_asymmetric_padding(padding, layout):
    top, bottom, left, right = padding
    around = (left, right, top, bottom)
    x = layouts(image(2, 17, 8, 11, dtype=torch.float64))[layout]
    for stride in (1, 2, 3):
        for maximum in (ours.max_pool2d(x, 4, stride, padding),):
            expected = F.max_pool2d(F.pad(x, around, value=float("-inf")), 4, stride)
            assert torch.equal(maximum, expected)
        average = ours.avg_pool2d(x, 4, stride, padding)
        torch.testing.assert_close(average, F.avg_pool2d(F.pad(x, around), 4, stride))
        inside = F.avg_pool2d(F.pad(torch.ones_like(x), around), 4, stride)
        torch.testing.assert_close(
            ours.avg_pool2d(x, 4, stride, padding, count_include_pad=False), average / inside
        )
    plane = x[0, 0]
    for mode, pool in (("max", ours.max_pool2d), ("avg", ours.avg_pool2d)):
        torch.testing.assert_close(
            pool(plane[None], 4, 3, padding)[0],
            reference.pool2d(plane, (4, 4), mode, (3, 3), padding),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_windows_of_more_than_255_elements(dtype, layout):
    x = layouts(distinct(2, 19, 40, 24, dtype=dtype))[layout]
    for arguments in (
        dict(kernel_size=(20, 17), stride=(7, 3), padding=(10, 8)),
        dict(kernel_size=16),
        dict(kernel_size=(15, 17), stride=1),  # 255
        dict(kernel_size=(16, 16), stride=(3, 8), ceil_mode=True),  # 256
        dict(kernel_size=(40, 24)),
    ):
        assert_same_pooling(
            lambda x, a=arguments: ours.max_pool2d(x, **a, return_indices=True),
            lambda x, a=arguments: F.max_pool2d(x, **a, return_indices=True),
            x,
        )
    for output_size in (1, (2, 1), (3, 1)):
        assert_same_pooling(
            lambda x, s=output_size: ours.adaptive_max_pool2d(x, s, return_indices=True),
            lambda x, s=output_size: F.adaptive_max_pool2d(x, s, return_indices=True),
            x,
        )


def test_argmax_takes_one_byte_up_to_255_elements():
    x = image(1, 1, 20, 20)
    for kernel, dtype in (((15, 17), torch.uint8), ((16, 16), torch.int32)):
        argmax = raw.max_pool2d(x, window(kernel, stride=(1, 1)), False)[1]
        assert argmax.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 17, 9, 11), (1, 2, 60, 150), (3, 16, 21, 33)])
def test_nan_infinity_and_ties(size, dtype, layout):
    """Of a few values only, so that every window has equals, and many a NaN or nothing but -inf."""
    values = torch.tensor([float("-inf"), float("-inf"), float("nan"), 1.0, 1.0, float("inf")])
    for choice in ([0, 1], [0, 3, 4], [0, 2, 3], [0, 1, 2, 3, 4, 5]):
        picks = integers(0, len(choice) - 1, *size)
        x = layouts(values[choice][picks].to(dtype))[layout]
        pools = [
            (lambda x, a=a: (ours.max_pool2d(x, **a), F.max_pool2d(x, **a)))
            for a in (
                dict(kernel_size=2, return_indices=True),
                dict(kernel_size=3, stride=2, padding=1, return_indices=True),
                dict(kernel_size=(7, 9), stride=1, padding=(3, 4), return_indices=True),
            )
        ]
        pools += [
            (
                lambda x, s=s: (
                    ours.adaptive_max_pool2d(x, s, True),
                    F.adaptive_max_pool2d(x, s, True),
                )
            )
            for s in (1, 2, (5, 4))
        ]
        for pool in pools:
            (y, indices), (expected, expected_indices) = pool(x)
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(indices, expected_indices)


def test_averages_propagate_nan_and_infinity():
    x = image(1, 17, 6, 6)
    x[0, :, 0, 0], x[0, :, 3, 3] = float("nan"), float("inf")
    for layout in layouts(x).values():
        y = ours.avg_pool2d(layout, 2)
        torch.testing.assert_close(y, F.avg_pool2d(x, 2), equal_nan=True)


GRADCHECKED = {
    "max": lambda x: ours.max_pool2d(x, 2),
    "max overlapping": lambda x: ours.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max dilated": lambda x: ours.max_pool2d(x, 2, 1, (0, 1, 1, 0), dilation=2),
    "max with indices": lambda x: ours.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive max": lambda x: ours.adaptive_max_pool2d(x, (2, 3)),
    "average": lambda x: ours.avg_pool2d(x, 2),
    "average overlapping": lambda x: ours.avg_pool2d(x, 3, 2, 1, True, False),
    "average asymmetric": lambda x: ours.avg_pool2d(x, 3, 1, (1, 0, 0, 1), divisor_override=5),
    "adaptive average": lambda x: ours.adaptive_avg_pool2d(x, (2, 3)),
    "global average": lambda x: ours.adaptive_avg_pool2d(x, 1),
    "the book's": lambda x: ours.pool2d(x, (2, 3), "avg"),
}


@pytest.mark.parametrize("name", GRADCHECKED)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_first_and_second_order(name, channels_last):
    x = distinct(2, 3, 5, 4, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    assert differentiates(GRADCHECKED[name], [x])


def test_third_order():
    """The third derivative passes through gather and scatter once more."""

    def third(pool, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        total = pool(x, 2).pow(4).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(total, x, create_graph=True)
            total = pool(gradient, 2).pow(2).sum()
        return gradient.detach()

    x = distinct(1, 2, 4, 4, dtype=torch.float64)
    for mine, builtin in ((ours.max_pool2d, F.max_pool2d), (ours.avg_pool2d, F.avg_pool2d)):
        assert third(builtin, x).any()
        torch.testing.assert_close(third(mine, x), third(builtin, x))


def test_no_gradient_flows_into_indices():
    x = image(1, 2, 4, 4).requires_grad_()
    y, indices = ours.max_pool2d(x, 2, return_indices=True)
    assert y.requires_grad and not indices.requires_grad
    assert not ours.max_pool2d(x.detach(), 2).requires_grad


def test_expanded_gradient():
    x = image(2, 17, 8, 8)
    for pool, builtin in (
        (ours.max_pool2d, F.max_pool2d),
        (ours.avg_pool2d, F.avg_pool2d),
    ):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        pool(mine, 3, 2).sum().backward()
        builtin(theirs, 3, 2).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)


SLIDING = [3, 2, 2, 1, 1, 0, 1, 1, 1, 2]  # kernel, stride, padding, dilation


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x = layouts(image(2, 17, 8, 9))[layout]
    averaged = (SLIDING[:8], False, None)

    def check(name: str, *arguments):
        operator = getattr(raw, name).default
        torch.library.opcheck(operator, arguments)
        return operator(*arguments)

    y, argmax = check("max_pool2d", x, SLIDING, False)
    check("max_pool2d", x, SLIDING, True)
    check("max_pool2d_gather", x, argmax, SLIDING)
    check("max_pool2d_scatter", y, argmax, *x.shape[2:], SLIDING)
    check("max_pool2d_indices", argmax, *x.shape[2:], SLIDING)
    for size in ([3, 4], [1, 1], [8, 3], [0, 2], [20, 9]):
        y, argmax = check("adaptive_max_pool2d", x, *size)
        check("adaptive_max_pool2d_gather", x, argmax)
        check("adaptive_max_pool2d_scatter", y, argmax, *x.shape[2:])
        check("adaptive_max_pool2d_indices", argmax, *x.shape[2:])
        y = check("adaptive_avg_pool2d", x, *size)
        check("adaptive_avg_pool2d_adjoint", y, *x.shape[2:])
    for ceil_mode in (False, True):
        y = check("avg_pool2d", x, *averaged, ceil_mode)
        check("avg_pool2d_adjoint", y, *x.shape[2:], *averaged)


UNARY = {
    "max": (lambda f, x: f.max_pool2d(x, 2)),
    "max with indices": (lambda f, x: f.max_pool2d(x, 2, return_indices=True)),
    "adaptive max": (lambda f, x: f.adaptive_max_pool2d(x, (3, None))),
    "adaptive max with indices": (lambda f, x: f.adaptive_max_pool2d(x, 2, True)),
    "average": (lambda f, x: f.avg_pool2d(x, 3, 2, 1)),
    "adaptive average": (lambda f, x: f.adaptive_avg_pool2d(x, (3, None))),
    "nothing": (lambda f, x: f.adaptive_max_pool2d(x, (0, 2))),
    "no average": (lambda f, x: f.adaptive_avg_pool2d(x, (2, 0))),
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("size", [(17, 8, 9), (0, 17, 8, 9), (1, 17, 8, 9)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_unbatched_and_empty(name, size, requires_grad):
    x = image(*size).requires_grad_(requires_grad)
    mine, theirs = UNARY[name](ours, x), UNARY[name](F, x)
    torch.testing.assert_close(mine, theirs)
    if requires_grad and name not in ("nothing", "no average"):  # torch's backward refuses those
        mine, theirs = (y[0] if isinstance(y, tuple) else y for y in (mine, theirs))
        expected = torch.autograd.grad(theirs.sum(), x)
        torch.testing.assert_close(torch.autograd.grad(mine.sum(), x), expected)


def test_outputs_without_elements():
    assert ours.adaptive_avg_pool2d(torch.zeros(2, 0, 5, 5), 2).shape == (2, 0, 2, 2)
    for pool in (ours.adaptive_avg_pool2d, ours.adaptive_max_pool2d):
        x = image(2, 3, 5, 5).requires_grad_()
        pool(x, (2, 0)).sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("size", [(1, 2, 300, 40), (3, 40, 33, 29), (2, 1, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(size, dtype):
    def bits() -> list[Tensor]:
        found = []
        for layout in layouts(image(*size, dtype=dtype)).values():
            for pool in (
                lambda x: ours.max_pool2d(x, 3, 1, 1),
                lambda x: ours.avg_pool2d(x, 3, 2, 1),
                lambda x: ours.adaptive_avg_pool2d(x, 1),
                lambda x: ours.adaptive_max_pool2d(x, (7, 5)),
                lambda x: ours.adaptive_avg_pool2d(x, (7, 5)),
            ):
                x = layout.detach().requires_grad_()
                y = pool(x)
                g = image(*y.shape, dtype=dtype, seed=2)
                found += [y.detach(), *torch.autograd.grad(y, x, g)]
        return found

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = bits()
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            for mine, one in zip(bits(), expected, strict=True):
                assert mine.flatten().view(torch.uint8).equal(one.flatten().view(torch.uint8))
    finally:
        torch.set_num_threads(before)


X = torch.ones(1, 2, 8, 8)
BAD = {
    "padding above half": lambda f: f.max_pool2d(X, 3, padding=2),
    "padding above half, average": lambda f: f.avg_pool2d(X, 3, padding=2),
    "padding below zero": lambda f: f.max_pool2d(X, 3, padding=-1),
    "stride zero": lambda f: f.max_pool2d(X, 2, 0),
    "stride zero, average": lambda f: f.avg_pool2d(X, 2, 0),
    "kernel zero": lambda f: f.max_pool2d(X, 0),
    "kernel zero, average": lambda f: f.avg_pool2d(X, (2, 0)),
    "dilation zero": lambda f: f.max_pool2d(X, 2, dilation=0),
    "window too large": lambda f: f.max_pool2d(X, 9),
    "window too large, average": lambda f: f.avg_pool2d(X, (2, 9)),
    "dilated window too large": lambda f: f.max_pool2d(X, 3, dilation=4),
    "kernel beyond 31 bits": lambda f: f.max_pool2d(X, 2**31),
    "no tensor": lambda f: f.max_pool2d([1.0], 2),
    "no tensor, average": lambda f: f.avg_pool2d(None, 2),
    "no channels": lambda f: f.max_pool2d(torch.ones(1, 0, 8, 8), 2),
    "no rows": lambda f: f.avg_pool2d(torch.ones(1, 2, 0, 8), 2),
    "no columns, adaptive": lambda f: f.adaptive_avg_pool2d(torch.ones(1, 2, 8, 0), 2),
    "no channels, adaptive": lambda f: f.adaptive_max_pool2d(torch.ones(1, 0, 8, 8), 2),
    "two dimensions": lambda f: f.max_pool2d(torch.ones(8, 8), 2),
    "five dimensions": lambda f: f.avg_pool2d(torch.ones(1, 1, 1, 8, 8), 2),
    "two dimensions, adaptive": lambda f: f.adaptive_avg_pool2d(torch.ones(8, 8), 2),
    "sparse": lambda f: f.max_pool2d(X.to_sparse(), 2),
    "sparse, average": lambda f: f.avg_pool2d(X.to_sparse(), 2),
    "integers, average": lambda f: f.avg_pool2d(X.int(), 2),
    "complex": lambda f: f.max_pool2d(X.cfloat(), 2),
    "integers, adaptive": lambda f: f.adaptive_max_pool2d(X.int(), 2),
    "divisor zero": lambda f: f.avg_pool2d(X, 2, divisor_override=0),
    "divisor of float": lambda f: f.avg_pool2d(X, 2, divisor_override=2.5),
    "divisor beyond 64 bits": lambda f: f.avg_pool2d(X, 2, divisor_override=2**64),
    "three kernel sizes": lambda f: f.max_pool2d(X, (2, 2, 2)),
    "three strides": lambda f: f.avg_pool2d(X, 2, (2, 2, 2)),
    "three paddings": lambda f: f.max_pool2d(X, 2, padding=(0, 0, 0)),
    "kernel of float": lambda f: f.max_pool2d(X, 2.0),
    "kernel of bool": lambda f: f.max_pool2d(X, True),
    "kernel of None": lambda f: f.avg_pool2d(X, None),
    "padding of None": lambda f: f.max_pool2d(X, 2, padding=None),
    "stride of float": lambda f: f.avg_pool2d(X, 2, (1.0, 2)),
    "output size below zero": lambda f: f.adaptive_max_pool2d(X, -1),
    "output size below zero, average": lambda f: f.adaptive_avg_pool2d(X, (2, -1)),
    "output size of float": lambda f: f.adaptive_avg_pool2d(X, 2.0),
    "output size of None": lambda f: f.adaptive_max_pool2d(X, None),
    "one output size": lambda f: f.adaptive_max_pool2d(X, (2,)),
    "three output sizes": lambda f: f.adaptive_avg_pool2d(X, (2, 2, 2)),
    "huge output size": lambda f: f.adaptive_avg_pool2d(X, 2**40),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_torchs(name):
    with pytest.raises(Exception) as theirs:
        BAD[name](F)
    with pytest.raises(Exception) as mine:
        BAD[name](ours)
    assert mine.type is theirs.type, f"torch: {theirs.value}; ours: {mine.value}"
    assert "pool2d()" in str(mine.value)


def test_errors_of_our_own():
    with pytest.raises(ValueError, match="mode must be 'max' or 'avg', but got 'min'"):
        ours.pool2d(X, 2, "min")
    with pytest.raises(NotImplementedError, match=r"dtype torch\.int32; allowed: float32"):
        ours.max_pool2d(X.int(), 2)
    with pytest.raises(RuntimeError, match=r"padding must be at most half .* got \(0, 3, 0, 0\)"):
        ours.max_pool2d(X, 4, padding=(0, 3, 0, 0))
    with pytest.raises(NotImplementedError):
        ours.max_pool2d(X.to_sparse(), 2)


def window(kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0), dilation=(1, 1)) -> list[int]:
    return [*kernel, *stride, *padding, *dilation]


def nonsense() -> dict:
    x, g = image(1, 2, 6, 6), image(1, 2, 3, 3)
    argmax = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    good, big = window(), 2**62
    bad = {
        "kernel of one": window(kernel=[2]),
        "kernel of zeros": window(kernel=[0, 0]),
        "kernel below zero": window(kernel=[-2, 2]),
        "kernel overflowing": window(kernel=[big, big]),
        "kernel of 2^40": window(kernel=[2**20, 2**20], padding=[2**19] * 4),
        "stride zero": window(stride=[0, 1]),
        "padding of two": window(padding=[0, 0]),
        "padding below zero": window(padding=[-1, 0, 0, 0]),
        "padding overflowing": window(padding=[2**63 - 1] * 4),
        "padding more than half": window(padding=[0, 0, 0, 2]),
        "dilation zero": window(dilation=[0, 1]),
        "window too large": window(kernel=[7, 7]),
    }
    return {
        **{
            name: lambda numbers=numbers: raw.max_pool2d(x, numbers, False)
            for name, numbers in bad.items()
        },
        **{
            f"{name}, average": lambda numbers=numbers: raw.avg_pool2d(
                x, numbers[:-2], True, None, False
            )
            for name, numbers in bad.items()
            if name != "dilation zero"
        },
        "no rows": lambda: raw.max_pool2d(x[:, :, :0], good, False),
        "no channels": lambda: raw.max_pool2d(x[:, :0], good, False),
        "no channels, average": lambda: raw.avg_pool2d(x[:, :0], good[:8], True, None, False),
        "three dimensions": lambda: raw.max_pool2d(x[0], good, False),
        "integers": lambda: raw.max_pool2d(x.int(), good, False),
        "argmax of float": lambda: raw.max_pool2d_gather(x, g, good),
        "argmax of int64": lambda: raw.max_pool2d_gather(x, argmax.long(), good),
        "argmax too small": lambda: raw.max_pool2d_gather(x, argmax[:, :, :2], good),
        "argmax of other channels": lambda: raw.max_pool2d_gather(x, argmax[:, :1], good),
        "g and argmax differ": lambda: raw.max_pool2d_scatter(g[..., :2], argmax, 6, 6, good),
        "g of integers": lambda: raw.max_pool2d_scatter(g.int(), argmax, 6, 6, good),
        "input size too large": lambda: raw.max_pool2d_scatter(g, argmax, 60, 6, good),
        "input size overflowing": lambda: raw.max_pool2d_scatter(g, argmax, big, big, good),
        "input size below zero": lambda: raw.max_pool2d_scatter(g, argmax, -6, 6, good),
        "indices of float": lambda: raw.max_pool2d_indices(g, 6, 6, good),
        "indices of another size": lambda: raw.max_pool2d_indices(argmax, 9, 9, good),
        "output size below zero": lambda: raw.adaptive_max_pool2d(x, -1, 2),
        "output size overflowing": lambda: raw.adaptive_max_pool2d(x, big, big),
        "output of 2^60": lambda: raw.adaptive_avg_pool2d(x, 2**30, 2**30),
        "adaptive of no columns": lambda: raw.adaptive_avg_pool2d(x[..., :0], 1, 1),
        "adaptive argmax of float": lambda: raw.adaptive_max_pool2d_gather(x, g),
        "adaptive argmax of other images": lambda: raw.adaptive_max_pool2d_gather(
            x.expand(2, -1, -1, -1), argmax
        ),
        "adaptive g and argmax differ": lambda: raw.adaptive_max_pool2d_scatter(
            g[:, :1], argmax, 6, 6
        ),
        "adaptive input of no rows": lambda: raw.adaptive_avg_pool2d_adjoint(g, 0, 6),
        "adaptive indices below zero": lambda: raw.adaptive_max_pool2d_indices(argmax, 6, -6),
        "divisor zero": lambda: raw.avg_pool2d(x, good[:8], True, 0, False),
        "average of integers": lambda: raw.avg_pool2d(x.int(), good[:8], True, None, False),
        "average of two dimensions": lambda: raw.avg_pool2d(x[0, 0], good[:8], True, None, False),
        "average with dilation": lambda: raw.avg_pool2d(x, good, True, None, False),
        "adjoint's input size": lambda: raw.avg_pool2d_adjoint(g, 60, 6, good[:8], True, None),
        "adjoint's divisor": lambda: raw.avg_pool2d_adjoint(g, 6, 6, good[:8], True, 0),
    }


@pytest.mark.parametrize("name", nonsense())
def test_raw_operators_refuse_nonsense(name):
    with pytest.raises((RuntimeError, NotImplementedError)):
        nonsense()[name]()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_an_argmax_that_points_nowhere_counts_as_zero(layout, dtype, kind):
    x = layouts(image(2, 17, 7, 6, dtype=dtype).abs() + 1)[layout]
    sliding = window(kernel=(3, 3), padding=(1, 1, 1, 1))
    y = raw.max_pool2d(x, sliding, False)[0]
    largest = 255 if kind == torch.uint8 else 2**31 - 1
    for value in (9, 10, 200, largest, *((-1, -(2**31)) if kind == torch.int32 else ())):
        argmax = torch.full(y.shape, value, dtype=kind)
        assert not raw.max_pool2d_gather(x, argmax, sliding).any()
        assert not raw.max_pool2d_scatter(y, argmax, *x.shape[2:], sliding).any()
        argmax = torch.full((2, 17, 7, 6), value, dtype=kind)  # adaptive windows of 1x1
        assert not raw.adaptive_max_pool2d_gather(x, argmax).any()
        assert not raw.adaptive_max_pool2d_scatter(x, argmax, *x.shape[2:]).any()
    in_padding = torch.zeros(y.shape, dtype=kind)
    gathered = raw.max_pool2d_gather(x, in_padding, sliding)
    assert not gathered[:, :, 0].any() and not gathered[:, :, :, 0].any()
    assert torch.equal(gathered[:, :, 1:, 1:], x[:, :, 1::2, 1::2][..., : y.size(3) - 1])
    scattered = raw.max_pool2d_scatter(y, in_padding, *x.shape[2:], sliding)
    assert torch.equal(scattered.count_nonzero(), y[:, :, 1:, 1:].count_nonzero())


windows = st.tuples(
    st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3), st.integers(0, 9)
)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 3), c=st.integers(1, 36), rows=windows, columns=windows,
    ceil_mode=st.booleans(), count_include_pad=st.booleans(),
    divisor=st.sampled_from([None, None, 7]), layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES), output_size=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)  # fmt: skip
def test_fuzz(
    n, c, rows, columns, ceil_mode, count_include_pad, divisor, layout, dtype, output_size
):
    kernel, stride, padding, dilation, more = zip(rows, columns, strict=True)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(1, s + m - 2 * p) for s, m, p in zip(spans, more, padding, strict=True)]
    x = layouts(distinct(n, c, *size) if n else torch.empty(0, c, *size))[layout].to(dtype)

    arguments = (kernel, stride, padding, dilation, ceil_mode, True)
    expected, expected_indices = F.max_pool2d(x, *arguments)
    if expected.isinf().any():
        return  # a dilated window may see nothing but padding: torch's index is then out of bounds
    y, indices = ours.max_pool2d(x, *arguments)
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
    y, indices = ours.adaptive_max_pool2d(x, output_size, True)
    expected, expected_indices = F.adaptive_max_pool2d(x, output_size, True)
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)

    size = [max(s, k - 2 * p) for s, k, p in zip(size, kernel, padding, strict=True)]
    arguments = (kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    assert_as_accurate_as_torch(
        lambda x: ours.avg_pool2d(x, *arguments), lambda x: F.avg_pool2d(x, *arguments), x
    )
    if 0 not in output_size:
        assert_as_accurate_as_torch(
            lambda x: ours.adaptive_avg_pool2d(x, output_size),
            lambda x: F.adaptive_avg_pool2d(x, output_size),
            x,
        )


@pytest.mark.skipif(available_memory() < 12 * 2**30, reason="takes 9 GB of memory")
def test_more_than_two_to_the_31_elements():
    """All zeros but for the last window, whose place does not fit in 32 bits."""
    size = (1, 16, 2**14, 2**13 + 2)
    x = torch.zeros(size, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[0, -1, -1, -1] = 5
    sliding = window(kernel=(64, 64), stride=(64, 64))
    y, argmax = raw.max_pool2d(x, sliding, True)
    assert y[0, -1, -1, -1] == 5 and y.sum() == 5
    indices = raw.max_pool2d_indices(argmax, *size[2:], sliding)
    assert indices[0, -1, -1, -1] == size[2] * size[3] - 1
    average = raw.avg_pool2d(x, sliding[:8], False, None, True)
    assert average[0, -1, -1, -1] == torch.tensor(5 / 128).bfloat16()
    del x
    back = raw.max_pool2d_scatter(y, argmax, *size[2:], sliding)
    assert back[0, -1, -1, -1] == 5 and back[0, -1, -1].count_nonzero() == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_strides_beyond_2_to_the_31(channels_last):
    """Few elements, far apart: the memory between them is never touched, so it takes no room."""
    far = 2**29  # the last of six pixels begins at 5 * 2^29 > 2^31
    strides = (6 * far, 1 if channels_last else 64, 3 * far, far)
    memory = torch.empty(6 * far, dtype=torch.bfloat16)
    x = memory.as_strided((1, 17, 2, 3), strides)
    values = image(1, 17, 2, 3, dtype=torch.bfloat16)
    x.copy_(values)
    for pool in (
        lambda f, x: f.max_pool2d(x, (2, 1), return_indices=True),
        lambda f, x: f.avg_pool2d(x, 2, 1),
        lambda f, x: f.adaptive_avg_pool2d(x, 1),
    ):
        torch.testing.assert_close(pool(ours, x), pool(F, values))
