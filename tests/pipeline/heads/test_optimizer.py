"""The stacked optimizer against torch.optim.AdamW, head by head."""

import math

import torch

from temi.pipeline.heads.optimizer import StackedAdamW

LR, DECAY = (1e-2, 3e-3, 1e-1), (0.0, 0.1, 0.01)


def run(
    steps: int, skip: dict[int, int] | None = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Weights after `steps`: stacked, and one torch AdamW per head; `skip[step]` is a head that sits it out."""
    generator = torch.Generator().manual_seed(0)
    weights = {"matrix": torch.randn(3, 4, 5, generator=generator), "bias": torch.randn(3, 4, generator=generator)}
    alone = [{name: tensor[g].clone().requires_grad_() for name, tensor in weights.items()} for g in range(3)]
    optimizers = [
        torch.optim.AdamW(
            [{"params": [w["matrix"]], "weight_decay": DECAY[g]}, {"params": [w["bias"]], "weight_decay": 0.0}],
            lr=LR[g],
        )
        for g, w in enumerate(alone)
    ]
    stacked = StackedAdamW(weights, DECAY)
    for step in range(steps):
        gradients = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
        for g in range(3):
            bad = (skip or {}).get(step) == g
            own = {name: 2 * gradient[g : g + 1] for name, gradient in gradients.items()}
            if bad:
                own = {name: torch.full_like(gradient, math.nan) for name, gradient in own.items()}
            else:
                for name, weight in alone[g].items():
                    weight.grad = gradients[name][g].clone()
                optimizers[g].step()
            own["matrix"] = own["matrix"].mT.contiguous().mT  # as autograd leaves it behind a transposed product
            stacked.step(g, own, LR[g], skip=torch.tensor(float(bad)), shrink=torch.tensor(2.0))
    return weights, alone


def test_every_head_equals_torch_adamw_with_its_own_rate_and_decay() -> None:
    weights, alone = run(25)
    for g, head in enumerate(alone):
        for name, weight in head.items():
            torch.testing.assert_close(weights[name][g], weight.detach(), rtol=1e-6, atol=1e-7)


def test_a_head_that_sits_a_step_out_is_where_it_would_be_had_the_step_not_been() -> None:
    weights, alone = run(12, skip={0: 1, 5: 2, 6: 2})
    for g, head in enumerate(alone):
        for name, weight in head.items():
            torch.testing.assert_close(weights[name][g], weight.detach(), rtol=1e-6, atol=1e-7)


def test_frozen_weights_do_not_move() -> None:
    weights = {"last.weight": torch.ones(1, 2, 2), "first.weight": torch.ones(1, 2, 2)}
    optimizer = StackedAdamW(weights, [0.0])
    gradients = {name: torch.ones(1, 2, 2) for name in weights}
    optimizer.step(0, gradients, 0.1, frozen=["last.weight"])
    assert (weights["last.weight"] == 1).all()
    assert (weights["first.weight"] != 1).all()
