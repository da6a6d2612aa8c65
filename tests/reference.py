"""The operators as plain loops: what the kernels are checked against, element by element."""

import math

import torch
from torch import Tensor

from tests.device import on_cpu

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


@on_cpu
def dropout(x: Tensor, seed: int, p: float) -> Tensor:
    """Dropout, one element after the other."""
    y = torch.zeros(x.numel(), dtype=x.dtype)
    for element, value in enumerate(x.flatten().tolist()):
        if dropout_keeps(element, seed, p):
            y[element] = value / (1 - p)
    return y.reshape(x.shape)


# corr2d (D2L 7.2 and 7.4): the book's three functions, and what deep learning makes of them.


@on_cpu
def corr2d(X: Tensor, K: Tensor) -> Tensor:  # noqa: N803 - the book's names
    """One image (H, W), one kernel (R, S): at each place, the sum of products under the window."""
    height, width = X.shape[0] - K.shape[0] + 1, X.shape[1] - K.shape[1] + 1
    Y = torch.zeros(height, width, dtype=X.dtype)  # noqa: N806
    for i in range(height):
        for j in range(width):
            for r in range(K.shape[0]):
                for s in range(K.shape[1]):
                    Y[i, j] += X[i + r, j + s] * K[r, s]
    return Y


@on_cpu
def corr2d_multi_in(X: Tensor, K: Tensor) -> Tensor:  # noqa: N803
    """Images (C, H, W), kernels (C, R, S): the channels' results are summed."""
    return sum(corr2d(x, k) for x, k in zip(X, K, strict=True))


@on_cpu
def corr2d_multi_in_out(X: Tensor, K: Tensor) -> Tensor:  # noqa: N803
    """Images (C, H, W), kernels (K, C, R, S): one result for each output channel."""
    return torch.stack([corr2d_multi_in(X, k) for k in K])


@on_cpu
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """(N, C, H, W) with (K, C / groups, R, S): corr2d_multi_in_out with every option of a layer."""
    (images, _, height, width), (outputs, inputs, rows, cols) = x.shape, weight.shape
    top, bottom, left, right = padding
    out_height = (height + top + bottom - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    out_width = (width + left + right - dilation[1] * (cols - 1) - 1) // stride[1] + 1
    y = torch.zeros(images, outputs, out_height, out_width, dtype=x.dtype)
    for n in range(images):
        for k in range(outputs):
            first = k // (outputs // groups) * inputs  # the group's first input channel
            for a in range(out_height):
                for b in range(out_width):
                    total = 0.0 if bias is None else float(bias[k])
                    for c in range(inputs):
                        for r in range(rows):
                            for s in range(cols):
                                h = a * stride[0] + r * dilation[0] - top
                                w = b * stride[1] + s * dilation[1] - left
                                if 0 <= h < height and 0 <= w < width:
                                    total += float(x[n, first + c, h, w] * weight[k, c, r, s])
                    y[n, k, a, b] = total
    return y


# linear_relu (D2L 3.1 and 5.1)


@on_cpu
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, K) with (N, K): each row of x with each row of the weight."""
    y = torch.zeros(len(x), len(weight), dtype=x.dtype)
    for i in range(len(x)):
        for j in range(len(weight)):
            y[i, j] = 0 if bias is None else bias[j]
            for k in range(x.shape[1]):
                y[i, j] += x[i, k] * weight[j, k]
    return y


@on_cpu
def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, with what is negative set to zero."""
    y = linear(x, weight, bias)
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            if y[i, j] < 0:
                y[i, j] = 0
    return y


# pool2d (D2L 7.5).


@on_cpu
def pool2d(
    X: Tensor,  # noqa: N803 - the book's names
    pool_size: tuple[int, int],
    mode: str = "max",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """D2L 7.5 on a matrix: the maximum or the average of each window.

    Padding (top, bottom, left, right) is -inf for the maximum, and 0 for the average.
    """
    top, bottom, left, right = padding
    filling = float("-inf") if mode == "max" else 0.0
    height, width = X.shape
    padded = torch.full((top + height + bottom, left + width + right), filling, dtype=X.dtype)
    padded[top : top + height, left : left + width] = X
    p_h, p_w = pool_size
    Y = torch.zeros(  # noqa: N806
        (padded.shape[0] - p_h) // stride[0] + 1, (padded.shape[1] - p_w) // stride[1] + 1
    ).to(X.dtype)
    for i in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            top_left = (i * stride[0], j * stride[1])
            window = padded[top_left[0] : top_left[0] + p_h, top_left[1] : top_left[1] + p_w]
            if mode == "max":
                Y[i, j] = window.max()
            elif mode == "avg":
                Y[i, j] = window.mean()
    return Y
