"""Stacked heads against the same heads as ordinary torch modules, one at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from temi.pipeline.config import HeadConfig
from temi.pipeline.heads.stack import WIDE, Heads, dropout_mask_, init_heads

D, C, M, H = 6, 4, 9, 3
KINDS = ("linear", "published", "mlp-bn")


def make(kind: str, **changes: object) -> Heads:
    return init_heads(HeadConfig(kind=kind, count=H, hidden=8, bottleneck=5, **changes), D, [C], [0])


def rows(seed: int = 1) -> Tensor:
    return torch.randn(M, D, generator=torch.Generator().manual_seed(seed))


def as_module(heads: Heads, g: int, x: Tensor, training: bool) -> Tensor:
    """Head g alone, from torch.nn parts."""
    w = {name: tensor[g].detach() for name, tensor in heads.tensors().items()}
    match heads.kind:
        case "linear":
            return F.linear(x, w["last.weight"], w["last.bias"])
        case "published":
            hidden = F.linear(
                F.gelu(F.linear(x, w["first.weight"], w["first.bias"])), w["second.weight"], w["second.bias"]
            )
            last = nn.utils.parametrizations.weight_norm(nn.Linear(hidden.shape[1], C, bias=False))
            last.parametrizations.weight.original0.data = w["last.gain"][:, None]
            last.parametrizations.weight.original1.data = w["last.direction"]
            return last(F.normalize(hidden, dim=-1)).detach()
        case _:
            norm = nn.BatchNorm1d(len(w["norm.gain"])).train(training)
            norm.load_state_dict(
                {
                    "weight": w["norm.gain"],
                    "bias": w["norm.bias"],
                    "running_mean": w["norm.mean"],
                    "running_var": w["norm.var"],
                }
            )
            hidden = F.gelu(norm(F.linear(x, w["first.weight"], w["first.bias"])))
            return F.linear(hidden, w["last.weight"], w["last.bias"]).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_stacked_logits_equal_each_head_as_a_module(kind: str, training: bool) -> None:
    heads = make(kind)
    expected = [as_module(heads, g, rows(), training) for g in range(H)]  # before running statistics move
    found = heads.logits(rows(), training=training)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_batch_norm_statistics_follow_torch_and_ignore_a_bad_batch() -> None:
    heads = make("mlp-bn")
    norm = nn.BatchNorm1d(8)
    hidden = F.linear(rows(), heads.weights["first.weight"][0], heads.weights["first.bias"][0])
    norm(hidden)
    heads.logits(rows(), training=True)
    torch.testing.assert_close(heads.buffers["norm.mean"][0], norm.running_mean)
    torch.testing.assert_close(heads.buffers["norm.var"][0], norm.running_var)
    before = heads.buffers["norm.mean"].clone()
    heads.logits(torch.full((M, D), float("nan")), training=True)
    torch.testing.assert_close(heads.buffers["norm.mean"], before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_starts_the_same_alone_and_beside_other_trials(kind: str) -> None:
    config = HeadConfig(kind=kind, count=2, hidden=8, bottleneck=5)
    alone = init_heads(config, D, [C], [7])
    beside = init_heads(config, D, [C, C], [3, 7])
    for name, tensor in alone.tensors().items():
        assert torch.equal(beside.tensors()[name][2:], tensor)
    first = next(iter(alone.weights.values()))
    assert not torch.equal(first[0], first[1])  # heads of a trial differ


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_that_a_trial_does_not_have_get_no_probability(kind: str) -> None:
    heads = init_heads(HeadConfig(kind=kind, count=2, hidden=8, bottleneck=5), D, [2, C], [0, 0])
    probability = heads.probabilities(rows(), torch.full((4,), 0.1))
    assert (probability[:2, :, 2:] == 0).all()
    assert (probability[2:] > 0).any(dim=1).all()
    torch.testing.assert_close(probability.sum(-1), torch.ones(4, M))


def test_dropout_keeps_the_mean_and_only_touches_training() -> None:
    mask = torch.empty(2, 200, 500)
    dropout_mask_(mask, 0.25, torch.Generator().manual_seed(0))
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert mask.mean().item() == pytest.approx(1.0, abs=0.01)


def as_formula(heads: Heads, w: dict[str, Tensor], x: Tensor, keep: Tensor | None) -> Tensor:
    """Logits of all heads in training, from differentiable torch functions alone."""
    if heads.kind == "linear":
        return torch.einsum("md,gcd->gmc", x, w["last.weight"]) + w["last.bias"][:, None]
    hidden = torch.einsum("md,ghd->gmh", x, w["first.weight"]) + w["first.bias"][:, None]
    if heads.kind == "published":
        hidden = F.gelu(hidden) @ w["second.weight"].mT + w["second.bias"][:, None]
        last = torch._weight_norm(w["last.direction"].flatten(0, 1), w["last.gain"].reshape(-1, 1), 0)
        return F.normalize(hidden, dim=-1) @ last.view_as(w["last.direction"]).mT
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = F.gelu(hidden * w["norm.gain"][:, None] + w["norm.bias"][:, None])
    return (hidden if keep is None else hidden * keep) @ w["last.weight"].mT + w["last.bias"][:, None]


@pytest.mark.parametrize("clusters", [C, WIDE])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograd(kind: str, clusters: int) -> None:
    """Both memory layouts of an output; in float64, where rounding hides no mistake."""
    generator = torch.Generator().manual_seed(2)
    fresh = init_heads(HeadConfig(kind=kind, count=H, hidden=8, bottleneck=5), D, [clusters], [0])

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    weights = {name: draw(weight) for name, weight in fresh.weights.items()}
    heads = Heads(kind, weights, {name: b.double() for name, b in fresh.buffers.items()}, fresh.outputs)
    keep = draw(torch.empty(H, M, 8)) if kind == "mlp-bn" else None
    x, temperature = rows().double(), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)

    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    expected_logits = as_formula(heads, leaves, x, keep) / temperature[:, None, None]
    passed = heads.forward(x, temperature, training=True, keep=keep)
    torch.testing.assert_close(passed.logits, expected_logits.detach())
    gradient = draw(expected_logits)
    expected = torch.autograd.grad(expected_logits, list(leaves.values()), gradient / 4)
    found = heads.gradients(passed, gradient, share=1 / 4)
    for name, own in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], own, rtol=1e-8, atol=1e-10)
