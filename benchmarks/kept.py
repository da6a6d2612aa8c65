"""Memory that a forward pass leaves behind for backward, whoever holds it and in which form."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Storages(TorchDispatchMode):
    """Remembers all memory that operators make, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, operator: Callable, types: Any, arguments: tuple = (), named: dict | None = None
    ) -> Any:
        results = operator(*arguments, **(named or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return results


def kept_bytes(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """How many bytes wait for backward beside inputs and output; and the output's elements.

    They are those of the memory made on the way that is still there afterwards. Saved tensors are
    not asked for, since a function may hold tensors elsewhere; what an operator only returns to
    have it dropped is not counted.
    """
    with _Storages() as storages:
        output = forward(*inputs)
    given = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*inputs, output)}
    kept = (
        nbytes
        for storage, nbytes in storages.made.items()
        if storage not in given and not storage.expired()
    )
    return sum(kept), output.numel()
