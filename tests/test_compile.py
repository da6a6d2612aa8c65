"""torch.compile: whole networks in one graph, for every batch and image size, eager's numbers.

Most of it without Inductor, which takes long to generate code: what it is given has been traced,
and differentiated, by then.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import d2lops.nn
from d2lops import functional as F
from tests.device import normal
from tests.every_layer import BOOK, IMAGES, book_network, every_layer, results

pytestmark = pytest.mark.usefixtures("in_float64")

BATCHES = (2, 3, 5, 8)
# No two height or width alike, both even and odd, and neither always the longer one.
SIZES = ((2, 3, 20, 22), (3, 3, 23, 17), (4, 3, 33, 40), (3, 3, 21, 24), (5, 3, 44, 32))

# How to make a layer, or two, from torch.nn or from d2lops.nn.
LAYERS: dict[str, Callable] = {
    "Conv2d": lambda nn: nn.Conv2d(3, 8, 3, 2, 1),
    "Conv2d, same": lambda nn: nn.Conv2d(3, 8, 3, padding="same"),
    "Conv2d, reflect": lambda nn: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    "MaxPool2d": lambda nn: nn.MaxPool2d(3, 2, 1),
    "MaxPool2d, ceil_mode": lambda nn: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "AvgPool2d": lambda nn: nn.AvgPool2d((2, 3)),
    "AvgPool2d, ceil_mode": lambda nn: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "AdaptiveAvgPool2d": lambda nn: nn.AdaptiveAvgPool2d((5, 4)),
    "AdaptiveAvgPool2d, None": lambda nn: nn.AdaptiveAvgPool2d((3, None)),
    "AdaptiveMaxPool2d": lambda nn: nn.AdaptiveMaxPool2d((5, 4)),
    "AdaptiveMaxPool2d, None": lambda nn: nn.AdaptiveMaxPool2d((3, None)),
    "Linear": lambda nn: nn.Sequential(nn.AdaptiveAvgPool2d((None, 5)), nn.Linear(5, 4)),
}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def eagers_random_numbers() -> Iterator[None]:
    """Inductor has a generator of its own, for torch's dropout too, unless it is told otherwise."""
    with torch._inductor.config.patch(fallback_random=True):
        yield


def assert_equals_eager(
    compiled: Callable, network: torch.nn.Module, images: Tensor, training: bool = True
) -> None:
    if training:
        wanted = [*network.parameters()]
        ours, eager = (results(f, images, wanted) for f in (compiled, network))
    else:
        with torch.no_grad():
            ours, eager = compiled(images), network(images)
    torch.testing.assert_close(ours, eager)


@pytest.mark.usefixtures("eagers_random_numbers")
class TestBatches:
    """The first batch makes a graph for its size, the second one for all: and that is all."""

    @pytest.mark.parametrize("training", (True, False))
    def test_two_graphs_serve_all(self, training: bool) -> None:
        network = every_layer().train(training)
        graphs = CompileCounterWithBackend("inductor")
        compiled = torch.compile(network, fullgraph=True, backend=graphs)
        for count, batch in enumerate((*BATCHES, BATCHES[0])):
            warm = "fail_on_recompile" if count >= 2 else "default"
            with torch.compiler.set_stance(warm):
                assert_equals_eager(compiled, network, normal(batch, *IMAGES), training)
        assert graphs.frame_count == 2

    @pytest.mark.parametrize("training", (True, False))
    def test_one_graph_serves_all_if_told_before(self, training: bool) -> None:
        network = every_layer().train(training)
        compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager")
        for count, batch in enumerate(BATCHES):
            with torch.compiler.set_stance("fail_on_recompile" if count else "default"):
                assert_equals_eager(compiled, network, normal(batch, *IMAGES), training)

    def test_little_overhead(self) -> None:
        """On a GPU, CUDA graphs: the first calls warm up, the next one is captured, then replayed.

        Without dropout: a captured graph draws its own random numbers.
        """
        network = every_layer().eval()
        compiled = torch.compile(network, fullgraph=True, mode="reduce-overhead")
        for seed in range(4):
            assert_equals_eager(compiled, network, normal(3, *IMAGES, seed=seed))


class TestImageSizes:
    @pytest.mark.parametrize("name", LAYERS)
    def test_one_graph_serves_all(self, name: str) -> None:
        """Heights and widths are no ints then, but symbols, and no branch may depend on them."""
        layer = LAYERS[name](d2lops.nn)
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for count, size in enumerate(SIZES):
            with torch.compiler.set_stance("fail_on_recompile" if count else "default"):
                assert_equals_eager(compiled, layer, normal(*size))

    def test_arguments_may_follow_an_images_size(self) -> None:
        def halved(x: Tensor) -> Tensor:
            height, width = x.shape[2] // 2, x.shape[3] // 3
            y = F.adaptive_avg_pool2d(x, (height, width)) + F.adaptive_max_pool2d(
                x, (height, width)
            )
            return F.conv2d(y, x[:1, :, :height, :2])

        compiled = torch.compile(halved, fullgraph=True, dynamic=True, backend="aot_eager")
        for count, size in enumerate(SIZES):
            with torch.compiler.set_stance("fail_on_recompile" if count else "default"):
                torch.testing.assert_close(*(results(f, normal(*size)) for f in (compiled, halved)))

    def test_a_window_is_part_of_its_graph(self) -> None:
        """As it is for torch's pools: another window, another graph, and no wrong number."""

        def global_average(x: Tensor) -> Tensor:
            return F.avg_pool2d(F.conv2d(x, x[:1, :, :4, :4], padding="same"), x.shape[2:])

        compiled = torch.compile(global_average, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in SIZES[:3]:
            x = normal(*size)
            torch.testing.assert_close(*(results(f, x) for f in (compiled, global_average)))


@pytest.mark.parametrize("name", BOOK)
def test_the_books_networks_are_one_graph(name: str) -> None:
    network, images = book_network(name)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_equals_eager(compiled, network, images)


class TestDropout:
    @staticmethod
    def halved(x: Tensor) -> Tensor:
        return F.dropout(x.exp()) / 2

    def test_draws_by_the_seed_and_anew_in_each_call(self) -> None:
        compiled = torch.compile(self.halved, fullgraph=True)
        x = torch.zeros(4000)
        torch.manual_seed(1)
        first, second = compiled(x), compiled(x)
        torch.manual_seed(1)
        assert torch.equal(compiled(x), first) and not torch.equal(second, first)
        for y in (first, second):
            assert {*y.tolist()} == {0.0, 1.0} and 0.4 < y.mean() < 0.6

    def test_backward_has_the_same_mask(self) -> None:
        x = torch.zeros(4000, requires_grad=True)
        y = torch.compile(self.halved, fullgraph=True)(x)
        (gradient,) = torch.autograd.grad(y, x, torch.ones(4000))
        assert torch.equal(gradient, y)

    @pytest.mark.usefixtures("eagers_random_numbers")
    def test_is_eagers_where_inductor_uses_eagers_generator(self) -> None:
        compiled = torch.compile(self.halved, fullgraph=True)
        masks = []
        for dropout in (compiled, self.halved):
            torch.manual_seed(1)
            masks.append(dropout(torch.zeros(4000)))
        assert torch.equal(*masks)
