"""torch.export: a network as a program, which another process runs without the network's code."""

import pytest
import torch
from torch.export import Dim, ExportedProgram, export

from tests.device import cpu_only, normal
from tests.every_layer import BOOK, IMAGES, book_network, every_layer
from tests.isolated import run_python

ANY_BATCH = ({0: Dim("batch", min=1, max=64)},)


def assert_is_the_network(
    program: ExportedProgram, network: torch.nn.Module, *batches: int
) -> None:
    module = program.module()
    for batch in batches:
        outputs = []
        for function in (module, network):
            torch.manual_seed(0)
            outputs.append(function(normal(batch, *IMAGES)))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("strict", (True, False))
@pytest.mark.parametrize("training", (True, False))
class TestEveryLayer:
    """In training, too: dropout draws its seed in the program."""

    def test_one_batch_size(self, strict: bool, training: bool) -> None:
        network = every_layer().train(training)
        program = export(network, (normal(2, *IMAGES),), strict=strict)
        assert_is_the_network(program, network, 2)

    def test_any_batch_size(self, strict: bool, training: bool) -> None:
        network = every_layer().train(training)
        program = export(network, (normal(2, *IMAGES),), strict=strict, dynamic_shapes=ANY_BATCH)
        assert_is_the_network(program, network, 1, 2, 5)

    def test_decomposed(self, strict: bool, training: bool) -> None:
        """Into core operators and ours, which stay whole."""
        network = every_layer().train(training)
        program = export(
            network, (normal(2, *IMAGES),), strict=strict, dynamic_shapes=ANY_BATCH
        ).run_decompositions()
        assert_is_the_network(program, network, 1, 2, 5)
        called = {str(node.target) for node in program.graph.nodes}
        assert {"d2lops.corr2d.default", "d2lops.linear_relu.default"} <= called


def test_any_image_size() -> None:
    """As far as the first layer after the pools, which wants them all of one size."""
    layers = every_layer()[:8].eval()
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    module = export(layers, (normal(2, 3, 20, 24),), dynamic_shapes=(sizes,)).module()
    for size in ((1, 3, 19, 33), (5, 3, 40, 21)):
        assert torch.equal(module(normal(*size)), layers(normal(*size)))


@pytest.mark.parametrize("name", BOOK)
def test_the_books_networks(name: str) -> None:
    network, images = book_network(name)
    network.eval()
    program = export(network, (images,), strict=False)
    assert torch.equal(program.module()(images), network(images))


LOADERS = """
import os, sys, traceback
import torch
os.chdir({folder!r})
loaders = (
    lambda: torch.export.load("program.pt2").module(),
    lambda: torch._inductor.aoti_load_package("compiled.pt2"),
)
"""
RUN = """
import d2lops
images, outputs = torch.load("results.pt")
for load in loaders:
    assert torch.equal(load()(images), outputs), "the program has changed"
"""
FAIL = """
for load in loaders:
    try:
        load()
    except Exception:
        traceback.print_exc()
        print("=" * 80, file=sys.stderr)
"""


@cpu_only
class TestInAnotherProcess:
    """What a program has of ours is the operators' names, whatever the device."""

    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
        """With a program, the same one compiled, an input and its output."""
        folder = tmp_path_factory.mktemp("exported")
        network = every_layer().eval()
        program = export(network, (normal(2, *IMAGES),), dynamic_shapes=ANY_BATCH)
        torch.export.save(program, folder / "program.pt2")
        compiled = str(folder / "compiled.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=compiled)
        with torch.no_grad():
            torch.save((normal(5, *IMAGES), network(normal(5, *IMAGES))), folder / "results.pt")
        return str(folder)

    def test_gives_the_same_numbers(self, folder: str) -> None:
        result = run_python("-c", LOADERS.format(folder=folder) + RUN)
        assert result.returncode == 0, result.stderr

    def test_says_what_is_missing_without_d2lops(self, folder: str) -> None:
        """In torch's words: it is for the reader to know which package has this operator."""
        result = run_python("-c", LOADERS.format(folder=folder) + FAIL)
        assert result.returncode == 0, result.stderr
        *errors, _ = result.stderr.split("=" * 80)
        assert len(errors) == 2
        for error in errors:
            assert "Traceback" in error and "d2lops" in error and "corr2d" in error
