"""Other processes: forked and spawned ones, and DataLoader's workers, compute the same numbers."""

import multiprocessing
from multiprocessing.queues import Queue

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2lops import functional as F
from tests.device import cpu_only, normal
from tests.every_layer import IMAGES, every_layer, results
from tests.threads import threads

pytestmark = cpu_only
PATIENCE = 60  # seconds, after which a child counts as hanging
IMAGE_COUNT = 6


def step() -> list[Tensor]:
    network = every_layer()
    return results(network, normal(16, *IMAGES), [*network.parameters()])


def child(answers: Queue) -> None:
    torch.set_num_threads(1)
    answers.put([x.tolist() for x in step()])  # a tensor would be shared, and go with its process


@pytest.mark.parametrize("start", ("fork", "spawn"))
def test_after_the_parent_has_used_threads(start: str) -> None:
    """A forked child must use one, as DataLoader's workers do.

    OpenMP's threads do not survive a fork, and whoever asks for them waits for ever: in torch's own
    operators no less than in these.
    """
    context = multiprocessing.get_context(start)
    answers = context.Queue()
    with threads(4):
        expected = [x.tolist() for x in step()]
        process = context.Process(target=child, args=(answers,))
        process.start()
        try:
            assert answers.get(timeout=PATIENCE) == expected
        finally:
            process.kill()
            process.join()
        assert [x.tolist() for x in step()] == expected  # the parent is none the worse for it


class Blurred(Dataset):
    """Images that are smoothed, shrunk and scaled on their way to the network."""

    def __len__(self) -> int:
        return IMAGE_COUNT

    def __getitem__(self, index: int) -> Tensor:
        image = F.conv2d(normal(1, 64, 64, seed=index), torch.full((1, 1, 3, 3), 1 / 9), padding=1)
        return F.linear(F.max_pool2d(image, 2), torch.eye(32) / 2)


@pytest.mark.parametrize("start", ("fork", "spawn"))
def test_data_loaders_workers(start: str) -> None:
    with threads(4):
        expected = torch.stack([Blurred()[index] for index in range(IMAGE_COUNT)])
        loader = DataLoader(
            Blurred(),
            batch_size=2,
            num_workers=1,
            multiprocessing_context=start,
            timeout=PATIENCE,
        )
        assert torch.equal(torch.cat([*loader]), expected)
