"""How much memory there is, and tensors at the edge of it."""

import ctypes
import mmap

import torch
from torch import Tensor

from tests.device import DEVICE


def available_memory() -> int:
    """Bytes that can be had without swapping; 0 where Linux does not say. On a GPU, of its own."""
    if DEVICE.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as lines:
            kilobytes = dict(line.split(":") for line in lines)["MemAvailable"].split()[0]
    except (OSError, KeyError):
        return 0
    return int(kilobytes) * 1024


def guarded(x: Tensor, at_end: bool) -> Tensor:
    """A copy of `x`, in its strides, right before (or after) a page that nobody may touch.

    Reading one byte too many ends the process: use it in one of its own.
    """
    page = mmap.PAGESIZE
    extent = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    room = -(-extent * x.element_size() // page) * page
    pages = mmap.mmap(-1, page + room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + page + room):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    first = page + at_end * (room - extent * x.element_size())
    flat = torch.frombuffer(pages, dtype=x.dtype, count=extent, offset=first)
    return flat.as_strided(x.shape, x.stride()).copy_(x)
