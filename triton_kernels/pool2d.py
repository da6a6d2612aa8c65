"""Pooling (D2L 7.5) in Triton: the maximum or the average of each window, and the adjoints.

    max              y[o] = max x[i],  argmax[o] = the tap of i in o  (first of equals, last NaN)
    average          y[o] = (sum of x[i]) / area[o]
    average's        x[i] = sum of g[o] / area[o]
    max's            x[i] = sum of g[o] where argmax[o] is the tap of i in o

A tap is an input's number inside a window; taps in the padding count. Adjoints ask which windows
cover an input, so that every element is written once, and needs no atomics.

Tiling: a program has some positions of the planes of some channels. What a window sees depends on
its position alone, so it is found once and used for all of a lane's channels. Lanes are along
whichever lies side by side in memory: channels, 16 bytes for each lane, or else positions, with
the channels in turn. Windows without dilation, of at most 25 taps, are compiled for their sizes: no
loop, all loads in flight at once. Their adjoint's tile is made of cells, as high and wide as the
stride is: all inputs of a cell are covered by the same few windows, which are read once. Large
windows that are few, or lie apart, have a program of their own, whose lanes share the taps.

Bytes: each input and output once, and one for the argmax. Arithmetic: about 6 instructions a tap
and element for max, 3 for averages. Memory limits all but 3x3 windows that are one apart, and
those of 16-bit numbers that are two apart.

Here are the launchers, which choose a kernel and its tiles. The kernels are in pool2d_forward.py
and pool2d_adjoint.py, what these share in pool2d_tiles.py, and the arithmetic of windows in
windows.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.blocks import block_of_channels, power_of_two
from d2lops.triton_kernels.device import INTERPRETED
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.pool2d_adjoint import (
    adjoint_of_one_window,
    adjoint_of_small_windows,
    adjoint_of_windows,
    gather,
)
from d2lops.triton_kernels.pool2d_forward import (
    pool_large_windows,
    pool_small_windows,
    pool_windows,
)
from d2lops.triton_kernels.windows import Axis, Windows, adaptive, between


class Planes(NamedTuple):
    """The planes of some tensors of the same images and channels."""

    images: int
    channels: int
    strides: list[tuple[int, ...]]
    reach: int  # of a plane, in memory

    def channels_inside(self) -> bool:
        """Whether channels lie side by side."""
        return self.channels > 1 and all(stride[1] == 1 for stride in self.strides)


def merged(*tensors: Tensor) -> Planes:
    """Images whose channels follow those of the one before are one image of many channels."""
    images, channels = tensors[0].shape[:2]
    strides = [tuple(x.stride()) for x in tensors]
    reach = max(sum((x.size(d) - 1) * x.stride(d) for d in (2, 3)) for x in tensors)
    if channels == 1:
        return Planes(1, images, [(0, s[0], s[2], s[3]) for s in strides], reach)
    if images == 1 or all(s[0] == channels * s[1] for s in strides):
        return Planes(1, images * channels, [(0, *s[1:]) for s in strides], reach)
    return Planes(images, channels, strides, reach)


def flattened(windows: Windows, planes: Planes) -> tuple[Windows, Planes]:
    """Windows as wide as planes whose rows follow each other are windows of a single row, in which
    nothing has to be divided by its length. `planes` are those of inputs and outputs."""
    rows, columns = windows.rows, windows.columns
    width = columns.inputs
    x, y = planes.strides
    whole = columns.kernel == width and columns.before == columns.after == 0
    plain = not windows.adaptive and rows.dilation == columns.dilation == 1
    if not (whole and plain and x[2] == width * x[3]):
        return windows, planes
    row = Axis(
        rows.inputs * width,
        rows.outputs,
        *(width * number for number in (rows.kernel, rows.stride, rows.before, rows.after)),
    )
    strides = [(*x[:2], 0, x[3]), (*y[:2], 0, y[2])]
    return windows._replace(rows=Axis(1, 1, 1, 1), columns=row), planes._replace(strides=strides)


def block_of_positions(positions: int) -> int:
    """The lanes of a warp, or more, and so that few are idle."""
    if INTERPRETED:  # where a program takes long, whatever it has
        return power_of_two(positions, 2**12)
    block = power_of_two(positions, 128)
    for smaller in (64, 32):
        lanes, fewer = (triton.cdiv(positions, b) * b for b in (block, smaller))
        if smaller < block and fewer < 0.9 * lanes:
            block = smaller
    return block


def tile_of_taps(planes: Planes, positions: int, taps: int) -> Config:
    """For windows that have a program each. A lane takes some of the taps, as many as make up for
    adding up what lanes have found; a program has several channels, if it is not the only one.
    There is no choice, as the order of sums depends on it."""
    inside = planes.channels_inside()
    block = power_of_two(taps // 4, 32 if inside else 1024)
    channels = power_of_two(planes.channels, 2048 // max(block, 16))
    if INTERPRETED:  # where a program takes long, whatever its size
        return Config({"BLOCK_CHANNELS": power_of_two(planes.channels, 64), "BLOCK_TAPS": 512})
    least = min(channels, 32) if inside else 1  # that lie side by side
    while channels > least and planes.images * planes.channels * positions < 512 * channels:
        channels //= 2
    return Config({"BLOCK_CHANNELS": channels, "BLOCK_TAPS": max(block, 16)}, num_warps=4)


def tiles(planes: Planes, positions: int, x: Tensor, *channels: int) -> list[Config]:
    """The best guess first; no other for what is over at once.

    A lane has so many channels; or 16 bytes of them, where they lie side by side.
    """
    sizes = [128 * each for each in channels]
    if planes.channels_inside():
        sizes = [128 * 16 // x.element_size()]
    if INTERPRETED:  # where a program takes long, whatever its size
        sizes = [2**16]
    elif planes.images * planes.channels * positions < 2**20:
        sizes = sizes[:1]
    configs = []
    for size in sizes:
        if planes.channels_inside():
            c = block_of_channels(planes.channels, size // power_of_two(positions, size // 64))
            p = power_of_two(positions, size // c)
        else:
            p = block_of_positions(positions)
            c = power_of_two(planes.channels, size // p)
        configs.append(Config({"BLOCK_CHANNELS": c, "BLOCK_POSITIONS": p}, num_warps=4))
    return configs


def start(
    kernel: Any,
    tensors: tuple[Tensor | None, ...],
    windows: Windows,
    planes: Planes,
    positions: int,
    configs: list[Config],
    *numbers: int,
    **constants: Any,
) -> None:
    """Launch `kernel`, whose programs share out the `positions` of all planes."""
    strides = [stride for operand in planes.strides for stride in operand]
    most_channels = max(config.kwargs["BLOCK_CHANNELS"] for config in configs)
    apart = max(most_channels * operand[1] for operand in planes.strides)
    # Whether the numbers of positions, and their places in memory, may need 64 bits.
    wide = max(planes.reach + apart, windows.reach(), positions + 2**16) >= 2**31

    def run(config: Config) -> None:
        block = config.kwargs["BLOCK_CHANNELS"]
        blocks = triton.cdiv(positions, config.kwargs.get("BLOCK_POSITIONS", 1))
        launch(
            kernel,
            (planes.images * triton.cdiv(planes.channels, block) * blocks,),
            *tensors,
            planes.channels,
            *windows.sizes(),
            blocks,
            *strides,
            *numbers,
            config=config,
            WIDE=wide,
            EVEN=planes.channels % block == 0,
            **constants,
        )

    x = next(x for x in tensors if x is not None)
    elements = planes.images * planes.channels * positions
    launch_fastest(run, configs, kernel, (elements, windows.taps(), str(constants)), x)


def pool(x: Tensor, y: Tensor, argmax: Tensor | None, windows: Windows) -> None:
    if y.numel() == 0:
        return
    tensors, planes = (x, y, argmax), merged(x, y)
    positions = windows.rows.outputs * windows.columns.outputs
    most = [min(axis.kernel, axis.inputs) for axis in (windows.rows, windows.columns)]
    taps = most[0] * most[1]
    constants = windows.averaging()
    far_apart = windows.columns.inputs >= 8 * windows.columns.outputs or positions < 8
    few = planes.images * planes.channels * positions < 2**13
    share = (taps >= 16 and far_apart and not planes.channels_inside()) or (taps >= 32 and few)
    if windows.small() and not share:
        constants |= windows.constants()
        constants["INSIDE"] = windows.rows.inside() and windows.columns.inside()
        configs = tiles(
            planes, positions, x, *((8, 16) if taps <= 4 else (4, 8) if taps <= 9 else (4,))
        )
        start(pool_small_windows, tensors, windows, planes, positions, configs, **constants)
        return
    constants["ADAPTIVE"] = windows.adaptive
    if share:
        windows, planes = flattened(windows, planes)
        constants["ONE_ROW"] = windows.rows.kernel == 1
        configs = [tile_of_taps(planes, positions, taps)]
        numbers = (*windows.numbers(), taps)
        start(
            pool_large_windows, tensors, windows, planes, positions, configs, *numbers, **constants
        )
    else:
        configs = tiles(planes, positions, x, 8, 4)
        numbers = (*windows.numbers(), *most)
        start(pool_windows, tensors, windows, planes, positions, configs, *numbers, **constants)


def adjoint(g: Tensor, x: Tensor, argmax: Tensor | None, windows: Windows) -> None:
    if g.numel() == 0:
        x.zero_()
    if g.numel() == 0 or x.numel() == 0:
        return
    tensors, planes = (g, argmax, x), merged(g, g if argmax is None else argmax, x)
    positions = windows.rows.inputs * windows.columns.inputs
    constants = windows.averaging()
    cells = windows.cells() if windows.small() else None
    if windows.are_one():
        configs = tiles(planes, positions, x, 16, 8)
        start(adjoint_of_one_window, tensors, windows, planes, positions, configs, **constants)
    elif cells is not None:
        rows, columns = (triton.cdiv(a.inputs, a.stride) for a in (windows.rows, windows.columns))
        constants |= windows.constants() | cells
        constants["PAIRS"] = windows.columns.stride == 2 and x.size(3) % 2 == 0 and x.stride(3) == 1
        if constants["PAIRS"]:
            stride = tuple(number // 2 for number in planes.strides[2])
            planes = planes._replace(strides=[*planes.strides[:2], stride])
        few = cells["COUNT_H"] * cells["COUNT_W"] <= 4  # windows, whose values lanes hold
        configs = tiles(planes, rows * columns, x, *((8, 4) if few else (4,)))
        start(
            adjoint_of_small_windows, tensors, windows, planes, rows * columns, configs, **constants
        )
    else:
        constants["ADAPTIVE"] = windows.adaptive
        most = [axis.most_over(windows.adaptive) for axis in (windows.rows, windows.columns)]
        numbers = (*windows.numbers(), *most)
        configs = tiles(planes, positions, x, 8, 4)
        start(
            adjoint_of_windows, tensors, windows, planes, positions, configs, *numbers, **constants
        )


def look_up(x: Tensor | None, argmax: Tensor, y: Tensor, windows: Windows) -> None:
    if y.numel() == 0:
        return
    planes = merged(argmax if x is None else x, argmax, y)
    positions = windows.rows.outputs * windows.columns.outputs
    configs = tiles(planes, positions, y, 8, 4)
    start(
        gather, (x, argmax, y), windows, planes, positions, configs, *windows.numbers(),
        ADAPTIVE=windows.adaptive,
    )  # fmt: skip


def max_pool2d(
    x: Tensor, window: Sequence[int], ceil_mode: bool, *, out: tuple[Tensor, Tensor]
) -> None:
    y, argmax = out
    pool(x, y, argmax, between(*x.shape[2:], *y.shape[2:], window))


def adaptive_max_pool2d(x: Tensor, height: int, width: int, *, out: tuple[Tensor, Tensor]) -> None:
    y, argmax = out
    pool(x, y, argmax, adaptive(*x.shape[2:], height, width))


def max_pool2d_gather(x: Tensor, argmax: Tensor, window: Sequence[int], *, out: Tensor) -> None:
    look_up(x, argmax, out, between(*x.shape[2:], *argmax.shape[2:], window))


def adaptive_max_pool2d_gather(x: Tensor, argmax: Tensor, *, out: Tensor) -> None:
    look_up(x, argmax, out, adaptive(*x.shape[2:], *argmax.shape[2:]))


def max_pool2d_indices(
    argmax: Tensor, height: int, width: int, window: Sequence[int], *, out: Tensor
) -> None:
    look_up(None, argmax, out, between(height, width, *argmax.shape[2:], window))


def adaptive_max_pool2d_indices(argmax: Tensor, height: int, width: int, *, out: Tensor) -> None:
    look_up(None, argmax, out, adaptive(height, width, *argmax.shape[2:]))


def max_pool2d_scatter(
    g: Tensor, argmax: Tensor, height: int, width: int, window: Sequence[int], *, out: Tensor
) -> None:
    adjoint(g, out, argmax, between(height, width, *g.shape[2:], window))


def adaptive_max_pool2d_scatter(
    g: Tensor, argmax: Tensor, height: int, width: int, *, out: Tensor
) -> None:
    adjoint(g, out, argmax, adaptive(height, width, *g.shape[2:]))


def avg_pool2d(
    x: Tensor,
    window: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
    ceil_mode: bool,
    *,
    out: Tensor,
) -> None:
    windows = between(*x.shape[2:], *out.shape[2:], window)._replace(
        count_include_pad=count_include_pad, divisor=divisor or 0
    )
    pool(x, out, None, windows)


def adaptive_avg_pool2d(x: Tensor, height: int, width: int, *, out: Tensor) -> None:
    pool(x, out, None, adaptive(*x.shape[2:], height, width))


def avg_pool2d_adjoint(
    g: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    count_include_pad: bool,
    divisor: int | None,
    *,
    out: Tensor,
) -> None:
    windows = between(height, width, *g.shape[2:], window)._replace(
        count_include_pad=count_include_pad, divisor=divisor or 0
    )
    adjoint(g, out, None, windows)


def adaptive_avg_pool2d_adjoint(g: Tensor, height: int, width: int, *, out: Tensor) -> None:
    adjoint(g, out, None, adaptive(height, width, *g.shape[2:]))
