"""`torch.utils.flop_counter` counts of the operators what it counts of torch's own."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from d2lops import nn
from tests.device import cpu_only, normal
from tests.isolated import run_python


def flops(layers: object, groups: int) -> tuple[int, int]:
    """Of a network's forward pass, and of both passes; the images get a gradient, too."""
    net = layers.Sequential(
        layers.Conv2d(2, 4, 3, stride=2, padding=1, groups=groups),
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Conv2d(4, 6, (2, 1), dilation=2),
        layers.AvgPool2d(2),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Linear(36, 5),
        layers.ReLU(),
        layers.Linear(5, 3, bias=False),
    )
    images = normal(2, 2, 24, 24).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        output = net(images)
        forward = counter.get_total_flops()
        output.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("groups", (1, 2))
def test_of_a_network(groups: int) -> None:
    forward, both = flops(nn, groups)
    assert (forward, both) == flops(torch.nn, groups)
    assert 0 < forward < both


@cpu_only
@pytest.mark.parametrize(
    "first, second",
    (("d2lops", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "d2lops")),
)
def test_whichever_is_imported_first(first: str, second: str) -> None:
    """And without the one importing the other."""
    script = f"""
import sys, torch, {first}
assert {second!r} not in sys.modules
import {second}
assert torch.ops.d2lops.corr2d in torch.utils.flop_counter.flop_registry
"""
    result = run_python("-c", script)
    assert result.returncode == 0, result.stderr
