"""Pooling: limited by memory, where its windows are not taken one element at a time."""

import torch
import torch.nn.functional as F

from benchmarks.case import Case, Work, numel, output_size, own

LENET, STEM, BLOCK, ODD = (128, 6, 28, 28), (16, 64, 112, 112), (16, 64, 56, 56), (8, 16, 61, 67)
BOOK = (16, 48, 90, 90)
OTHERS = "channels_last, adaptive, global"


def cases() -> list[Case]:
    return [
        _case("max_pool2d", (1, 16, 12, 12), 2, tiny=True, quick=True),
        _case("avg_pool2d", (1, 16, 12, 12), 3, 1, 1, tiny=True),
        _case("adaptive_avg_pool2d", (1, 16, 12, 12), 1, tiny=True),
        # Windows over contiguous images.
        _case("max_pool2d", LENET, 2, quick=True),
        _case("max_pool2d", BOOK, 2, quick=True),
        _case("max_pool2d", BOOK, 3, 2, 1),
        _case("max_pool2d", STEM, 3, 2, 1, quick=True),
        _case("max_pool2d", (16, 96, 54, 54), 3, 2),  # AlexNet
        _case("max_pool2d", (16, 192, 12, 12), 3, 1, 1),  # GoogLeNet
        _case("max_pool2d", ODD, 3, 1, 1),
        _case("max_pool2d", ODD, 5, 3, 2),
        _case("max_pool2d", ODD, 2),
        _case("max_pool2d", (4, 8, 64, 64), 3, 1, 0, 2),
        _case("max_pool2d", (1, 3, 9, 9), 3, 2),
        _case("max_pool2d", (64, 512, 7, 7), 2),
        _case("max_pool2d", (1, 1, 2000, 2000), 2),
        _case("avg_pool2d", LENET, 2),
        _case("avg_pool2d", BOOK, 3, 1, 1),
        _case("avg_pool2d", (16, 48, 56, 56), 3, 1, 1, quick=True),
        _case("avg_pool2d", STEM, 2),
        _case("avg_pool2d", ODD, 5, 3, 2),
        _case("avg_pool2d", ODD, 3, 2, 1),
        _case("avg_pool2d", (32, 512, 7, 7), 7),
        *(
            _case(function, (16, 32, 56, 56), 3, 2, 1, dtype=dtype)
            for dtype in (torch.bfloat16, torch.float16, torch.float64)
            for function in ("max_pool2d", "avg_pool2d")
        ),
        # Channels last.
        _case("max_pool2d", BLOCK, 3, 2, 1, quick=True, channels_last=True),
        _case("max_pool2d", BOOK, 2, channels_last=True),
        _case("max_pool2d", ODD, 3, 1, 1, channels_last=True),
        _case("avg_pool2d", BLOCK, 2, channels_last=True),
        _case("avg_pool2d", (16, 48, 56, 56), 3, 1, 1, channels_last=True),
        _case("max_pool2d", BLOCK, 2, channels_last=True, dtype=torch.bfloat16),
        # Adaptive and global.
        _case("adaptive_avg_pool2d", BOOK, 1, quick=True),
        _case("adaptive_avg_pool2d", (32, 512, 7, 7), 1),
        _case("adaptive_avg_pool2d", (16, 10, 5, 5), 1),  # NiN
        _case("adaptive_avg_pool2d", (8, 64, 30, 30), 7),
        _case("adaptive_avg_pool2d", BLOCK, 1, channels_last=True),
        _case("adaptive_max_pool2d", (8, 64, 30, 30), 7),
        _case("adaptive_max_pool2d", BOOK, 1),
        _case("adaptive_avg_pool2d", BOOK, 1, dtype=torch.bfloat16),
    ]


def cuda_cases() -> list[Case]:
    stem, late, bfloat16 = (128, 64, 112, 112), (256, 2048, 7, 7), torch.bfloat16  # ResNet's
    return [
        _case("max_pool2d", (1, 16, 12, 12), 2, tiny=True, quick=True),
        # Windows over contiguous images.
        _case("max_pool2d", stem, 3, 2, 1, quick=True),
        _case("max_pool2d", stem, 3, 2, 1, dtype=bfloat16),
        _case("max_pool2d", stem, 2),
        _case("max_pool2d", (128, 192, 28, 28), 3, 1, 1, dtype=bfloat16),  # GoogLeNet
        _case("avg_pool2d", stem, 2, dtype=bfloat16),
        _case("avg_pool2d", (256, 6, 28, 28), 2),  # LeNet
        # Channels last.
        _case("max_pool2d", stem, 3, 2, 1, dtype=bfloat16, channels_last=True, quick=True),
        _case("max_pool2d", stem, 2, dtype=bfloat16, channels_last=True),
        _case("avg_pool2d", stem, 3, 2, 1, dtype=bfloat16, channels_last=True),
        # Adaptive and global.
        _case("adaptive_avg_pool2d", late, 1, dtype=bfloat16, channels_last=True, quick=True),
        _case("adaptive_avg_pool2d", late, 1, dtype=bfloat16),
        _case("adaptive_max_pool2d", (64, 256, 30, 30), 7),
    ]


def _case(
    function: str,
    shape: tuple[int, ...],
    *arguments: int,
    dtype: torch.dtype = torch.float32,
    tiny: bool = False,
    channels_last: bool = False,
    quick: bool = False,
) -> Case:
    """`arguments` are those of the function: kernel size, stride, ... or the output size."""
    ours, theirs = own(function), getattr(F, function)
    window = "".join(f" {name}{number}" for name, number in zip("spd", arguments[1:], strict=False))
    output = output_size(lambda x: theirs(x, *arguments), shape)
    windows = not channels_last and not function.startswith("adaptive")
    once = Work(bytes=numel(shape, output) * dtype.itemsize)
    return Case(
        operator="pool2d",
        family="tiny" if tiny else f"pool2d {'NCHW windows' if windows else OTHERS}",
        name=f"{function.removesuffix('_pool2d')} {arguments[0]}×{arguments[0]}{window}, "
        + "×".join(map(str, shape)),
        shapes=(shape,),
        ours=lambda x: ours(x, *arguments),
        theirs=lambda x: theirs(x, *arguments),
        forward=once,
        backward=once,
        dtype=dtype,
        channels_last=channels_last,
        quick=quick,
    )
