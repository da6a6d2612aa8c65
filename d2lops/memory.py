"""What the process does with memory that tensors no longer need."""

import ctypes
import platform

# From glibc's malloc.h, with what each is set to.
_SETTINGS = {
    "M_MMAP_MAX": (-4, 0),  # no block, however large, is a mapping of its own, unmapped when freed
    "M_TRIM_THRESHOLD": (-1, -1),  # the heap never shrinks
    "M_ARENA_MAX": (-8, 1),  # one heap for all threads: any other maps large blocks all the same
}


def keep_freed_memory() -> None:
    """Keep freed blocks in the process for its next tensors, whoever computes them.

    By default glibc returns every large block to the system as soon as it is freed. The next tensor
    of that size is new memory, which the system clears and maps page by page on first touch: for an
    operator that only streams its data, that takes longer than the operator. After this call, freed
    memory is used again as it is. It holds for the whole process and for good, for torch's own
    operators as much as for those of d2lops; call it once, early: a thread that has allocated
    before may have a heap of its own, which returns its large blocks as ever.

    What it costs: resident memory stays at its peak, and that may be a few times what tensors take
    at once, since blocks in one heap leave gaps between them: other programs have less. Threads
    take turns where they allocate, though not where they compute.

    An allocator that was loaded in glibc's place (jemalloc, tcmalloc) is not affected.

    Raises:
        OSError: the process does not run on glibc.
        RuntimeError: glibc refuses a setting.

    Example:
        >>> import d2lops
        >>> d2lops.keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc":
        raise OSError(f"keep_freed_memory(): needs glibc, and this is {platform.platform()}")
    mallopt = ctypes.CDLL(None).mallopt
    for name, (parameter, value) in _SETTINGS.items():
        if mallopt(parameter, value) != 1:
            raise RuntimeError(f"keep_freed_memory(): glibc refuses {name} = {value}")
