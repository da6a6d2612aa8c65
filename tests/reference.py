"""The operators as plain loops: what the kernels are checked against, element by element."""

import torch
from torch import Tensor


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
