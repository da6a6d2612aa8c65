"""The one tolerance rule of the test-suite, and the kinds of input that break kernels."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.device import INTERPRETED

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def assert_as_accurate_as_torch(ours: Callable, theirs: Callable, *inputs: Tensor) -> None:
    """Our output and gradients are as near to the exact ones as torch's, in the same dtype.

    Exact is what torch computes in float64. The rule: largest error of ours <= 2 x largest error of
    torch's + eps x magnitude, where magnitude is the largest result for the inputs' absolute
    values: what a single rounding of a partial sum may cost.

    In float64, torch's error is the one that it makes in float32, scaled by the two eps, and what
    is called exact may have it as well: so it is allowed for twice.

    Where torch is not finite it allows for nothing: its bfloat16 weight gradient has a NaN now and
    then, read from memory that nobody wrote, where the stride is larger than the image.
    """
    dtype = inputs[0].dtype
    torch.manual_seed(0)
    gradient = torch.randn(theirs(*inputs).shape, dtype=torch.float64).to(dtype)
    ours_all = outputs_and_gradients(ours, inputs, gradient)
    exact_all = outputs_and_gradients(theirs, [x.double() for x in inputs], gradient.double())
    magnitudes = outputs_and_gradients(
        theirs, [x.double().abs() for x in inputs], gradient.double().abs()
    )
    if dtype == torch.float64:
        scale = 4 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        errors = _errors(theirs, [x.float() for x in inputs], gradient.float())
    else:
        scale = 2
        errors = _errors(theirs, inputs, gradient)
    names = ["output", *(f"gradient of input {i}" for i in range(len(inputs)))]
    for name, our, their_error, exact, magnitude in zip(
        names, ours_all, errors, exact_all, magnitudes, strict=True
    ):
        assert our.dtype == dtype and our.shape == exact.shape, name
        if our.numel() == 0:
            continue
        allowed = scale * _largest(their_error) + torch.finfo(dtype).eps * _largest(magnitude)
        error = (our.double() - exact).abs()
        worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
        assert error.max() <= allowed, (
            f"{name}{list(worst)}: ours {our[worst]}, exact {exact[worst]}, "
            f"error {error.max():.3e}, allowed {allowed:.3e}"
        )


def _errors(f: Callable, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """What the dtype of the inputs costs f's output and gradients; 0 where they are not finite."""
    exact = outputs_and_gradients(f, [x.double() for x in inputs], gradient.double())
    values = outputs_and_gradients(f, inputs, gradient)
    errors = [value.double() - e for value, e in zip(values, exact, strict=True)]
    return [torch.where(error.isfinite(), error, 0) for error in errors]


def outputs_and_gradients(f: Callable, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = f(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same (N, C, H, W) image in every memory layout that kernels treat differently."""
    around = x.new_full([2 * size for size in x.shape], torch.nan)
    spread = around[::2, ::2, ::2, ::2]
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.to(memory_format=torch.channels_last),
        "sliced": spread.copy_(x),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }


def differentiates(function: Callable, inputs: list[Tensor], fast: bool = INTERPRETED) -> bool:
    """Whether first and second derivatives are right; if `fast`, along random directions alone.

    In reverse mode, in forward mode, in forward over reverse, and each in batches; but in Triton's
    interpreter, where a launch takes long, in reverse mode alone.
    """
    more = not INTERPRETED
    return gradcheck(
        function,
        inputs,
        fast_mode=fast,
        check_forward_ad=more,
        check_batched_grad=more,
        check_batched_forward_grad=more,
    ) and gradgradcheck(
        function, inputs, fast_mode=fast, check_fwd_over_rev=more, check_batched_grad=more
    )


def away_from_zero(before_relu: Callable, *inputs: Tensor) -> Tensor:
    """1 where rounding cannot change the sign of what a ReLU is given, else 0.

    Where it can, the exact gradient of a ReLU says nothing of one in fewer bits: multiply both
    outputs by this.
    """
    value = before_relu(*(x.double() for x in inputs))
    magnitude = before_relu(*(x.double().abs() for x in inputs))
    eps = torch.finfo(inputs[0].dtype).eps
    return (value.abs() > eps * magnitude).to(inputs[0].dtype)
