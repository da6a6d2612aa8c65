"""The one tolerance rule of the test-suite, and the kinds of input that break kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assert_as_accurate_as_torch(ours: Callable, theirs: Callable, *inputs: Tensor) -> None:
    """Our output and gradients are as near to the exact ones as torch's, in the same dtype.

    Exact is what torch computes in float64. The rule: largest error of ours <= 2 x largest error of
    torch's + eps x magnitude, where magnitude is the largest result for the inputs' absolute
    values: what a single rounding of a partial sum may cost. In float64 torch is no better than its
    own reference: either has the error that torch has in float32, in proportion.
    """
    torch.manual_seed(0)
    gradient = torch.randn(theirs(*inputs).shape, dtype=torch.float64).to(inputs[0].dtype)
    ours_all = _outputs_and_gradients(ours, inputs, gradient)
    theirs_all = _outputs_and_gradients(theirs, inputs, gradient)
    exact_all = _outputs_and_gradients(theirs, [x.double() for x in inputs], gradient.double())
    magnitudes = _outputs_and_gradients(
        theirs, [x.double().abs() for x in inputs], gradient.double().abs()
    )
    if inputs[0].dtype == torch.float64:
        singles = [x.float() for x in inputs]
        rounded = _outputs_and_gradients(theirs, singles, gradient.float())
        exact = _outputs_and_gradients(
            theirs, [x.double() for x in singles], gradient.float().double()
        )
        ratio = 1.5 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        errors = [ratio * (r.double() - e) for r, e in zip(rounded, exact, strict=True)]
    else:
        errors = [t.double() - e for t, e in zip(theirs_all, exact_all, strict=True)]
    names = ["output", *(f"gradient of input {i}" for i in range(len(inputs)))]
    for name, our, their, exact, magnitude, torchs in zip(
        names, ours_all, theirs_all, exact_all, magnitudes, errors, strict=True
    ):
        assert our.dtype == their.dtype and our.shape == their.shape, name
        if our.numel() == 0:
            continue
        allowed = 2 * _largest(torchs)
        allowed += torch.finfo(our.dtype).eps * _largest(magnitude)
        error = (our.double() - exact).abs()
        worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        assert error.max() <= allowed, (
            f"{name}{list(worst)}: ours {our[worst]}, torch {their[worst]}, exact {exact[worst]}, "
            f"error {error.max():.3e}, allowed {allowed:.3e}"
        )


def _outputs_and_gradients(f: Callable, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = f(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same (N, C, H, W) image in every memory layout that kernels treat differently."""
    spread = torch.empty([2 * size for size in x.shape], dtype=x.dtype)[::2, ::2, ::2, ::2]
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.to(memory_format=torch.channels_last),
        "sliced": spread.copy_(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
