"""What the matrix products of linear and corr2d have in common: the order of tiles, the step that
multiplies, and what happens to sums before they are stored."""

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import INTERPRETED, narrow, widen
from d2lops.triton_kernels.device import Device, device_of
from d2lops.triton_kernels.launch import is_traced

GROUP = tl.constexpr(8)
ENOUGH = 96  # tiles, to keep a GPU busy


def precision(x: Tensor, tf32: bool) -> str:
    """How products of float32 numbers are computed; other dtypes are taken as they are."""
    return "tf32" if tf32 and x.dtype == torch.float32 and device_of(x).tf32 else "ieee"


def on_tensor_cores(x: Tensor, precision: str) -> bool:
    return x.itemsize == 2 or precision == "tf32"


def aligned(x: Tensor, packet: int) -> bool:
    """Whether its first element is where a packet of so many may begin."""
    if x.storage_offset() % packet:
        return False
    return is_traced(x) or x.data_ptr() % (packet * x.itemsize) == 0  # memory may not be torch's


def scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors that a kernel makes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def allow_descriptors() -> None:
    """To be made in a kernel that is launched next."""
    triton.set_allocator(scratch)  # of this thread: backward has threads of its own


def persistent(tiles: int, config: Config, x: Tensor) -> int:
    """How many programs go on from tile to tile: one or two a multiprocessor."""
    return min(tiles, device_of(x).multiprocessors * 8 // config.num_warps)


def stages_that_fit(device: Device, stage: int, most: int) -> int:
    """Stages of so many bytes, in shared memory. AMD's compiler overlaps two, and holds one of them
    in registers."""
    return min(most, 2 if device.maker == "hip" else device.shared_memory // stage)


def guessed_first(configs: Sequence[Config], tiles: Callable[[Config], int]) -> list[Config]:
    """Of configurations from large tiles to small ones, first the largest of which there are
    enough: the best guess."""
    guess = next((config for config in configs if tiles(config) >= ENOUGH), configs[-1])
    return [guess, *(config for config in configs if config is not guess)]


@triton.jit
def zeros(x_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile for sums of such numbers."""
    return widen(tl.zeros((ROWS, COLUMNS), x_ptr.dtype.element_ty))


@triton.jit
def tile_at(number, rows, columns):
    """Row and column of the tile with that number: down eight rows, and then on to the next column.

    Tiles that are computed at the same time then form a square, nearly, and share what they read in
    the second-level cache.
    """
    width = GROUP * columns
    first = number // width * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + number % width % height, number % width // height


@triton.jit
def multiply(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # which the interpreter takes for integers
        a, b = widen(a), widen(b)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def finished(sums, bias, RELU: tl.constexpr, dtype: tl.constexpr):
    """What is stored: with the bias (a row or column, or None), through the ReLU, narrowed."""
    if bias is not None:
        sums += widen(bias)
    if RELU:  # which lets a NaN pass
        sums = tl.where(sums <= 0, 0.0, sums)
    return narrow(sums, dtype)
