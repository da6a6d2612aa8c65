"""`torch.nn`, with d2lops layers where there is one.

``from d2lops import nn`` in place of ``from torch import nn`` is all that a script needs. Each layer is a
subclass of torch's: same constructor, repr, initialisation and state_dict. Names that d2lops does not
have are handed on from torch.
"""

import torch
from torch import Tensor

from d2lops import functional as F

__all__ = ["Dropout"]


class Dropout(torch.nn.Dropout):
    """`torch.nn.Dropout` on `d2lops.functional.dropout` (D2L 5.6).

    Example:
        >>> from d2lops import nn
        >>> nn.Dropout(p=0.2)
        Dropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


def __getattr__(name: str) -> object:
    return getattr(torch.nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(torch.nn)})
