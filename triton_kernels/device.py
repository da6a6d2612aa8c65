"""What a launcher asks of the device that a tensor is on."""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

# Read when the first kernel is made, so it has to be in the environment from the start.
INTERPRETED = bool(triton.knobs.runtime.interpret)


class Device(NamedTuple):
    maker: str  # "cuda", "hip", or "interpreter"
    capability: int  # NVIDIA's, times ten: 90 for Hopper; else 0
    multiprocessors: int
    shared_memory: int  # bytes that a block may have
    tf32: bool  # whether there are tensor cores for it


def device_of(x: Tensor) -> Device:
    return _device(x.device.index or 0)


@functools.cache
def _device(index: int) -> Device:
    if INTERPRETED:  # few multiprocessors, so that small problems make persistent kernels loop
        return Device("interpreter", 90, 2, 2**20, True)
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        name = properties.gcnArchName
        return Device("hip", 0, properties.multi_processor_count, 2**16, name.startswith("gfx942"))
    capability = 10 * properties.major + properties.minor
    shared_memory = properties.shared_memory_per_block_optin
    return Device(
        "cuda", capability, properties.multi_processor_count, shared_memory, capability >= 80
    )
