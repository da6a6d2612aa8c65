"""Cross-correlation (D2L 7) in Triton, and its two adjoints.

    corr2d        y[n, k, a, b]  = bias[k] + sum over c, r, s of    w[k, c, r, s] x[n, c, h, v]
    input grad    dx[n, c, h, v] = sum over k and the r, s, a, b    w[k, c, r, s] g[n, k, a, b]
                                   that meet (h, v) of
    weight grad   dw[k, c, r, s] = sum over n, a, b of              g[n, k, a, b] x[n, c, h, v]

with h = a stride + r dilation - top, and likewise v. Each is a matrix product, of which one operand
is gathered from the image as it is needed (implicit im2col).

The first two are the same kernels: rows of the product are positions (n, a, b), columns are the
channels that are written, and the sum is over taps and the channels that are read. For the input
gradient positions are sorted by their phase (taps.py), in which the same taps meet all of them, so
that a strided layer's gradient multiplies no zeros. In the weight gradient, rows are the output
channels, columns are taps and input channels, and the sum, over all positions, is long: each part
of it is a tile of its own, and what they come to is added in their order by a second kernel.

Who gathers the image:

    linear_relu.py        nobody: 1x1 layers of images with channels last are products as they are
    corr2d_tma.py         Hopper's tensor memory accelerator, box by box, for large 16-bit and TF32
                          products whose taps are in one phase of the stride
    corr2d_pointers.py    each thread its packets, by address, for any other product
    depthwise.py          each lane its taps, where a group has few channels: they would be mostly
                          padding in a tile

In what the middle two read, channels lie side by side, a multiple of 16 of them, so that 16 bytes
are copied at a time; other tensors are copied once before (packing.py), as cuDNN does it, too.

Flops: 2 C R S per output. Arithmetic is the limit, but for few channels, where memory is.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from d2lops.triton_kernels import corr2d_pointers, corr2d_tma
from d2lops.triton_kernels.arithmetic import narrow
from d2lops.triton_kernels.blocks import power_of_two
from d2lops.triton_kernels.depthwise import run_direct, run_few_channels, run_weight_grad_direct
from d2lops.triton_kernels.launch import launch
from d2lops.triton_kernels.linear_relu import matrix_product
from d2lops.triton_kernels.packing import PACKET, is_packed, packed, strides
from d2lops.triton_kernels.product import on_tensor_cores, precision
from d2lops.triton_kernels.taps import Axis, adjoint_axis, forward_axis

FEW = 16  # channels of a group: with fewer, most of a block of them would be padding
TINY = 64  # pairs of channels: with fewer, most of a tile would be


@triton.jit
def corr2d_weight_grad_sum(
    sums_ptr, dw_ptr, count, parts, rows, channels, held_rows, held_channels, taps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the parts, which are (groups, held rows, taps, held channels), to dw (k, c, taps)."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), sums_ptr.dtype.element_ty)
    for part in range(parts):
        total += tl.load(sums_ptr + part * tl.cast(count, tl.int64) + e, e < count, 0.0)
    c = e % held_channels
    tap = e // held_channels % taps
    m = e // held_channels // taps
    k = m // held_rows * rows + m % held_rows
    dw = narrow(total, dw_ptr.dtype.element_ty)
    inside = (e < count) & (c < channels) & (m % held_rows < rows)
    tl.store(dw_ptr + (k * channels + c) * taps + tap, dw, inside)


def is_pointwise(
    axes: tuple[Axis, Axis], groups: int, x: Tensor, mask: Tensor | None, y: Tensor
) -> bool:
    """Whether each pixel meets itself alone, and pixels x channels are matrices."""
    itself = all(a.kernel == a.apart == a.stride == 1 and a.padding == 0 for a in axes)
    images = [image for image in (x, mask, y) if image is not None]
    dense = all(image.is_contiguous(memory_format=torch.channels_last) for image in images)
    return itself and dense and groups == 1 and x.shape[2:] == y.shape[2:]


def as_matrix(x: Tensor | None) -> Tensor | None:
    """Pixels x channels."""
    return None if x is None else x.permute(0, 2, 3, 1).flatten(0, 2)


def _forward_axes(y: Tensor, kernel: Sequence[int], window: Sequence[int]) -> tuple[Axis, Axis]:
    return (
        forward_axis(y.size(2), kernel[0], window[0], window[2], window[6]),
        forward_axis(y.size(3), kernel[1], window[1], window[4], window[7]),
    )


def corr2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Sequence[int],
    relu: bool,
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    axes = _forward_axes(out, weight.shape[2:], window)
    _write_image(x, None, weight, bias, window[8], relu, tf32, out, axes, adjoint=False)


def corr2d_input_grad(
    g: Tensor,
    y: Tensor | None,
    weight: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    if out.numel() == 0:
        return
    axes = (
        adjoint_axis(height, weight.size(2), window[0], window[2], window[6]),
        adjoint_axis(width, weight.size(3), window[1], window[4], window[7]),
    )
    _write_image(g, y, weight, None, window[8], False, tf32, out, axes, adjoint=True)


def _write_image(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    relu: bool,
    tf32: bool,
    y: Tensor,
    axes: tuple[Axis, Axis],
    adjoint: bool,
) -> None:
    """What corr2d and its adjoint have in common."""
    if y.numel() == 0:
        return
    depth, columns = x.size(1) // groups, y.size(1) // groups
    kind = precision(x, tf32)
    if axes[0].positions * axes[1].positions >= 2**31:
        raise NotImplementedError("corr2d has no Triton kernels for planes of 2^31 outputs")
    if depth * columns < TINY:
        outputs, planes, *kernel = weight.shape
        weight = weight.view(groups, outputs // groups, planes, *kernel)
        order = (1, 0, 2, 3, 4) if adjoint else (2, 0, 1, 3, 4)
        weight = weight.permute(order).reshape(depth, groups * columns, *kernel)
        run_direct(x, mask, weight, bias, y, axes, groups, relu, adjoint)
    elif depth < FEW and not adjoint:
        run_few_channels(x, weight, bias, y, axes, groups, relu, kind)
    elif is_pointwise(axes, groups, x, mask, y):
        a, c = as_matrix(x), as_matrix(y)
        sizes = (*c.shape, depth)
        turned = (False, not adjoint)
        matrix_product(sizes, a, as_matrix(mask), weight.flatten(1), bias, turned, relu, tf32, c)
    else:
        _run_product(x, mask, weight, bias, groups, relu, y, axes, kind, adjoint)


def _run_product(
    x: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    relu: bool,
    y: Tensor,
    axes: tuple[Axis, Axis],
    kind: str,
    adjoint: bool,
) -> None:
    boxed = corr2d_tma.boxed(x, y, axes, groups, kind)
    if boxed is not None:
        x, axes = boxed
    # A mask that lies otherwise is applied on the way, since one offset serves both.
    apart = mask is not None and (boxed is not None or strides(mask) != strides(x))
    if apart or not is_packed(x, groups):
        x, mask = packed(x, groups, mask), None
    depth = x.size(1) // groups
    # The weight has to have what is summed over side by side. Or, but for TF32, what is written:
    # the adjoint may then take it as it is for corr2d, with channels last.
    sideways = adjoint and is_packed(weight, 1) and weight.size(0) // groups == depth
    if not sideways or kind == "tf32":
        weight = packed(weight.transpose(0, 1), groups) if adjoint else packed(weight, 1)
    elif adjoint:
        weight = weight.transpose(0, 1)
    if boxed is not None:
        corr2d_tma.run_product(x, weight, bias, y, axes, groups, relu, kind, adjoint)
    else:
        corr2d_pointers.run_product(x, mask, weight, bias, y, axes, groups, relu, kind, adjoint)


def corr2d_weight_grad(
    g: Tensor,
    y: Tensor | None,
    x: Tensor,
    height: int,
    width: int,
    window: Sequence[int],
    tf32: bool = False,
    *,
    out: Tensor,
) -> None:
    if out.numel() == 0:
        return
    if g.numel() * x.numel() == 0:
        out.zero_()
        return
    groups = window[8]
    axes = _forward_axes(g, (height, width), window)
    rows, channels, taps = g.size(1) // groups, x.size(1) // groups, height * width
    if rows * channels >= TINY and is_pointwise(axes, groups, x, y, g):
        sizes = (rows, channels, g.numel() // rows)
        g, y, x = map(as_matrix, (g, y, x))
        matrix_product(sizes, g, y, x, None, (True, False), False, tf32, out.flatten(1))
        return
    held_rows, held = rows, channels
    if rows * channels < TINY:
        sums = run_weight_grad_direct(g, y, x, axes, groups)
    else:
        sums, held_rows, held = _weight_grad_product(g, y, x, axes, groups, precision(g, tf32))
    parts, count = sums.size(0), sums.numel() // sums.size(0)
    launch(
        corr2d_weight_grad_sum,
        (triton.cdiv(count, 512),),
        *(sums, out, count, parts, rows, channels, held_rows, held, taps),
        config=Config({"BLOCK": 512}, num_warps=4),
    )


def _weight_grad_product(
    g: Tensor, mask: Tensor | None, x: Tensor, axes: tuple[Axis, Axis], groups: int, kind: str
) -> tuple[Tensor, int, int]:
    """Its parts, and how many output and input channels of a group they have."""
    through_tma = corr2d_tma.fits_weight_grad(g, x, axes, groups, kind)
    # Through TMA a mask would take a detour. Without tensor cores there are no registers left for
    # one, and time enough for a copy.
    apart = mask is not None and (strides(mask) != strides(g) or not is_packed(mask, groups))
    if apart or through_tma or not on_tensor_cores(g, kind) or not is_packed(g, groups):
        g, mask = packed(g, groups, mask), None
    packet = power_of_two(x.size(1) // groups, PACKET)
    x = packed(x, groups, packet=packet)
    if through_tma:
        sums = corr2d_tma.run_weight_grad(g, x, axes, groups)
    else:
        sums = corr2d_pointers.run_weight_grad(g, mask, x, axes, groups, packet, kind)
    return sums, g.size(1) // groups, x.size(1) // groups
