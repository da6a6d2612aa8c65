"""Each operator once, forwards and backwards: for tests of what they have in common."""

from collections.abc import Callable

import torch
from torch import Tensor

from d2lops import functional as F
from tests.accuracy import outputs_and_gradients


def every_operator(image: Tensor) -> dict[str, list[Tensor]]:
    """By name, the output and the gradients of all inputs: an image (N, C, H, W), and weights.

    Nothing is copied from the CPU: that would wait for the stream, and a graph cannot capture it.
    """
    channels, width = image.shape[1], image.shape[3]

    def weight(*size: int) -> Tensor:
        count = torch.Size(size).numel()
        return torch.arange(count, device=image.device).sin().view(size).to(image.dtype)

    def kernels(outputs: int, inputs: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        return image, weight(outputs, inputs, size, size), weight(outputs)

    matrix = (image, weight(19, width), weight(19))
    calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "dropout": (lambda x: F.dropout(x, 0.3, seed=1), (image,)),
        "conv2d": (lambda *t: F.conv2d(*t, padding=1), kernels(24, channels, 3)),
        "conv2d, strided": (lambda *t: F.conv2d(*t, 2, (1, 0, 2, 1)), kernels(9, channels, 3)),
        "conv2d, 1 x 1": (F.conv2d, kernels(17, channels, 1)),
        "conv2d, depthwise": (
            lambda *t: F.conv2d(*t, padding=1, groups=channels),
            kernels(channels, 1, 3),
        ),
        "conv_relu2d": (lambda *t: F.conv_relu2d(*t, padding=1), kernels(16, channels, 3)),
        "linear": (F.linear, matrix),
        "linear_relu": (F.linear_relu, matrix),
        "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (image,)),
        "max_pool2d, 2 x 2": (lambda x: F.max_pool2d(x, 2), (image,)),
        "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (image,)),
        "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (image,)),
        "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), (image,)),
    }
    results = {}
    for name, (function, tensors) in calls.items():
        with torch.no_grad():
            size = function(*tensors).shape
        results[name] = outputs_and_gradients(function, tensors, weight(*size))
    return results
