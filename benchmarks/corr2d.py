"""Cross-correlation: limited by arithmetic, but for depthwise and very small layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Work, numel, of_family, output_size, own, short
from benchmarks.linear_relu import masked_by_relu

HALVES = (torch.bfloat16, torch.float16)


def cases() -> list[Case]:
    return [
        _case((1, 16, 12, 12), 16, 3, padding=1, tiny=True, quick=True),
        _case((1, 16, 12, 12), 16, 1, tiny=True),
        # The book's networks, layer by layer.
        _case((128, 1, 28, 28), 6, 5, padding=2, quick=True),  # LeNet
        _case((128, 6, 14, 14), 16, 5),
        _case((24, 3, 200, 200), 48, 11, stride=4, quick=True),  # AlexNet, for images in colour
        _case((16, 1, 224, 224), 96, 11, stride=4, padding=1),
        _case((16, 96, 26, 26), 256, 5, padding=2),
        _case((16, 256, 12, 12), 384, 3, padding=1),
        _case((4, 64, 112, 112), 128, 3, padding=1),  # VGG
        _case((8, 512, 14, 14), 512, 3, padding=1),
        _case((16, 96, 54, 54), 96, 1),  # NiN
        _case((16, 1, 96, 96), 64, 7, stride=2, padding=3),  # GoogLeNet
        _case((16, 16, 12, 12), 32, 5, padding=2),
        _case((16, 832, 3, 3), 384, 1),
        _case((8, 3, 224, 224), 64, 7, stride=2, padding=3),  # ResNet
        _case((8, 256, 14, 14), 256, 3, stride=2, padding=1),
        # Few and many channels; sizes odd, small and large.
        _case((12, 64, 60, 60), 96, 3, quick=True),
        _case((16, 48, 27, 27), 128, 5),
        _case((8, 512, 9, 9), 512, 3),
        _case((16, 256, 20, 20), 80, 1, quick=True),
        _case((1, 64, 200, 200), 64, 3, padding=1),
        _case((2, 13, 97, 61), 37, 3, padding=1),
        _case((3, 17, 31, 29), 19, 3, padding=1),
        _case((32, 100, 7, 7), 50, 3, padding=1),
        _case((1, 3, 32, 32), 16, 3, padding=1),
        _case((1, 1, 427, 640), 1, 2),
        _case((4, 33, 45, 45), 65, 1),
        _case((16, 128, 28, 28), 256, 1, stride=2),
        _case((4, 32, 64, 64), 64, 4, stride=2, padding=1),
        _case((4, 64, 33, 33), 64, 3, padding=2, dilation=2),
        # Groups.
        _case((8, 128, 28, 28), 128, 3, padding=1, groups=32),
        _case((8, 96, 27, 27), 256, 5, padding=2, groups=2),
        _case((8, 96, 56, 56), 96, 3, padding=1, groups=96, quick=True),
        _case((8, 72, 28, 28), 72, 5, stride=2, padding=2, groups=72),
        _case((8, 96, 56, 56), 96, 3, padding=1, groups=96, channels_last=True),
        # Channels last.
        _case((8, 64, 56, 56), 64, 3, padding=1, channels_last=True, quick=True),
        _case((8, 64, 56, 56), 256, 1, channels_last=True),
        _case((8, 3, 112, 112), 32, 3, stride=2, padding=1, channels_last=True),
        _case((5, 19, 23, 23), 31, 5, padding=2, channels_last=True),
        # Fused with a ReLU.
        _case((8, 128, 28, 28), 128, 3, padding=1, relu=True, quick=True),
        _case((128, 6, 14, 14), 16, 5, relu=True),
        # Other dtypes.
        _case((8, 64, 28, 28), 64, 3, padding=1, dtype=torch.float64),
        _case((4, 96, 26, 26), 128, 5, padding=2, dtype=torch.float64),
        *(
            _case(*layer, dtype=dtype, **window)
            for dtype in HALVES
            for *layer, window in (
                ((8, 64, 28, 28), 64, 3, {"padding": 1}),
                ((8, 64, 28, 28), 64, 3, {"padding": 1, "channels_last": True}),
                ((16, 256, 20, 20), 80, 1, {}),
            )
        ),
        _case((24, 3, 200, 200), 48, 11, stride=4, dtype=torch.bfloat16),
        _case((128, 6, 14, 14), 16, 5, dtype=torch.bfloat16),
        _case((8, 96, 28, 28), 96, 3, padding=1, groups=96, dtype=torch.bfloat16),
    ]


def cuda_cases() -> list[Case]:
    half = {"dtype": torch.bfloat16}
    nhwc = {**half, "channels_last": True}
    return [
        _case((1, 16, 12, 12), 16, 3, padding=1, tiny=True, quick=True),
        *of_family(
            "corr2d bfloat16 channels_last",
            _case((32, 64, 56, 56), 64, 3, padding=1, quick=True, **nhwc),  # ResNet
            _case((32, 256, 14, 14), 256, 3, padding=1, **nhwc),
            _case((32, 64, 56, 56), 256, 1, quick=True, **nhwc),
            _case((32, 256, 56, 56), 512, 1, stride=2, **nhwc),
            _case((32, 128, 112, 112), 128, 3, padding=1, **nhwc),  # VGG
            _case((32, 256, 56, 56), 256, 3, padding=1, **nhwc),
            _case((32, 512, 28, 28), 512, 3, padding=1, **nhwc),
        ),
        *of_family(
            "corr2d bfloat16 NCHW, bias and ReLU",
            _case((32, 64, 56, 56), 64, 3, padding=1, relu=True, quick=True, **half),
            _case((32, 256, 14, 14), 256, 3, padding=1, relu=True, **half),
            _case((32, 256, 56, 56), 256, 3, padding=1, relu=True, **half),
        ),
        *of_family(
            "corr2d float32",
            _case((32, 64, 56, 56), 64, 3, padding=1, quick=True),
            _case((32, 256, 14, 14), 256, 3, padding=1),
            _case((32, 128, 28, 28), 128, 3, padding=1, channels_last=True),
            _case((32, 256, 56, 56), 64, 1),
        ),
        *of_family(
            "corr2d TF32",
            _case((32, 64, 56, 56), 64, 3, padding=1, channels_last=True, tf32=True),
            _case((32, 256, 14, 14), 256, 3, padding=1, channels_last=True, tf32=True),
        ),
        *of_family(
            "corr2d first layers, depthwise",
            _case((32, 3, 224, 224), 64, 7, stride=2, padding=3, quick=True, **nhwc),  # ResNet
            _case((32, 3, 224, 224), 64, 3, padding=1),  # VGG
            _case((256, 1, 28, 28), 6, 5, padding=2),  # LeNet
            _case((32, 96, 112, 112), 96, 3, padding=1, groups=96, quick=True, **nhwc),
            _case((32, 144, 56, 56), 144, 5, stride=2, padding=2, groups=144),
        ),
    ]


def _case(
    image: tuple[int, ...],
    out_channels: int,
    kernel: int,
    relu: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    tf32: bool = False,
    tiny: bool = False,
    quick: bool = False,
    **geometry: int,
) -> Case:
    """`geometry` is stride, padding, dilation and groups."""
    in_channels = image[1] // geometry.get("groups", 1)
    weight = (out_channels, in_channels, kernel, kernel)
    shapes = (image, weight, (out_channels,))

    def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, **geometry)

    def conv_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(conv(x, weight, bias))

    ours = own("conv_relu2d" if relu else "conv2d")
    output = output_size(conv, *shapes)
    products = 2 * numel(output) * in_channels * kernel**2
    details = "".join(f" {name[0]}{number}" for name, number in geometry.items())
    return Case(
        operator="corr2d",
        family="tiny" if tiny else f"corr2d {short(dtype)}",
        name=f"{'×'.join(map(str, image))} → {out_channels}, {kernel}×{kernel}{details}"
        + " relu" * relu,
        shapes=shapes,
        ours=lambda x, weight, bias: ours(x, weight, bias, **geometry),
        theirs=conv_relu if relu else conv,
        forward=Work(numel(*shapes, output) * dtype.itemsize, products),
        # Reads the image, the weight and g, and y for its sign; writes the three gradients.
        backward=Work(
            numel(*shapes, *shapes[:2], *[output] * (1 + relu)) * dtype.itemsize, 2 * products
        ),
        dtype=dtype,
        channels_last=channels_last,
        tf32=tf32,
        quick=quick,
        exact=masked_by_relu(conv) if relu else None,
    )
