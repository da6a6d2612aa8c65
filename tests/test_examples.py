"""The examples do what they say, on a smaller scale."""

import torch

import d2lops.nn
from d2lops import functional as F
from examples import edges, lenet
from tests.device import cpu_only

pytestmark = cpu_only


def test_edges_are_differences_of_neighbours() -> None:
    image = edges.photograph()
    assert image.shape == (427, 640) and 0 <= image.min() < image.max() <= 1
    torch.testing.assert_close(F.corr2d(image, edges.KERNEL), image[:, :-1] - image[:, 1:])


def test_kernel_is_learned() -> None:
    torch.manual_seed(0)
    image = edges.photograph()[150:250, 100:300]
    learned, losses = edges.learn_kernel(image, image[:, :-1] - image[:, 1:])
    assert (learned - edges.KERNEL).abs().max() < edges.TOLERANCE
    assert losses[-1] < losses[0] / 1000


def test_one_import_changes_nothing_but_the_kernels() -> None:
    torch.manual_seed(0)
    images, labels, test_images, test_labels = lenet.digits()
    assert images.shape == (1437, 1, 28, 28) and len(test_images) == len(test_labels) == 360
    twins = lenet.twins()
    assert isinstance(twins["d2lops.nn"][0], d2lops.nn.Conv2d)
    assert not isinstance(twins["torch.nn"][0], d2lops.nn.Conv2d)
    theirs, ours = (lenet.Training(network, steps=10) for network in twins.values())
    for batch in torch.arange(96).split(32):
        assert theirs.schedule.get_last_lr() == ours.schedule.get_last_lr()
        their_loss = theirs.step(images[batch], labels[batch])
        torch.testing.assert_close(
            ours.step(images[batch], labels[batch]), their_loss, rtol=1e-4, atol=0
        )
