"""`torch.autocast` means for the operators what it means for torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, autocast

from d2lops import functional as F
from d2lops import nn
from tests.device import DEVICE, normal

pytestmark = pytest.mark.usefixtures("one_thread")

LOWER = (torch.bfloat16, torch.float16)
T = torch.nn.functional
CASES: dict[str, tuple[Callable, Callable, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (F.conv2d, T.conv2d, ((2, 3, 6, 5), (4, 3, 3, 2), (4,))),
    "conv_relu2d": (
        F.conv_relu2d,
        lambda *t: T.relu(T.conv2d(*t)),
        ((3, 6, 5), (4, 3, 3, 2), (4,)),
    ),
    "corr2d": (F.corr2d, lambda x, k: T.conv2d(x[None], k[None, None])[0], ((6, 5), (2, 2))),
    "linear": (F.linear, T.linear, ((3, 4), (5, 4), (5,))),
    "linear_relu": (F.linear_relu, lambda *t: T.relu(T.linear(*t)), ((2, 3, 4), (5, 4), (5,))),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda x: T.max_pool2d(x, 2), ((3, 6, 5),)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), lambda x: T.avg_pool2d(x, 2), ((3, 6, 5),)),
    "adaptive_max_pool2d": (
        lambda x: F.adaptive_max_pool2d(x, 2),
        lambda x: T.adaptive_max_pool2d(x, 2),
        ((3, 6, 5),),
    ),
    "adaptive_avg_pool2d": (
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: T.adaptive_avg_pool2d(x, 2),
        ((3, 6, 5),),
    ),
    "dropout": (lambda x: F.dropout(x, 1.0), lambda x: T.dropout(x, 1.0), ((3, 6),)),
}
WEIGHED = ("conv2d", "conv_relu2d", "corr2d", "linear", "linear_relu")


def tensors(name: str, *dtypes: torch.dtype) -> list[Tensor]:
    """The input in the first dtype, whatever else the operator takes in the last."""
    return [
        normal(*size, seed=i).to(dtypes[0 if i == 0 else -1]).requires_grad_()
        for i, size in enumerate(CASES[name][2])
    ]


def outputs_and_gradients(function: Callable, leaves: list[Tensor]) -> list[Tensor]:
    output = function(*leaves)
    gradient = normal(*output.shape, seed=9).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def assert_same(name: str, leaves: list[Tensor], lower: torch.dtype) -> None:
    """The dtypes that torch's have, and the errors, by the rule of accuracy.py."""
    ours, theirs, _ = CASES[name]
    our, their = (outputs_and_gradients(function, leaves) for function in (ours, theirs))
    with autocast(DEVICE.type, enabled=False):
        exact = outputs_and_gradients(
            theirs, [x.detach().double().requires_grad_() for x in leaves]
        )
    for a, b, true in zip(our, their, exact, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        their_error, rounding = (b - true).abs().max(), torch.finfo(lower).eps * true.abs().max()
        assert (a - true).abs().max() <= 2 * their_error + rounding


@pytest.mark.parametrize("lower", LOWER)
class TestSameAsTorch:
    @pytest.mark.parametrize("dtype", (torch.float32, torch.float64, *LOWER))
    @pytest.mark.parametrize("name", CASES)
    def test_dtypes_and_values(self, name: str, dtype: torch.dtype, lower: torch.dtype) -> None:
        with autocast(DEVICE.type, lower):
            assert_same(name, tensors(name, dtype), lower)

    @pytest.mark.parametrize("name", WEIGHED)
    def test_inputs_of_several_dtypes(self, name: str, lower: torch.dtype) -> None:
        """Which all become one, but for float64, and that is refused."""
        ours, theirs, _ = CASES[name]
        for dtype in LOWER:
            with autocast(DEVICE.type, lower):
                assert_same(name, tensors(name, dtype, torch.float32), lower)
        leaves = tensors(name, torch.float64, torch.float32)
        for function in (ours, theirs):
            with autocast(DEVICE.type, lower), pytest.raises(RuntimeError):
                function(*leaves)

    @pytest.mark.parametrize("name", WEIGHED)
    def test_switched_off_within(self, name: str, lower: torch.dtype) -> None:
        ours, theirs, _ = CASES[name]
        leaves = tensors(name, torch.float32)
        with autocast(DEVICE.type, lower):
            assert ours(*leaves).dtype == lower
            with autocast(DEVICE.type, enabled=False):
                our, their = ours(*leaves), theirs(*leaves)
                assert our.dtype == their.dtype == torch.float32
            assert ours(*leaves).dtype == lower

    @pytest.mark.parametrize("name", WEIGHED)
    def test_leaves_tensors_without_data_alone(self, name: str, lower: torch.dtype) -> None:
        ours, theirs, _ = CASES[name]
        leaves = [x.to("meta") for x in tensors(name, torch.float32)]
        with autocast(DEVICE.type, lower):
            assert ours(*leaves).dtype == theirs(*leaves).dtype == torch.float32

    @pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a second type of device")
    def test_leaves_other_devices_alone(self, lower: torch.dtype) -> None:
        with autocast("cpu", lower):
            for name in WEIGHED:
                assert CASES[name][0](*tensors(name, torch.float32)).dtype == torch.float32


def test_derivatives_do_not_ask_for_it() -> None:
    """Within autocast or without, backward computes in the dtypes of forward; so does its own."""
    x, weight, bias = tensors("conv_relu2d", torch.float32)
    with autocast(DEVICE.type, torch.bfloat16):
        y = F.conv_relu2d(x, weight, bias)

    def derivatives() -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.float().pow(2).sum(), (x, weight, bias), create_graph=True)
        return *first, *torch.autograd.grad(first[0].pow(2).sum(), weight, retain_graph=True)

    outside = derivatives()
    with autocast(DEVICE.type, torch.float16):
        inside = derivatives()
    assert all(g.dtype == torch.float32 for g in outside)
    assert all(map(torch.equal, inside, outside))


def test_in_one_graph() -> None:
    def loss(x: Tensor, weight: Tensor, matrix: Tensor) -> Tensor:
        with autocast(DEVICE.type, torch.bfloat16):
            y = F.linear_relu(F.conv2d(x, weight), matrix)
            with autocast(DEVICE.type, enabled=False):
                z = F.linear(y.float(), matrix[:, :3])
        return z.sum() + y.sum()

    leaves = [normal(*size).requires_grad_() for size in ((2, 3, 6, 6), (4, 3, 3, 3), (3, 4))]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, eager = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
    assert all(map(torch.equal, ours, eager))


@pytest.mark.parametrize("lower", LOWER)
def test_lenet_learns(lower: torch.dtype) -> None:
    """Two networks of the same weights, in mixed precision: their losses go down together."""

    def losses(layers: object) -> list[float]:
        torch.manual_seed(0)
        net = layers.Sequential(
            layers.Conv2d(1, 6, 5, padding=2),
            layers.ReLU(),
            layers.MaxPool2d(2),
            layers.Conv2d(6, 16, 5),
            layers.ReLU(),
            layers.AvgPool2d(2),
            layers.Flatten(),
            layers.Linear(16, 32),
            layers.ReLU(),
            layers.Linear(32, 10),
        )
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=lower is torch.float16)
        images, labels = normal(16, 1, 12, 12), torch.arange(16) % 10
        found = []
        for _ in range(20):
            with autocast(DEVICE.type, lower):
                loss = T.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(loss.item())
        return found

    ours, theirs = losses(nn), losses(torch.nn)
    assert ours[-1] < 0.9 * ours[0]
    assert ours == pytest.approx(theirs, rel=0.02)
