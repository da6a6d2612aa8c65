"""Linear and linear + ReLU (D2L 3 and 5.1) in Triton: y = relu(x Wᵀ + b), and its two gradients.

    linear, linear_relu   x Wᵀ + b              M x N, summed over K
    linear_input_grad     (g . [y > 0]) W       M x K, summed over N
    linear_weight_grad    (g . [y > 0])ᵀ x      N x K, summed over M

All are one kernel, a product C = A B of matrices in any strides, cut into tiles. Bias and ReLU
ride on the way out, in registers; backward reads y's tile beside g's and masks in registers, so
neither the product before the ReLU nor the masked gradient ever exists in memory. 2 M N K flops:
products of more than a few hundred rows are limited by arithmetic, of fewer by reading the weight.

How a tile gets to the multiplication: large products have Hopper's tensor memory accelerator (TMA)
fetch it. A descriptor, made in the kernel, says how the matrix lies; a load is then one instruction
for a whole tile, with zeros beyond the matrix's edge. The programs are as many as a GPU runs at
once and go on from tile to tile, so that each makes its descriptors once. Elsewhere, and in small
products, each thread copies its packets through pointers, under masks.

A product of few but long tiles (weight gradients, few rows) is cut along K as well: each part
leaves its sums in float32, and a second kernel adds them up, in order. How many parts there are
depends on the sizes and the dtype alone.
"""

import functools

import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import passing, sum_dtype
from d2lops.triton_kernels.blocks import ceil_div
from d2lops.triton_kernels.device import Device, device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.product import (
    aligned,
    allow_descriptors,
    finished,
    guessed_first,
    multiply,
    on_tensor_cores,
    persistent,
    precision,
    stages_that_fit,
    tile_at,
    zeros,
)

# Products of fewer multiplications than this are over at once.
LARGE = 2**28
# Tiles, from large ones to small ones: rows, columns, bytes of depth, warps, stages at most.
THROUGH_TMA = ((128, 256, 128, 8, 4), (128, 128, 128, 4, 3), (128, 64, 128, 4, 4))
THROUGH_TMA += ((64, 64, 128, 4, 4),)
THROUGH_POINTERS = ((128, 128, 128, 8, 3), (64, 64, 128, 4, 4), (32, 32, 128, 4, 6))
WITHOUT_TENSOR_CORES = ((128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (64, 64, 64, 8, 3))
WITHOUT_TENSOR_CORES += ((32, 32, 128, 4, 3),)
# Where there are few rows or columns, FEW stands for 16 or 32.
FEW = 0
FEW_ROWS = ((FEW, 128, 128, 4, 4), (FEW, 64, 128, 4, 6), (FEW, 32, 128, 4, 8))
FEW_ROWS_WITHOUT_TENSOR_CORES = ((FEW, 64, 128, 4, 4), (FEW, 32, 128, 4, 4))
FEW_COLUMNS = ((128, FEW, 128, 4, 4), (64, FEW, 64, 4, 6))
FEW_COLUMNS_WITHOUT_TENSOR_CORES = ((128, FEW, 64, 4, 4), (64, FEW, 128, 4, 4))
# What any of them takes of the depth in a step divides this.
DEPTH = 256
INTERPRETER = Config({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64})
ADD = Config({"BLOCK": 1024}, num_warps=4)


@triton.jit
def described(
    ptr, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BY_ROWS: tl.constexpr,
):  # fmt: skip
    """The matrix to TMA, by rows or by columns: whichever lie in one piece."""
    if BY_ROWS:
        return tl.make_tensor_descriptor(ptr, [rows, columns], [row_stride, 1], [ROWS, COLUMNS])
    else:
        return tl.make_tensor_descriptor(ptr, [columns, rows], [column_stride, 1], [COLUMNS, ROWS])


@triton.jit
def tile_of(matrix, row, column, BY_ROWS: tl.constexpr):
    if BY_ROWS:
        return matrix.load([row, column])
    else:
        return matrix.load([column, row]).T


@triton.jit
def place_of(number, rows, columns, depth, parts, part_depth, BLOCK_M, BLOCK_N):
    """What a tile with a number is of: first row and column, part, and where its depth lies."""
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    tiles = row_tiles * column_tiles
    row, column = tile_at(number % tiles, row_tiles, column_tiles)
    part = number // tiles
    first = part * part_depth
    return row * BLOCK_M, column * BLOCK_N, part, first, tl.minimum(first + part_depth, depth)


@triton.jit
def store(
    sums, bias_ptr, bias_stride, c_ptr, part, row, column, rows, columns,
    RELU: tl.constexpr,
):  # fmt: skip
    m = row + tl.arange(0, sums.shape[0]).to(tl.int64)
    n = column + tl.arange(0, sums.shape[1]).to(tl.int64)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + n * bias_stride, n < columns, 0.0)[None, :]
    c = finished(sums, bias, RELU, c_ptr.dtype.element_ty)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    tl.store(c_ptr + (part * rows + m)[:, None] * columns + n[None, :], c, inside)


@triton.jit
def product_through_tma(
    a_ptr, y_ptr, b_ptr, bias_ptr, c_ptr,
    rows, columns, depth, parts, part_depth,
    a_row, a_depth, y_row, y_depth, b_depth, b_column, bias_stride,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    A_BY_ROWS: tl.constexpr, B_BY_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """c = relu(a b + bias), a masked by y; or the sums over each part of the depth."""
    a = described(a_ptr, rows, depth, a_row, a_depth, BLOCK_M, BLOCK_K, A_BY_ROWS)
    b = described(b_ptr, depth, columns, b_depth, b_column, BLOCK_K, BLOCK_N, B_BY_ROWS)
    if y_ptr is not None:
        y = described(y_ptr, rows, depth, y_row, y_depth, BLOCK_M, BLOCK_K, A_BY_ROWS)
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N) * parts
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, column, part, first, last = place_of(
            number, rows, columns, depth, parts, part_depth, BLOCK_M, BLOCK_N
        )
        sums = zeros(a_ptr, BLOCK_M, BLOCK_N)
        for k in range(first, last, BLOCK_K):
            a_tile = tile_of(a, row, k, A_BY_ROWS)
            if y_ptr is not None:
                a_tile = passing(a_tile, tile_of(y, row, k, A_BY_ROWS))
            sums = multiply(a_tile, tile_of(b, k, column, B_BY_ROWS), sums, PRECISION)
        store(sums, bias_ptr, bias_stride, c_ptr, part, row, column, rows, columns, RELU)


@triton.jit
def product_through_pointers(
    a_ptr, y_ptr, b_ptr, bias_ptr, c_ptr,
    rows, columns, depth, parts, part_depth,
    a_row, a_depth, y_row, y_depth, b_depth, b_column, bias_stride,
    RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The same, a tile for each program."""
    row, column, part, first, last = place_of(
        tl.program_id(0), rows, columns, depth, parts, part_depth, BLOCK_M, BLOCK_N
    )
    m = row + tl.arange(0, BLOCK_M).to(tl.int64)
    n = column + tl.arange(0, BLOCK_N).to(tl.int64)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    step = tl.full((), BLOCK_K, tl.int64)
    a_tiles = a_ptr + m[:, None] * a_row + (first + k)[None, :] * a_depth
    b_tiles = b_ptr + (first + k)[:, None] * b_depth + n[None, :] * b_column
    if y_ptr is not None:
        y_tiles = y_ptr + m[:, None] * y_row + (first + k)[None, :] * y_depth
    sums = zeros(a_ptr, BLOCK_M, BLOCK_N)
    for done in range(first, last, BLOCK_K):
        inside = k < last - done
        a_inside = inside[None, :] & (m < rows)[:, None]
        a_tile = tl.load(a_tiles, a_inside, 0.0)
        b_tile = tl.load(b_tiles, inside[:, None] & (n < columns)[None, :], 0.0)
        if y_ptr is not None:
            a_tile = passing(a_tile, tl.load(y_tiles, a_inside, 0.0))
            y_tiles += step * y_depth
        sums = multiply(a_tile, b_tile, sums, PRECISION)
        a_tiles += step * a_depth
        b_tiles += step * b_depth
    store(sums, bias_ptr, bias_stride, c_ptr, part, row, column, rows, columns, RELU)


@triton.jit
def add_parts(
    sums_ptr, bias_ptr, c_ptr, count, columns, parts, bias_stride,
    RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """c = relu(the sum of all parts + bias)."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    sums = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
    for part in range(parts):
        sums += tl.load(sums_ptr + part * count + element, inside, 0.0)
    bias = None
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + (element % columns).to(tl.int64) * bias_stride, inside, 0.0)
    tl.store(c_ptr + element, finished(sums, bias, RELU, c_ptr.dtype.element_ty), inside)


@functools.cache
def fitted(
    table: tuple[tuple[int, ...], ...], few: int, device: Device, itemsize: int, masked: bool
) -> tuple[Config, ...]:
    """A table of tiles, each with as many stages as fit."""
    configs = []
    for rows, columns, depth, warps, stages in table:
        rows, columns = rows or few, columns or few
        depth = max(16, depth // itemsize)  # no product is shorter
        stage = (rows * (1 + masked) + columns) * depth * itemsize
        blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth}
        stages = stages_that_fit(device, stage, stages)
        configs.append(Config(blocks, num_warps=warps, num_stages=stages))
    return tuple(configs)


def configs_of(
    device: Device,
    itemsize: int,
    sizes: tuple[int, int, int],
    parts: int,
    tensor_cores: bool,
    tma: bool,
    masked: bool,
) -> list[Config]:
    """The best guess first, and alone for what is over at once."""
    if device.maker == "interpreter":
        return [INTERPRETER]
    rows, columns, depth = sizes
    large = rows * columns * depth >= LARGE
    few = 16 if rows <= 16 or columns <= 16 else 32
    if rows <= 32:
        table = FEW_ROWS if tensor_cores else FEW_ROWS_WITHOUT_TENSOR_CORES
    elif columns <= 32:
        table = FEW_COLUMNS if tensor_cores else FEW_COLUMNS_WITHOUT_TENSOR_CORES
    elif tma:  # Blackwell has no registers left for the largest tiles of 32-bit numbers.
        table = THROUGH_TMA[itemsize == 4 and device.capability >= 100 :]
    elif tensor_cores:  # The largest tiles have no registers left for single numbers' addresses,
        table = THROUGH_POINTERS[not large :]
    else:  # or for masks, or for numbers of 64 bits.
        table = WITHOUT_TENSOR_CORES[masked or not large or itemsize == 8 :]
    configs = fitted(table, few, device, itemsize, masked)
    configs = guessed_first(configs, lambda config: parts * tiles_of(config, rows, columns))
    return configs if large else configs[:1]


def tiles_of(config: Config, rows: int, columns: int) -> int:
    blocks = config.kwargs
    return ceil_div(rows, blocks["BLOCK_M"]) * ceil_div(columns, blocks["BLOCK_N"])


def parts_of(rows: int, columns: int, depth: int, itemsize: int) -> int:
    """How many parts of the depth are summed on their own: as many as keep a GPU busy.

    Parts are not so short that storing their sums would take longer than computing them.
    """
    tiles = ceil_div(rows, 128) * ceil_div(columns, 32 if rows <= 32 else 64)
    return max(1, min(128 // tiles, depth // (1024 if itemsize == 2 else 512)))


def inner_dimension(x: Tensor, packet: int) -> int | None:
    """Along which dimension a matrix can be read in packets of so many numbers, if any."""
    if not aligned(x, packet) or max(x.shape) >= 2**31:
        return None
    for inner in (1, 0):
        outer_stride = x.stride(1 - inner)
        if x.stride(inner) == 1 and outer_stride % packet == 0 and outer_stride > 0:
            return inner
    return None


def packed(x: Tensor, packet: int, inner: int | None = None) -> Tensor:
    """A matrix that can be read in packets, along `inner` if that is given: x, or a copy."""
    found = inner_dimension(x, packet)
    if found is not None and inner in (None, found):
        return x
    if inner is None:
        inner = 0 if x.stride(0) == 1 else 1
    x = x if inner == 1 else x.t()
    rows, columns = x.shape
    copy = x.new_empty(rows, ceil_div(columns, packet) * packet)[:, :columns].copy_(x)
    return copy if inner == 1 else copy.t()


def matrix_product(
    sizes: tuple[int, int, int],
    a: Tensor,
    y: Tensor | None,
    b: Tensor,
    bias: Tensor | None,
    turned: tuple[bool, bool],
    relu: bool,
    tf32: bool,
    c: Tensor,
) -> None:
    """c = relu(a b + bias), a masked by y; a and y, and b, transposed first if `turned` says so."""
    rows, columns, depth = sizes
    if rows == 0 or columns == 0:
        return
    device = device_of(a)
    chosen_precision = precision(a, tf32)
    tensor_cores = on_tensor_cores(a, chosen_precision)
    has_tma = tensor_cores and device.capability >= 90
    large = rows * columns * depth >= LARGE

    # TMA reads packets of 16 bytes. Through pointers, matrices are read in packets where Triton
    # sees that rows begin at multiples of 16 numbers.
    packet = 16 // a.itemsize if has_tma else 16
    if large:  # copies take less time than reading number by number would
        a, b = packed(a, packet), packed(b, packet)
        y = None if y is None else packed(y, packet, inner_dimension(a, packet))
    # Descriptors take a while to make: small products do with pointers where they can.
    by_pointers = max(a.stride()) % 16 == 0 and max(b.stride()) % 16 == 0
    tma = False
    if has_tma and depth > 0 and (large or not by_pointers or device.maker == "interpreter"):
        a_inner, b_inner = inner_dimension(a, packet), inner_dimension(b, packet)
        tma = a_inner is not None and b_inner is not None
        tma = tma and (y is None or inner_dimension(y, packet) == a_inner)

    parts = parts_of(rows, columns, depth, a.itemsize)
    # Whole steps of any configuration: how it steps must not show.
    part_depth = ceil_div(ceil_div(depth, parts), DEPTH) * DEPTH
    sums = c
    if parts > 1:
        parts = ceil_div(depth, part_depth)
        sums = a.new_empty(parts, rows, columns, dtype=sum_dtype(a))
    bias_stride = 0 if bias is None else bias.stride(0)
    arguments = (
        *(a, y, b, bias if parts == 1 else None, sums),
        *(rows, columns, depth, parts, part_depth),
        *(a.stride()[::-1] if turned[0] else a.stride()),
        *((0, 0) if y is None else y.stride()[::-1] if turned[0] else y.stride()),
        *(b.stride()[::-1] if turned[1] else b.stride()),
        bias_stride,
    )
    kernel = product_through_pointers
    constants = {"RELU": relu and parts == 1, "PRECISION": chosen_precision}
    if tma:
        kernel = product_through_tma
        constants["A_BY_ROWS"] = (a_inner == 1) != turned[0]
        constants["B_BY_ROWS"] = (b_inner == 1) != turned[1]

    def run(config: Config) -> None:
        programs = parts * tiles_of(config, rows, columns)
        if tma:
            allow_descriptors()
            programs = persistent(programs, config, a)
        launch(kernel, (programs,), *arguments, config=config, **constants)

    configs = configs_of(device, a.itemsize, sizes, parts, tensor_cores, tma, y is not None)
    if len(configs) == 1:
        run(configs[0])
    else:
        layout = f"{constants} {y is None} {a.stride(1) == 1} {b.stride(1) == 1}"
        launch_fastest(run, configs, kernel, (*sizes, layout), a)
    if parts > 1:
        grid = (ceil_div(c.numel(), 1024),)
        arguments = (sums, bias, c, c.numel(), columns, parts, bias_stride)
        launch(add_parts, grid, *arguments, config=ADD, RELU=relu)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False, *, out: Tensor
) -> None:
    sizes = (x.size(0), weight.size(0), x.size(1))
    matrix_product(sizes, x, None, weight, bias, (False, True), False, tf32, out)


def linear_relu(
    x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False, *, out: Tensor
) -> None:
    sizes = (x.size(0), weight.size(0), x.size(1))
    matrix_product(sizes, x, None, weight, bias, (False, True), True, tf32, out)


def linear_input_grad(
    g: Tensor, y: Tensor | None, weight: Tensor, tf32: bool = False, *, out: Tensor
) -> None:
    sizes = (g.size(0), weight.size(1), g.size(1))
    matrix_product(sizes, g, y, weight, None, (False, False), False, tf32, out)


def linear_weight_grad(
    g: Tensor, y: Tensor | None, x: Tensor, tf32: bool = False, *, out: Tensor
) -> None:
    sizes = (g.size(1), x.size(1), g.size(0))
    matrix_product(sizes, g, y, x, None, (True, False), False, tf32, out)
