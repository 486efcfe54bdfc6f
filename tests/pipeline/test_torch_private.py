"""What is not public in torch gives what the public functions give, and the versions where that was seen are named."""

import pytest
import torch
import torch.nn.functional as F

from temi.pipeline.torch_private import SEEN, batch_norm_backward, fused_adamw_, gelu_backward, onednn_linear


def test_this_version_of_torch_is_named() -> None:
    version = ".".join(torch.__version__.split(".")[:2])
    assert version in SEEN, f"torch {version}: if the tests below pass, add it to SEEN"


def test_gelu() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(7, 3, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.gelu(x), x, gradient)
    torch.testing.assert_close(gelu_backward(gradient, x.detach()), expected)


def test_batch_norm() -> None:
    x, gain, shift = (torch.randn(*shape, requires_grad=True) for shape in ((9, 4), (4,), (4,)))
    gradient, mean, var = torch.randn(9, 4), torch.zeros(4), torch.ones(4)
    with torch.no_grad():
        _, *saved = torch.native_batch_norm(x, gain, shift, mean.clone(), var.clone(), True, 0.1, 1e-5)
    expected = torch.autograd.grad(
        F.batch_norm(x, None, None, gain, shift, True, 0.1, 1e-5), (x, gain, shift), gradient
    )
    found = batch_norm_backward(gradient, x.detach(), gain.detach(), (mean, var), tuple(saved), 1e-5)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_adamw() -> None:
    weight, gradient = torch.randn(5, 3), torch.randn(5, 3)
    public = weight.clone().requires_grad_()
    public.grad = gradient.clone()
    torch.optim.AdamW([public], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01).step()
    moments, step = ([torch.zeros(5, 3)], [torch.zeros(5, 3)]), torch.ones(())
    own = weight.clone()
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    fused_adamw_([own], [2 * gradient], moments, [step], **settings, skip=torch.zeros(()), shrink=torch.tensor(2.0))
    torch.testing.assert_close(own, public.detach())
    fused_adamw_([own], [gradient * torch.nan], moments, [step], **settings, skip=torch.ones(()), shrink=None)
    torch.testing.assert_close(own, public.detach())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednn() -> None:
    x, weight = torch.randn(5, 3), torch.randn(4, 3)
    torch.testing.assert_close(onednn_linear(x, weight), F.linear(x, weight))
