"""Functions of torch that are not public. They stand here alone, and a test names the versions they work in.

Each is what torch's own modules call. The test compares them with the public way on small tensors, so that a version of
torch that changes one fails there and not in a training run.
"""

import torch
from torch import Tensor

SEEN = ("2.11", "2.13", "2.14")
"""Versions of torch in which all of these gave the public functions' results."""


def gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``torch.nn.functional.gelu`` at `x`."""
    slope: Tensor = torch.ops.aten.gelu_backward(gradient, x)
    return slope


def batch_norm_backward(
    gradient: Tensor, x: Tensor, gain: Tensor, running: tuple[Tensor, Tensor], saved: tuple[Tensor, Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, gain and shift of ``torch.native_batch_norm`` in training; `running` statistics are not read.

    `saved` are the batch's mean and reciprocal deviation, as the forward pass returns them.
    """
    back = torch.ops.aten.native_batch_norm_backward
    inner, scale, shift = back(gradient, x, gain, *running, *saved, True, eps, [True, True, True])
    return inner, scale, shift


def fused_adamw_(
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: tuple[list[Tensor], list[Tensor]],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    skip: Tensor | None,
    shrink: Tensor | None,
) -> None:
    """One step of ``torch.optim.AdamW(fused=True)``, in place.

    Nothing happens where `skip` is 1; the gradients are divided by `shrink`.
    """
    means, squares = moments
    torch._fused_adamw_(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        amsgrad=False,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
        grad_scale=shrink,
        found_inf=skip,
    )


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``torch.nn.functional.linear(x, weight)`` of float32 matrices by oneDNN, which that calls for bfloat16 alone."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product
