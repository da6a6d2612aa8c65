"""The book's networks, from the layers of whatever `nn` is given: `torch.nn` or `d2lops.nn`.

Each ends in ten classes and takes images of one channel, as the book trains them on Fashion-MNIST;
LeNet is in `lenet.py`. `narrower` divides the channels, and `hidden` is how wide the layers before
the last are: smaller networks learn in a minute. With `fused`, which only `d2lops.nn` can, a layer
and its ReLU are one, and an Identity stands where the ReLU was: names and shapes in the state_dict
stay the same.
"""

from types import ModuleType

from torch import Tensor, cat
from torch.nn import Module, Sequential

Layers = tuple[Module, Module]


def dropout_mlp(nn: ModuleType, fused: bool = False) -> Sequential:
    """D2L 5.6, for 28×28 images."""
    return nn.Sequential(
        nn.Flatten(),
        *_linear_relu(nn, fused, 256),
        nn.Dropout(0.5),
        *_linear_relu(nn, fused, 256),
        nn.Dropout(0.5),
        nn.LazyLinear(10),
    )


def alexnet(
    nn: ModuleType, fused: bool = False, narrower: int = 1, hidden: int = 4096
) -> Sequential:
    """D2L 8.1, for 224×224 images; from 67×67 on."""
    return nn.Sequential(
        *_conv_relu(nn, fused, 96 // narrower, kernel_size=11, stride=4, padding=1),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *_conv_relu(nn, fused, 256 // narrower, kernel_size=5, padding=2),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *_conv_relu(nn, fused, 384 // narrower, kernel_size=3, padding=1),
        *_conv_relu(nn, fused, 384 // narrower, kernel_size=3, padding=1),
        *_conv_relu(nn, fused, 256 // narrower, kernel_size=3, padding=1),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *_classifier(nn, fused, hidden),
    )


def vgg11(nn: ModuleType, fused: bool = False, narrower: int = 1, hidden: int = 4096) -> Sequential:
    """D2L 8.2, for 224×224 images; from 32×32 on. The book trains it with `narrower` = 4."""
    blocks = []
    for convolutions, channels in ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512)):
        for _ in range(convolutions):
            blocks += _conv_relu(nn, fused, channels // narrower, kernel_size=3, padding=1)
        blocks.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*blocks, *_classifier(nn, fused, hidden))


def nin(nn: ModuleType, fused: bool = False, narrower: int = 1) -> Sequential:
    """D2L 8.3, for 224×224 images; from 67×67 on."""

    def block(channels: int, **window: int) -> Layers:
        return (
            *_conv_relu(nn, fused, channels, **window),
            *_conv_relu(nn, fused, channels, kernel_size=1),
            *_conv_relu(nn, fused, channels, kernel_size=1),
        )

    return nn.Sequential(
        *block(96 // narrower, kernel_size=11, stride=4),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *block(256 // narrower, kernel_size=5, padding=2),
        nn.MaxPool2d(kernel_size=3, stride=2),
        *block(384 // narrower, kernel_size=3, padding=1),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Dropout(0.5),
        *block(10, kernel_size=3, padding=1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


class Inception(Module):
    """D2L 8.4.1: four paths over the same image, whose channels are stacked."""

    def __init__(
        self,
        nn: ModuleType,
        fused: bool,
        direct: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pooled: int,
    ) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                _conv_relu(nn, fused, direct, kernel_size=1),
                (
                    *_conv_relu(nn, fused, three[0], kernel_size=1),
                    *_conv_relu(nn, fused, three[1], kernel_size=3, padding=1),
                ),
                (
                    *_conv_relu(nn, fused, five[0], kernel_size=1),
                    *_conv_relu(nn, fused, five[1], kernel_size=5, padding=2),
                ),
                (
                    nn.MaxPool2d(kernel_size=3, stride=1, padding=1),
                    *_conv_relu(nn, fused, pooled, kernel_size=1),
                ),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return cat([path(x) for path in self.paths], dim=1)


def googlenet(nn: ModuleType, fused: bool = False, narrower: int = 1) -> Sequential:
    """D2L 8.4, for 96×96 images."""

    def halve() -> Module:
        return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def inception(
        direct: int, three: tuple[int, int], five: tuple[int, int], pooled: int
    ) -> Inception:
        three, five = (tuple(channels // narrower for channels in path) for path in (three, five))
        return Inception(nn, fused, direct // narrower, three, five, pooled // narrower)

    return nn.Sequential(
        *_conv_relu(nn, fused, 64 // narrower, kernel_size=7, stride=2, padding=3),
        halve(),
        *_conv_relu(nn, fused, 64 // narrower, kernel_size=1),
        *_conv_relu(nn, fused, 192 // narrower, kernel_size=3, padding=1),
        halve(),
        inception(64, (96, 128), (16, 32), 32),
        inception(128, (128, 192), (32, 96), 64),
        halve(),
        inception(192, (96, 208), (16, 48), 64),
        inception(160, (112, 224), (24, 64), 64),
        inception(128, (128, 256), (24, 64), 64),
        inception(112, (144, 288), (32, 64), 64),
        inception(256, (160, 320), (32, 128), 128),
        halve(),
        inception(256, (160, 320), (32, 128), 128),
        inception(384, (192, 384), (48, 128), 128),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.LazyLinear(10),
    )


def _classifier(nn: ModuleType, fused: bool, hidden: int) -> tuple[Module, ...]:
    return (
        nn.Flatten(),
        *_linear_relu(nn, fused, hidden),
        nn.Dropout(0.5),
        *_linear_relu(nn, fused, hidden),
        nn.Dropout(0.5),
        nn.LazyLinear(10),
    )


def _conv_relu(nn: ModuleType, fused: bool, channels: int, **window: int) -> Layers:
    if fused:
        return nn.LazyConvReLU2d(channels, **window), nn.Identity()
    return nn.LazyConv2d(channels, **window), nn.ReLU()


def _linear_relu(nn: ModuleType, fused: bool, outputs: int) -> Layers:
    if fused:
        return nn.LazyLinearReLU(outputs), nn.Identity()
    return nn.LazyLinear(outputs), nn.ReLU()
