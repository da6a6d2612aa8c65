"""Linear and linear + ReLU (D2L 3 and 5.1) in Triton: y = relu(x Wᵀ + b), and its two gradients.

    linear, linear_relu   x Wᵀ + b              M x N, summed over K
    linear_input_grad     (g . [y > 0]) W       M x K, summed over N
    linear_weight_grad    (g . [y > 0])ᵀ x      N x K, summed over M

All are one kernel, a product C = A B of matrices in any strides, cut into tiles. Bias and ReLU ride
on the way out, in registers; backward reads y's tile beside g's and masks in registers, so neither
the product before the ReLU nor the masked gradient ever exists in memory. 2 M N K flops. Products of
more than a few hundred rows are limited by arithmetic; of fewer, by reading the weight, once.

How a tile gets to the multiplication: where Hopper's tensor memory accelerator (TMA) can read a
matrix, rows in packets of 16 bytes, large products have it do so: a descriptor made in the kernel
says how a matrix lies, and a load is one instruction for the whole tile, with zeros beyond the edge.
Elsewhere, and for small products, each thread copies its packets through pointers under masks.

A product of few tiles that are long (gradients of weights, few rows) is cut along K as well: each
part leaves its sums in float32, and a second kernel adds them up, in order. How many parts there are
depends on sizes and dtype alone, so the same product has the same bits on every GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels.arithmetic import passing
from d2lops.triton_kernels.device import Device, device_of
from d2lops.triton_kernels.launch import launch, launch_fastest
from d2lops.triton_kernels.product import finished, multiply, precision, tile_at


def tiles(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)


ADD = Config({"BLOCK": 1024}, num_warps=4)


@triton.jit
def described(
    ptr, rows, columns, row_stride, column_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BY_ROWS: tl.constexpr,
):  # fmt: skip
    """The matrix to TMA, by rows or by columns: whichever lie in one piece."""
    if BY_ROWS:
        return tl.make_tensor_descriptor(ptr, [rows, columns], [row_stride, 1], [ROWS, COLUMNS])
    return tl.make_tensor_descriptor(ptr, [columns, rows], [column_stride, 1], [COLUMNS, ROWS])


@triton.jit
def tile_of(matrix, row, column, BY_ROWS: tl.constexpr):  # noqa: N803
    if BY_ROWS:
        return matrix.load([row, column])
    return matrix.load([column, row]).T


@triton.jit
def product(
    a_ptr, y_ptr, b_ptr, bias_ptr, c_ptr,
    rows, columns, depth, parts, part_depth, programs,
    a_row, a_depth, y_row, y_depth, b_depth, b_column, bias_stride,
    MASKED: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr, A_BY_ROWS: tl.constexpr, B_BY_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """c = relu(a b + bias), a masked by y; or float32 sums over each part of the depth."""
    sum_dtype: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    dtype: tl.constexpr = c_ptr.dtype.element_ty
    row_tiles, column_tiles = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    tiles = row_tiles * column_tiles
    if TMA:
        a = described(a_ptr, rows, depth, a_row, a_depth, BLOCK_M, BLOCK_K, A_BY_ROWS)
        b = described(b_ptr, depth, columns, b_depth, b_column, BLOCK_K, BLOCK_N, B_BY_ROWS)
        if MASKED:
            y = described(y_ptr, rows, depth, y_row, y_depth, BLOCK_M, BLOCK_K, A_BY_ROWS)
    for number in tl.range(tl.program_id(0), tiles * parts, programs):
        row_tile, column_tile = tile_at(number % tiles, row_tiles, column_tiles)
        row, column = row_tile * BLOCK_M, column_tile * BLOCK_N
        part = number // tiles
        first = part * part_depth
        last = tl.minimum(first + part_depth, depth)
        m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        n = column + tl.arange(0, BLOCK_N).to(tl.int64)
        sums = tl.zeros((BLOCK_M, BLOCK_N), sum_dtype)
        if TMA:
            for k in range(first, last, BLOCK_K):
                a_tile = tile_of(a, row, k, A_BY_ROWS)
                if MASKED:
                    a_tile = passing(a_tile, tile_of(y, row, k, A_BY_ROWS))
                sums = multiply(a_tile, tile_of(b, k, column, B_BY_ROWS), sums, PRECISION)
        else:
            k = tl.arange(0, BLOCK_K).to(tl.int64)
            a_tiles = a_ptr + m[:, None] * a_row + (first + k)[None, :] * a_depth
            y_tiles = y_ptr + m[:, None] * y_row + (first + k)[None, :] * y_depth
            b_tiles = b_ptr + (first + k)[:, None] * b_depth + n[None, :] * b_column
            for left in range(last - first, 0, -BLOCK_K):
                inside = k < left
                a_inside = inside[None, :] & (m < rows)[:, None]
                a_tile = tl.load(a_tiles, a_inside, 0.0)
                if MASKED:
                    a_tile = passing(a_tile, tl.load(y_tiles, a_inside, 0.0))
                b_tile = tl.load(b_tiles, inside[:, None] & (n < columns)[None, :], 0.0)
                sums = multiply(a_tile, b_tile, sums, PRECISION)
                a_tiles += tl.full((), BLOCK_K, tl.int64) * a_depth
                y_tiles += tl.full((), BLOCK_K, tl.int64) * y_depth
                b_tiles += tl.full((), BLOCK_K, tl.int64) * b_depth
        bias = tl.zeros((1, BLOCK_N), sum_dtype)
        if BIAS:
            bias = tl.load(bias_ptr + n * bias_stride, n < columns, 0.0)[None, :]
        place = (part * rows + m)[:, None] * columns + n[None, :]
        inside = (m < rows)[:, None] & (n < columns)[None, :]
        tl.store(c_ptr + place, finished(sums, bias, RELU, dtype), inside)


@triton.jit
def add_parts(
    sums_ptr, bias_ptr, c_ptr, count, columns, parts, bias_stride,
    BIAS: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """c = relu(the sum of all parts + bias)."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    sums = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
    for part in range(parts):
        sums += tl.load(sums_ptr + part * count + element, inside, 0.0)
    bias = tl.zeros((BLOCK,), sums.dtype)
    if BIAS:
        bias = tl.load(bias_ptr + (element % columns).to(tl.int64) * bias_stride, inside, 0.0)
    tl.store(c_ptr + element, finished(sums, bias, RELU, c_ptr.dtype.element_ty), inside)


def configs_of(device: Device, dtype: torch.dtype, tma: bool) -> list[Config]:
    return [tiles(128, 128, 64, 8, 3)]


def parts_of(rows: int, columns: int, depth: int, dtype: torch.dtype) -> int:
    """How many parts of the depth are summed on their own: as many as keep a GPU busy.

    Counted in tiles of 128 rows and columns, or of 32 columns where there are no more rows than
    that. Parts are not so short that storing their sums would take longer than computing them.
    """
    count = triton.cdiv(rows, 128) * triton.cdiv(columns, 32 if rows <= 32 else 128)
    return max(1, min(256 // count, depth // (1024 if dtype.itemsize == 2 else 256)))


def inner_dimension(x: Tensor) -> int | None:
    """Which of a matrix's dimensions TMA can read in packets: 16 bytes that begin at a 16th."""
    packet = 16 // x.itemsize
    if x.storage_offset() % packet or max(x.shape) >= 2**31:
        return None
    if type(x) in (Tensor, torch.nn.Parameter) and x.data_ptr() % 16:  # memory not from torch
        return None
    for inner in (1, 0):
        stride = x.stride(1 - inner)
        if x.stride(inner) == 1 and stride % packet == 0 and stride > 0:
            return inner
    return None


def matrix_product(
    sizes: tuple[int, int, int],
    a: Tensor,
    a_turned: bool,
    y: Tensor | None,
    b: Tensor,
    b_turned: bool,
    bias: Tensor | None,
    relu: bool,
    tf32: bool,
) -> Tensor:
    """relu(a b + bias), a masked by y; (rows, columns, depth); a and b as they are or turned."""
    rows, columns, depth = sizes
    c = a.new_empty(rows, columns)
    if rows == 0 or columns == 0:
        return c
    device = device_of(a)
    parts = parts_of(rows, columns, depth, a.dtype)
    # In multiples of what any configuration takes in a step: how it steps must not show.
    part_depth = triton.cdiv(triton.cdiv(depth, parts), 128) * 128
    parts = triton.cdiv(depth, part_depth) if parts > 1 else 1
    sums, epilogue = c, {"BIAS": bias is not None, "RELU": relu}
    if parts > 1:
        sum_dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
        sums, epilogue = a.new_empty(parts, rows, columns, dtype=sum_dtype), {"BIAS": False, "RELU": False}
    a_inner, b_inner = inner_dimension(a), inner_dimension(b)
    tma = device.capability >= 90 and None not in (a_inner, b_inner) and depth > 0
    tma = tma and (y is None or inner_dimension(y) == a_inner)
    constants = {
        "MASKED": y is not None,
        "PRECISION": precision(a, tf32),
        "TMA": tma,
        "A_BY_ROWS": tma and (a_inner == 1) != a_turned,
        "B_BY_ROWS": tma and (b_inner == 1) != b_turned,
    }
    arguments = (
        *(a, a if y is None else y, b, a if bias is None else bias, sums),
        *(rows, columns, depth, parts, part_depth),
    )
    strides = (
        *(a.stride()[::-1] if a_turned else a.stride()),
        *((y.stride()[::-1] if a_turned else y.stride()) if y is not None else (0, 0)),
        *(b.stride()[::-1] if b_turned else b.stride()),
        0 if bias is None else bias.stride(0),
    )

    def run(config: Config) -> None:
        block_m, block_n = config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]
        programs = triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n) * parts
        if tma:
            programs = min(programs, device.multiprocessors * 8 // config.num_warps)
        launch(
            product, (programs,), *arguments, programs, *strides, config=config,
            **constants, **epilogue,
        )

    configs = configs_of(device, a.dtype, tma)
    launch_fastest(run, configs, product, sizes, a)
    if parts > 1:
        launch(
            add_parts, (triton.cdiv(c.numel(), 1024),), sums, a if bias is None else bias, c,
            c.numel(), columns, parts, 0 if bias is None else bias.stride(0),
            config=ADD, BIAS=bias is not None, RELU=relu,
        )
    return c


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False) -> Tensor:
    sizes = (x.size(0), weight.size(0), x.size(1))
    return matrix_product(sizes, x, False, None, weight, True, bias, False, tf32)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool = False) -> Tensor:
    sizes = (x.size(0), weight.size(0), x.size(1))
    return matrix_product(sizes, x, False, None, weight, True, bias, True, tf32)


def linear_input_grad(g: Tensor, y: Tensor | None, weight: Tensor, tf32: bool = False) -> Tensor:
    sizes = (g.size(0), weight.size(1), g.size(1))
    return matrix_product(sizes, g, False, y, weight, False, None, False, tf32)


def linear_weight_grad(g: Tensor, y: Tensor | None, x: Tensor, tf32: bool = False) -> Tensor:
    sizes = (g.size(1), x.size(1), g.size(0))
    return matrix_product(sizes, g, True, y, x, False, None, False, tf32)
