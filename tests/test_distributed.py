"""On two processes, the operators give what they give on one: DDP, FSDP2, DTensors, masks by rank.

What runs on the ranks is a function here named after what it checks; a test hands it to them.
"""

import itertools
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import (
    DeviceMesh,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import d2lops
from d2lops import backends, nn, sharding
from d2lops import functional as F
from tests.device import cpu_only, integers, normal
from tests.isolated import ROOT, run_python
from tests.ranks import COUNT, Ranks, two_ranks

pytestmark = cpu_only
WHOLE, FIRST, SECOND = Replicate(), Shard(0), Shard(1)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with two_ranks() as ranks:
        yield ranks


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (COUNT,))


def double(*size: int, seed: int = 0) -> Tensor:
    return normal(*size, seed=seed).double()


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """But for the order of sums, in float64."""
    error = 1e-13 * theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=error)


def of_every_rank(x: Tensor) -> Tensor:
    gathered = [torch.empty_like(x) for _ in range(COUNT)]
    distributed.all_gather(gathered, x.contiguous())
    return torch.stack(gathered)


# Training: every rank computes its part of a batch, and what one process makes of all of it.

IMAGES, LABELS = double(12, 2, 12, 12), integers(0, 9, 12)


def cnn() -> torch.nn.Sequential:
    """A layer of each kind, with the weights of `torch_cnn`."""
    network = torch.nn.Sequential(
        OrderedDict(
            convolution_relu=nn.ConvReLU2d(2, 6, kernel_size=3, padding=1),
            max_pool=nn.MaxPool2d(2),
            convolution=nn.Conv2d(6, 8, kernel_size=3),
            average_pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            linear_relu=nn.LinearReLU(32, 16),
            linear=nn.Linear(16, 10),
        )
    )
    network.double().load_state_dict(torch_cnn().state_dict())
    return network


def torch_cnn() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        OrderedDict(
            convolution_relu=torch.nn.Conv2d(2, 6, kernel_size=3, padding=1),
            relu1=torch.nn.ReLU(),
            max_pool=torch.nn.MaxPool2d(2),
            convolution=torch.nn.Conv2d(6, 8, kernel_size=3),
            average_pool=torch.nn.AdaptiveAvgPool2d(2),
            flatten=torch.nn.Flatten(),
            linear_relu=torch.nn.Linear(32, 16),
            relu2=torch.nn.ReLU(),
            linear=torch.nn.Linear(16, 10),
        )
    ).double()


def converted_cnn() -> torch.nn.Sequential:
    network = torch_cnn()
    d2lops.convert(network)
    return network


def sharded(
    network: torch.nn.Module, policy: MixedPrecisionPolicy | None = None
) -> torch.nn.Module:
    policy = policy or MixedPrecisionPolicy()
    for layer in network:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh(), mp_policy=policy)
    return fully_shard(network, mesh=mesh(), mp_policy=policy)


def train(network: torch.nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(network(images).double(), labels).backward()
        optimizer.step()


def train_on_own_half(network: torch.nn.Module) -> None:
    own = slice(distributed.get_rank(), None, COUNT)
    train(network, IMAGES[own], LABELS[own])


def assert_as_one_process(state: dict[str, Tensor]) -> None:
    network = torch_cnn()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, IMAGES, LABELS)
    for name, expected in network.state_dict().items():
        assert not torch.allclose(expected, start[name], rtol=1e-3), name
        assert_equal(state[name], expected)


def ddp_trains_as_one_process() -> None:
    network = cnn()
    train_on_own_half(DistributedDataParallel(network))
    assert_as_one_process(network.state_dict())


def ddp_trains_a_converted_network() -> None:
    network = converted_cnn()
    train_on_own_half(DistributedDataParallel(network))
    assert_as_one_process(network.state_dict())


def compiled_ddp_trains_as_one_process() -> None:
    network = cnn()
    train_on_own_half(torch.compile(DistributedDataParallel(network), backend="aot_eager"))
    assert_as_one_process(network.state_dict())


def fsdp_trains_as_one_process() -> None:
    assert_fsdp_trains(sharded(cnn()))


def fsdp_trains_a_converted_network() -> None:
    assert_fsdp_trains(sharded(converted_cnn()))
    assert_fsdp_trains(fully_shard(converted_cnn(), mesh=mesh()))  # layers know nothing of it


def assert_fsdp_trains(network: torch.nn.Module) -> None:
    train_on_own_half(network)
    whole = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
    assert_as_one_process(whole)
    plain = torch_cnn()
    plain.load_state_dict(whole)
    assert_equal(plain(IMAGES), network(IMAGES))


def fsdp_computes_in_bfloat16() -> None:
    network = sharded(cnn(), MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    start = cross_entropy(network(IMAGES).double(), LABELS)
    train(network, IMAGES, LABELS)
    end = network(IMAGES)
    assert end.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert cross_entropy(end.double(), LABELS) < start - 0.1


@pytest.mark.parametrize(
    "check",
    (
        ddp_trains_as_one_process,
        ddp_trains_a_converted_network,
        compiled_ddp_trains_as_one_process,
        fsdp_trains_as_one_process,
        fsdp_trains_a_converted_network,
        fsdp_computes_in_bfloat16,
    ),
)
def test_training(ranks: Ranks, check: Callable) -> None:
    ranks.run(check)


# Dropout: a mask for each rank, but one for a DTensor.


def masks_differ_by_rank_and_repeat() -> None:
    x = torch.ones(100_000)
    compiled = torch.compile(F.dropout, fullgraph=True, backend="aot_eager")
    for dropout in (F.dropout, compiled):
        torch.manual_seed(0)
        masks = [dropout(x) != 0 for _ in range(3)]
        torch.manual_seed(0)
        for mask in masks:
            assert torch.equal(dropout(x) != 0, mask)
            one, other = of_every_rank(mask)
            assert abs((one & other).float().mean() - 0.25) < 0.01  # as if independent


def a_given_seed_is_the_mask_on_every_rank() -> None:
    one, other = of_every_rank(F.dropout(torch.ones(1000), seed=7))
    assert torch.equal(one, other)


def checkpoint_draws_the_same_mask_again() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(F.dropout, x, use_reentrant=False)
    (gradient,) = torch.autograd.grad(y, x, torch.ones(1000))
    assert torch.equal(gradient, y)


def a_dtensor_has_the_mask_of_one_process() -> None:
    whole = torch.arange(1.0, 71).view(7, 10)
    for placement in (WHOLE, FIRST, SECOND):
        x = distribute_tensor(whole, mesh(), [placement]).requires_grad_()
        y = F.dropout(x, 0.3, seed=5)
        assert torch.equal(y.full_tensor(), F.dropout(whole, 0.3, seed=5))
        y.sum().backward()
        expected = F.dropout(torch.ones(7, 10), 0.3, seed=5)
        assert torch.equal(x.grad.full_tensor(), expected)


def copies_of_a_dtensor_agree_on_the_seed_that_is_drawn() -> None:
    x = distribute_tensor(torch.ones(1000), mesh(), [WHOLE])
    for dropout in (F.dropout, torch.compile(F.dropout, fullgraph=True, backend="eager")):
        torch.manual_seed(distributed.get_rank())  # as no one should
        one, other = of_every_rank(dropout(x).to_local())
        assert torch.equal(one, other)
        torch.manual_seed(0)
        drawn = torch.randint(2**63 - 1, ())
        torch.manual_seed(0)
        assert torch.equal(dropout(x).to_local(), F.dropout(torch.ones(1000), seed=drawn))


@pytest.mark.parametrize(
    "check",
    (
        masks_differ_by_rank_and_repeat,
        a_given_seed_is_the_mask_on_every_rank,
        checkpoint_draws_the_same_mask_again,
        a_dtensor_has_the_mask_of_one_process,
        copies_of_a_dtensor_agree_on_the_seed_that_is_drawn,
    ),
)
def test_dropout(ranks: Ranks, check: Callable) -> None:
    ranks.run(check)


# DTensors: whatever the placements, the result is that of one process; for those of the rules,
# nothing is sent.

IMAGE = (5, 4, 8, 9)  # neither side of five or nine divides evenly
MATRIX = (5, 4)
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda *t: F.conv2d(*t, padding=1), (IMAGE, (6, 4, 3, 3), (6,))),
    "conv2d, strided": (lambda *t: F.conv2d(*t, 2, 1), (IMAGE, (6, 4, 3, 3), (6,))),
    "conv2d, uneven": (lambda *t: F.conv2d(*t, 2, 1), ((3, 3, 8, 9), (5, 3, 3, 3), (5,))),
    "conv2d, no bias": (F.conv2d, (IMAGE, (6, 4, 3, 3))),
    "conv2d, groups": (lambda *t: F.conv2d(*t, groups=2), (IMAGE, (6, 2, 3, 3), (6,))),
    "conv2d, depthwise": (lambda *t: F.conv2d(*t, groups=4), (IMAGE, (4, 1, 3, 3), (4,))),
    "conv_relu2d": (lambda *t: F.conv_relu2d(*t, padding=1), (IMAGE, (6, 4, 3, 3), (6,))),
    "linear": (F.linear, (MATRIX, (7, 4), (7,))),
    "linear, no bias": (F.linear, (MATRIX, (7, 4))),
    "linear_relu": (F.linear_relu, (MATRIX, (7, 4), (7,))),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (IMAGE,)),
    "max_pool2d, 2 x 2": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "max_pool2d, indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1] * x.sum(),
        (IMAGE,),
    ),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (IMAGE,)),
    "avg_pool2d, ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (IMAGE,)),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (IMAGE,)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 3), (IMAGE,)),
}


def derivatives(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output, and the first and second derivatives of its length."""
    y = function(*tensors)
    first = torch.autograd.grad((y * y).sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum((g * g).sum() for g in first), tensors)
    return [y, *first, *second]


def is_as_on_one_process(name: str) -> None:
    function, sizes = CALLS[name]
    tensors = [double(*size, seed=seed) for seed, size in enumerate(sizes)]
    expected = derivatives(function, [x.clone().requires_grad_() for x in tensors])
    choices = [(WHOLE, FIRST, SECOND) if x.dim() > 1 else (WHOLE, FIRST) for x in tensors]
    for placements in itertools.product(*choices):
        sharded = [
            distribute_tensor(x, mesh(), [placement]).requires_grad_()
            for x, placement in zip(tensors, placements, strict=True)
        ]
        for ours, theirs in zip(derivatives(function, sharded), expected, strict=True):
            assert_equal(ours.full_tensor(), theirs)


@pytest.mark.parametrize("name", CALLS)
def test_dtensors(ranks: Ranks, name: str) -> None:
    ranks.run(is_as_on_one_process, name)


# What a call puts where, without a byte being sent: as the table in docs/distributed.md has it.
UNSENT: list[tuple[str, list[Placement], Placement]] = [
    ("conv2d", [FIRST, WHOLE, WHOLE], FIRST),
    ("conv2d", [WHOLE, FIRST, FIRST], SECOND),
    ("conv2d", [SECOND, SECOND, WHOLE], Partial()),
    ("conv2d, depthwise", [FIRST, WHOLE, WHOLE], FIRST),
    ("conv_relu2d", [FIRST, WHOLE, WHOLE], FIRST),
    ("conv_relu2d", [WHOLE, FIRST, FIRST], SECOND),
    ("linear", [FIRST, WHOLE, WHOLE], FIRST),
    ("linear", [WHOLE, FIRST, FIRST], SECOND),
    ("linear", [SECOND, SECOND, WHOLE], Partial()),
    ("linear_relu", [FIRST, WHOLE, WHOLE], FIRST),
    ("linear_relu", [WHOLE, FIRST, FIRST], SECOND),
    ("max_pool2d", [FIRST], FIRST),
    ("max_pool2d", [SECOND], SECOND),
    ("avg_pool2d", [FIRST], FIRST),
    ("avg_pool2d", [SECOND], SECOND),
    ("adaptive_max_pool2d", [SECOND], SECOND),
    ("adaptive_avg_pool2d", [SECOND], SECOND),
]


def sends_nothing(name: str, placements: list[Placement], placement: Placement) -> None:
    function, sizes = CALLS[name]
    sharded = [
        distribute_tensor(double(*size), mesh(), [placement]).requires_grad_()
        for size, placement in zip(sizes, placements, strict=True)
    ]
    with CommDebugMode() as sent:
        y = function(*sharded)
        if not placement.is_partial():  # whose gradient would be summed first
            y.backward(torch.ones_like(y))
    assert y.placements == (placement,)
    assert sent.get_total_counts() == 0, sent.get_comm_counts()


@pytest.mark.parametrize("name, placements, placement", UNSENT)
def test_nothing_is_sent(
    ranks: Ranks, name: str, placements: list[Placement], placement: Placement
) -> None:
    ranks.run(sends_nothing, name, placements, placement)


def a_mesh_of_two_dimensions_takes_a_way_for_each() -> None:
    image, weight = double(4, 4, 8, 8), double(6, 4, 3, 3)
    for size in ((1, COUNT), (COUNT, 1)):
        grid = init_device_mesh("cpu", size, mesh_dim_names=("data", "model"))
        x = distribute_tensor(image, grid, [FIRST, SECOND])
        w = distribute_tensor(weight, grid, [WHOLE, SECOND])
        y = F.conv2d(x, w)
        assert y.placements == (FIRST, Partial())
        assert_equal(y.full_tensor(), F.conv2d(image, weight))


def test_mesh_of_two_dimensions(ranks: Ranks) -> None:
    ranks.run(a_mesh_of_two_dimensions_takes_a_way_for_each)


@pytest.mark.parametrize(
    "channels, ranks_of_mesh, filled",
    ((6, (4,), False), (7, (4,), True), (8, (4,), True), (6, (2, 3), True), (6, (128, 2), True)),
)
def test_channels_that_leave_a_rank_without(
    channels: int, ranks_of_mesh: tuple[int, ...], filled: bool
) -> None:
    """Which the kernels of convolution and pooling refuse; more ranks than channels, torch does."""
    weight = SimpleNamespace(shape=(channels, 4, 3, 3), mesh=SimpleNamespace(shape=ranks_of_mesh))
    window = [1, 1, 0, 0, 0, 0, 1, 1, 1]
    ways = sharding.RULES["corr2d"](None, weight, None, window, False)
    assert ((SECOND, WHOLE, FIRST, FIRST) in ways) == filled


def tensor_parallel_is_as_on_one_process() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(nn.LinearReLU(6, 16), nn.Linear(16, 5)).double()
    x = double(3, 7, 6)
    expected = network(x)
    gradients = torch.autograd.grad(expected.sin().sum(), list(network.parameters()))
    rows = RowwiseParallel(use_local_output=False)
    parallelize_module(network, mesh(), {"0": ColwiseParallel(), "1": rows})
    assert network[0].weight.to_local().shape == (8, 6)
    with CommDebugMode() as sent:
        y = network(x)
    assert sent.get_total_counts() == 1  # at the end, to add up partial sums
    assert_equal(y.to_local(), expected)
    y.sin().sum().backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert_equal(parameter.grad.full_tensor(), gradient)
    one, other = of_every_rank(nn.Dropout()(y).to_local())
    assert torch.equal(one, other)


def test_tensor_parallel(ranks: Ranks) -> None:
    ranks.run(tensor_parallel_is_as_on_one_process)


# The rules are there when they are needed, and not before.

ONE_RANK = """
import tempfile
from torch import distributed
with tempfile.NamedTemporaryFile() as file:
    distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
"""


def test_every_operator_has_a_rule() -> None:
    measures_arithmetic_alone = {"fma_chain"}
    assert (
        sharding.RULES.keys() == vars(backends.kernels(IMAGES)).keys() - measures_arithmetic_alone
    )


def test_import_does_without_dtensors_and_the_compiler() -> None:
    modules = "torch.distributed.tensor", "torch._dynamo"
    result = run_python("-c", f"import sys, d2lops; print(sys.modules.keys() & {{*{modules}}})")
    assert result.stdout == "set()\n", result.stderr


@pytest.mark.parametrize(
    "imports, call, environment",
    (
        ("import torch.distributed.tensor, d2lops.functional as F", "F.linear", {}),
        ("import d2lops.functional as F, torch.distributed.tensor", "F.linear", {}),
        (
            "import d2lops.functional as F",
            "torch.compile(F.linear, fullgraph=True, backend='eager')",
            {},
        ),
        (
            "import d2lops.functional as F",
            "F.linear",
            {"D2LOPS_BACKEND": "triton", "TRITON_INTERPRET": "1"},
        ),
    ),
    ids=("tensor first", "d2lops first", "compiled", "triton"),
)
def test_first_dtensor_finds_rules(imports: str, call: str, environment: dict[str, str]) -> None:
    script = f"""
import torch
{imports}
{ONE_RANK}
from torch.distributed.tensor import Shard, distribute_tensor
x, w = (distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]) for _ in range(2))
assert torch.equal({call}(x, w).full_tensor(), torch.full((4, 4), 4.0))
distributed.destroy_process_group()
"""
    result = run_python("-c", script, **environment)
    assert result.returncode == 0, result.stderr


def test_example_trains_on_two_processes() -> None:
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(COUNT)
    process = subprocess.Popen(
        [sys.executable, *torchrun, "-m", "examples.train_ddp", "--quick"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.terminate()  # which ends the processes that it started, should they hang
    assert process.returncode == 0, output
    assert output.count("test accuracy") == 1  # from one rank alone
    reached = re.search(r"2 processes: .* test accuracy ([0-9.]+)%", " ".join(output.split()))
    assert float(reached[1]) > 60, output
