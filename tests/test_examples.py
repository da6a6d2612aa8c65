"""The book's systems do what they say, on a smaller scale; data are read, the index is kept."""

import gzip
from importlib import import_module
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import d2lops.nn
from examples import __main__ as index
from examples import alexnet, batch_norm, book, edges, lenet, networks, nin, pooling, vgg
from examples import padding_stride_channels as geometry
from tests.device import cpu_only

pytestmark = [cpu_only, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("name", index.scripts())
def test_scripts(name: str, tmp_path: Path) -> None:
    figures = import_module(f"examples.{name}").main(quick=True, pictures=tmp_path)
    assert figures.keys() == book.LAYERS.keys() and all(figures.values())
    (picture,) = tmp_path.iterdir()
    assert picture.name == f"{name}.png" and picture.stat().st_size < 40_000
    pixels = numpy.asarray(Image.open(picture).convert("L"))
    assert min(pixels.shape) >= 200 and numpy.ptp(pixels) > 100


class TestIndex:
    TABLE = "before\n<!-- index -->\n{}<!-- end of index -->\nafter\n"

    def test_begins_where_the_book_does(self) -> None:
        places = [script.place() for script in index.scripts().values()]
        assert places == sorted(places)
        assert index.scripts()["lenet"].sections == "7.6"
        assert index.scripts()["padding_stride_channels"].place() == [7, 3, 7, 4]

    def test_a_script_must_name_its_section(self, tmp_path: Path) -> None:
        script = tmp_path / "resnet.py"
        script.write_text('"""ResNet learns digits."""\n')
        with pytest.raises(ValueError, match=r"resnet\.py must begin 'D2L .*ResNet learns digits"):
            index.about(script)

    def test_figures_are_written_and_kept(self, tmp_path: Path) -> None:
        readme = tmp_path / "README.md"
        readme.write_text(self.TABLE.format(""))
        index.write_index(readme, {"lenet": {"torch.nn": "97 %", "d2lops.nn": "98 %"}})
        index.write_index(readme, {"edges": {"torch.nn": "[1, −1]", "d2lops.nn": "[1, −1]"}})
        text = readme.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n")
        rows = {line.split(".py")[0]: line for line in text.splitlines() if line[:2] == "| "}
        assert rows["| [lenet"].endswith("| 97 % | 98 % |")
        assert rows["| [edges"].endswith("| [1, −1] | [1, −1] |")
        assert rows["| [vgg"].endswith("| not run yet | not run yet |")

    def test_is_complete(self) -> None:
        """What is committed has a row for each script, with figures, and a picture."""
        text = index.INDEX.read_text()
        assert {name for name, *_ in index.ROW.findall(text)} == index.scripts().keys()
        assert "not run yet" not in text
        for name in index.scripts():
            assert (book.PICTURES / f"{name}.png").stat().st_size < 40_000


def idx(path: Path, values: Tensor) -> None:
    """Writes bytes as Fashion-MNIST is published."""
    header = bytes((0, 0, 8, values.dim())) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + values.to(torch.uint8).numpy().tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A copy of Fashion-MNIST, of 6 images to train on and 3 to test on."""
    for kind, count in (("train", 6), ("t10k", 3)):
        pixels = torch.arange(count * 784).reshape(count, 28, 28) % 256
        idx(tmp_path / f"{kind}-images-idx3-ubyte.gz", pixels)
        idx(tmp_path / f"{kind}-labels-idx1-ubyte.gz", torch.arange(count))
    return tmp_path


class TestData:
    def test_fashion_mnist(self, fashion: Path) -> None:
        data = book.image_data(fashion, 28)
        assert data.inputs.shape == (6, 1, 28, 28) and data.test_inputs.shape == (3, 1, 28, 28)
        pixels = torch.arange(6 * 784).reshape(6, 1, 28, 28) % 256
        torch.testing.assert_close(data.inputs, pixels / 255)
        assert data.targets.tolist() == [*range(6)] and data.targets.dtype == torch.int64
        assert data.test_targets.tolist() == [0, 1, 2]

    def test_fashion_mnist_is_scaled(self, fashion: Path) -> None:
        data = book.image_data(fashion, 56)
        assert data.inputs.shape == (6, 1, 56, 56)
        assert 0 <= data.inputs.min() < data.inputs.max() <= 1

    def test_a_script_learns_from_a_copy(self, fashion: Path, tmp_path: Path) -> None:
        figures = lenet.main(quick=True, data=fashion, pictures=tmp_path / "pictures")
        # Of three images, right are none, one, two or all.
        assert set(figures.values()) <= {"0.0 %", "33.3 %", "66.7 %", "100.0 %"}

    def test_a_file_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz"):
            book.fashion_mnist(tmp_path)

    def test_what_is_no_idx_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "images.gz"
        path.write_bytes(gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00"))  # of floats
        with pytest.raises(ValueError, match="must be an idx file of bytes"):
            book.read_idx(path)

    def test_digits(self) -> None:
        data = book.digits(28)
        assert data.inputs.shape == (1437, 1, 28, 28) and len(data.test_targets) == 360
        assert data.inputs.min() == 0 and 0.9 < data.inputs.max() <= 1
        counts = torch.bincount(torch.cat([data.targets, data.test_targets]))
        assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    def test_diabetes_is_standardised_by_what_is_trained_on(self) -> None:
        data = book.diabetes()
        assert data.inputs.shape == (342, 10) and data.test_inputs.shape == (100, 10)
        for values in (data.inputs, data.targets):
            torch.testing.assert_close(values.mean(dim=0), torch.zeros(values.shape[1]))
            torch.testing.assert_close(values.std(dim=0), torch.ones(values.shape[1]))
        assert data.test_targets.mean().abs() > 1e-3


class TestTraining:
    def test_one_import_changes_nothing_but_the_kernels(self) -> None:
        data = book.digits(28).first(96, 32)
        twins = book.twins(lenet.lenet, data.inputs[:1])
        assert isinstance(twins["d2lops.nn"][0], d2lops.nn.Conv2d)
        assert not isinstance(twins["torch.nn"][0], d2lops.nn.Conv2d)
        lessons = book.teach(twins, data, epochs=2, learning_rate=1e-2)
        theirs, ours = lessons.losses["torch.nn"], lessons.losses["d2lops.nn"]
        assert len(ours) == 2 and len(set(ours)) == 2
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
        assert lessons.accuracies["d2lops.nn"] == lessons.accuracies["torch.nn"]

    def test_a_figure_that_is_not_reached_raises(self) -> None:
        lessons = book.Lessons(accuracies={"torch.nn": [0.1, 0.99], "d2lops.nn": [0.99, 0.97]})
        assert lessons.reached(0.97) == {"torch.nn": "99.0 %", "d2lops.nn": "97.0 %"}
        with pytest.raises(book.NotReachedError, match=r"at least 0\.98"):
            lessons.reached(0.98)

    def test_figures_that_are_far_apart_raise(self) -> None:
        lessons = book.Lessons(accuracies={"torch.nn": [0.99], "d2lops.nn": [0.9]})
        assert lessons.reached(None) == {"torch.nn": "99.0 %", "d2lops.nn": "90.0 %"}
        with pytest.raises(book.NotReachedError, match="within"):
            lessons.reached(0.8)

    def test_every_epoch_sees_every_example_once(self) -> None:
        data = book.digits().first(50, 1)
        seen = []

        class Watched(torch.nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x)
                return super().forward(x.flatten(1))

        network = Watched(64, 10)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        first, second = book.train(network, optimizer, data, epochs=2)
        assert [len(x) for x in seen] == [32, 18, 32, 18] and second < first
        for epoch in (seen[:2], seen[2:]):
            assert (
                torch.cat(epoch)
                .flatten(1)
                .sum(1)
                .sort()[0]
                .equal(data.inputs.flatten(1).sum(1).sort()[0])
            )
        assert not seen[0].equal(seen[2])


class TestConvolutions:
    def test_edges_are_differences_of_neighbours(self) -> None:
        image = edges.photograph()
        assert image.shape == (427, 640) and 0 <= image.min() < image.max() <= 1
        found = edges.corr2d(d2lops.nn, image, edges.KERNEL)
        torch.testing.assert_close(found, image[:, :-1] - image[:, 1:])

    def test_another_kernel_is_learned_too(self) -> None:
        """Not one that the script knows: a mean of two pixels."""
        image = edges.photograph()[150:250, 100:300]
        learned, losses = edges.learn_kernel(d2lops.nn, image - image.mean(), image[:, 1:] * 0)
        torch.testing.assert_close(learned, torch.zeros(1, 2), rtol=0, atol=edges.TOLERANCE)
        assert losses[-1] < losses[0] / 1000

    def test_loops_are_not_the_layers_by_another_name(self) -> None:
        """By hand: two channels, the book's example (D2L 7.4.1)."""
        image = torch.stack([torch.arange(9.0).reshape(3, 3), torch.arange(1.0, 10).reshape(3, 3)])
        kernel = torch.stack([torch.arange(4.0).reshape(2, 2), torch.arange(1.0, 5).reshape(2, 2)])
        result = geometry.corr2d_multi_in_out(image, kernel[None], (0, 0), (1, 1))
        assert result.tolist() == [[[56, 72], [104, 120]]]

    def test_a_layer_that_ignores_its_padding_is_found_out(self) -> None:
        class Wrong:
            functional = torch.nn.functional

            @staticmethod
            def Conv2d(*arguments: int, padding: tuple[int, int], **named: int):  # noqa: N802
                return torch.nn.Conv2d(*arguments, **named)

        with pytest.raises(book.NotReachedError, match="kernel 3, padding 1"):
            geometry.check(Wrong, torch.rand(3, 8, 8))


class TestPooling:
    def test_loops(self) -> None:
        image = torch.arange(9.0).reshape(3, 3)
        assert pooling.pool2d(image, 2, 1, 0, "max").tolist() == [[4, 5], [7, 8]]
        assert pooling.pool2d(image, 2, 1, 0, "avg").tolist() == [[2, 3], [5, 6]]
        assert pooling.pool2d(-image - 1, 3, 2, 1, "max").tolist() == [[-1, -2], [-4, -5]]

    def test_likeness_falls_with_distance_and_slower_when_pooled(self) -> None:
        image = edges.photograph()[150:250, 100:300]
        bare, pooled = (pooling.likeness(d2lops.nn, image, window) for window in (1, 4))
        assert bare[0] == pytest.approx(1) and pooled[0] == pytest.approx(1)
        assert all(a < b for a, b in zip(bare[1:4], pooled[1:4], strict=True))


class TestNetworks:
    @pytest.mark.parametrize(
        "build", [networks.alexnet, networks.vgg11, networks.nin, networks.googlenet]
    )
    def test_narrower_networks_are_the_same_layers(self, build) -> None:
        with torch.device("meta"):
            image = torch.empty(1, 1, 72, 72)
            wide, narrow = build(torch.nn), build(torch.nn, narrower=4)
            assert wide(image).shape == narrow(image).shape == (1, 10)
        assert [*wide.state_dict()] == [*narrow.state_dict()]
        channels = [
            [
                layer.out_channels
                for layer in network.modules()
                if isinstance(layer, torch.nn.Conv2d)
            ]
            for network in (wide, narrow)
        ]
        for many, few in zip(*channels, strict=True):
            assert few == (many // 4 if many != 10 else 10)  # NiN ends in a channel for each class

    def test_kernels_side_by_side(self) -> None:
        kernels = torch.arange(8 * 4.0).reshape(8, 2, 2)
        grid = alexnet.side_by_side(kernels)
        assert grid.shape == (12, 6)
        assert grid[0].nan_to_num(-1).tolist() == [0, 1, -1, 4, 5, -1]
        assert grid[10, 3:5].tolist() == [30, 31] and grid[2].isnan().all()

    def test_vgg_halves_the_image_and_doubles_the_channels(self) -> None:
        blocks = vgg.after_each_block(vgg.vgg11(d2lops.nn), torch.rand(1, 1, 32, 32))
        sizes = [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2), (64, 1, 1)]
        assert [tuple(x.shape) for x in blocks] == sizes

    def test_nin_has_no_fully_connected_layer(self) -> None:
        assert nin.parameters(networks.nin) == {"convolutions": 1_992_166, "fully connected": 0}
        assert sum(nin.parameters(networks.alexnet).values()) == 46_764_746


class TestBatchNorm:
    @pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 5)])
    def test_is_the_one_of_nn_with_its_gradients(self, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        ours = batch_norm.BatchNorm(4).double()
        theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(4).double()
        for training in (True, True, False):
            x = (torch.randn(shape, dtype=torch.float64) * 3 + 1).requires_grad_()
            y, expected = ours.train(training)(x), theirs.train(training)(x)
            torch.testing.assert_close(y, expected)
            weights = torch.randn_like(y)
            gradients = [
                torch.autograd.grad((result * weights).sum(), (x, layer.weight, layer.bias))
                for result, layer in ((y, ours), (expected, theirs))
            ]
            torch.testing.assert_close(*gradients)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)

    def test_no_better_than_without_raises(self) -> None:
        good, bad = ({name: [accuracy] for name in book.LAYERS} for accuracy in (0.97, 0.8))
        lessons = {
            kind: book.Lessons(accuracies=bad if kind == "without" else good)
            for kind in batch_norm.KINDS
        }
        batch_norm.compared(lessons, 0.95)
        lessons["without"] = book.Lessons(accuracies=good)
        with pytest.raises(book.NotReachedError, match="no better than without"):
            batch_norm.compared(lessons, 0.95)
