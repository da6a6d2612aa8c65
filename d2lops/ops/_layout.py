"""The memory layout of outputs, as csrc/cpu/tensor.h has it, told to the compiler."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether an image's channels lie side by side in memory, in which case outputs do as well."""
    return x.dim() == 4 and x.size(1) > 1 and x.stride(1) == 1 and not x.is_contiguous()


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """An image with its channels side by side, if asked for; a copy only if they are not so yet.

    Spelled without `memory_format`, which `torch.vmap` does not know.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else x


def empty(
    x: Tensor, size: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """An uninitialised tensor for an operator's output, on the device and with the dtype of `x`."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)
