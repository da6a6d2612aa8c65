"""Memory that a forward pass leaves behind for backward, whoever holds it and in which form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Remembers the size of all memory that operators make, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, operator: Callable, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        named = named or {}
        for storage in _storages((arguments, named)):
            self.sizes.setdefault(StorageWeakRef(storage), 0)  # was there before
        results = operator(*arguments, **named)
        for storage in _storages(results):
            self.sizes.setdefault(StorageWeakRef(storage), storage.nbytes())
        return results


def kept_bytes(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """How many bytes wait for backward beside inputs and output; and the output's elements.

    They are those of the memory made on the way that is still there afterwards. Saved tensors are
    not asked for, since a function may hold tensors elsewhere.
    """
    with _Storages() as storages:
        output = forward(*inputs)
    storages.sizes.pop(StorageWeakRef(output.untyped_storage()), None)
    kept = (nbytes for storage, nbytes in storages.sizes.items() if not storage.expired())
    return sum(kept), output.numel()


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]
