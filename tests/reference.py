"""The operators as plain loops: what the kernels are checked against, element by element."""

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Four words of Philox4x32-10 (Salmon et al., SC'11), in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (product2 >> 32) ^ c1 ^ k0, product2 & _WORD
        c2, c3 = (product0 >> 32) ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def dropout_keeps(element: int, seed: int, p: float) -> bool:
    """Whether dropout keeps an element, given by its row-major index."""
    counter, word = divmod(element, 4)
    words = philox4x32((counter & _WORD, counter >> 32, 0, 0), (seed & _WORD, seed >> 32 & _WORD))
    return words[word] >= math.ceil(p * 2**32)


def dropout(x: Tensor, seed: int, p: float) -> Tensor:
    """Dropout, one element after the other."""
    y = torch.zeros(x.numel(), dtype=x.dtype)
    for element, value in enumerate(x.flatten().tolist()):
        if dropout_keeps(element, seed, p):
            y[element] = value / (1 - p)
    return y.reshape(x.shape)
