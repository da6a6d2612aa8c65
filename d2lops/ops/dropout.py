"""Dropout (D2L 5.6): zero each element with probability p and scale the rest by 1 / (1 - p)."""

from typing import Any

import torch
from torch import Tensor, distributed

from d2lops.backends import kernels, shape_rule
from d2lops.ops._checks import check_tensor
from d2lops.ops._function import Function


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Zero each element of the input with probability `p`, and scale the others by ``1 / (1 - p)``.

    Same as ``torch.nn.functional.dropout(input, p, training, inplace)``, but for which elements are
    kept: element ``e`` (row-major, whatever the memory layout) is kept when a Philox4x32-10 word
    that depends on nothing but ``(seed, e)`` is at least ``p``. So the mask takes no memory, and is
    the same for any number of threads, on every device and with every backend. D2L 5.6.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16.
        p: probability of an element to be zeroed, in [0, 1].
        training: if false, the input is returned as it is.
        inplace: write the result into the input.
        seed: 64 bits that fix the mask: an int, or an int64 tensor of one element on the input's
            device. If absent, it is drawn from that device's generator, which
            ``torch.manual_seed`` sets.

    Where ``torch.distributed`` is initialised, the seed that is drawn depends on the rank, too:
    ranks that all called ``torch.manual_seed(0)`` drop different elements, each the same ones in
    every run. Not so for a DTensor, which is one tensor and has one mask, however it is sharded.
    Ranks that hold copies of one activation as ordinary tensors have to pass the same `seed`.

    Returns:
        A tensor like the input. An infinity or NaN that is dropped becomes 0.

    Raises:
        ValueError: p is not in [0, 1].
        TypeError: the input is no tensor, or the seed neither int nor tensor.
        NotImplementedError: a dtype, layout or device without kernels.
        RuntimeError: a seed tensor of another size, dtype or device.

    Example:
        >>> import torch
        >>> from d2lops import functional as F
        >>> F.dropout(torch.ones(8), p=0.5, seed=42)
        tensor([2., 0., 0., 0., 2., 0., 2., 0.])
    """
    check_tensor("dropout", "input", input)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0:
        return input
    seed = _seed_tensor(seed, input)
    output = Dropout.apply(input, seed, p)
    return input.copy_(output) if inplace else output


def _seed_tensor(seed: int | Tensor | None, x: Tensor) -> Tensor:
    if seed is None:
        return _drawn_seed(x)
    if isinstance(seed, int):
        if not -(2**63) <= seed < 2**64:
            raise RuntimeError(f"dropout(): seed must fit in 64 bits, but got {seed}")
        # Filled in, not copied from the CPU, so that a CUDA graph can capture it.
        return torch.full((), (seed + 2**63) % 2**64 - 2**63, device=x.device)
    if not isinstance(seed, Tensor):
        raise TypeError(
            f"dropout(): argument 'seed' must be int or Tensor, not {type(seed).__name__}"
        )
    _check_seed(seed, x)
    return seed


def _drawn_seed(x: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return torch.randint(2**63 - 1, (), device=x.device)
    if hasattr(x, "device_mesh"):  # a DTensor
        return _agreed(torch.randint(2**63 - 1, (), device=x.device), x.device_mesh)
    # Where generators are equal, a range that begins later gives a larger seed.
    return torch.randint(distributed.get_rank(), 2**63 - 1, (), device=x.device)


def _agreed(seed: Tensor, mesh: Any) -> Tensor:
    """The largest of the seeds that the ranks of a mesh drew, which are equal if generators are."""
    from torch.distributed.tensor import DTensor, Partial  # imported already, for there is one

    return DTensor.from_local(seed, mesh, [Partial("max")] * mesh.ndim).full_tensor()


def _check_seed(seed: Tensor, x: Tensor) -> None:
    if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x.device:
        raise RuntimeError(
            f"dropout(): seed must be an int64 tensor of one element on {x.device}, "
            f"but got {seed.dtype}, size {list(seed.shape)}, on {seed.device}"
        )


class Dropout(Function):
    """x -> D x with D = diag(keep) / (1 - p): linear, and its own adjoint."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor, p: float) -> Tensor:
        return kernels(x).dropout(x, seed, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, seed, ctx.p = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return Dropout.apply(g, *ctx.saved_tensors, ctx.p), None, None


@shape_rule("dropout")
def _(x: Tensor, seed: Tensor, p: float) -> Tensor:
    check_tensor("dropout", "x", x)
    _check_seed(seed, x)
    if not 0 <= p <= 1:
        raise RuntimeError(f"dropout(): p must be between 0 and 1, but got {p}")
    return torch.empty_like(x)
