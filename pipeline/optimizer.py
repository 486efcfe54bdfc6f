"""AdamW over stacked heads: every hyperparameter may differ per head, and a head can sit a step out."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8


def _per_head(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


class StackedAdamW:
    """`torch.optim.AdamW` for parameters with a leading axis G, slice by slice.

    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Weight decay applies to matrices only,
    not to biases and gains.

    Parameters
    ----------
    weights : name -> (G, ...) leaf tensors, updated in place
    weight_decay : (G,) decoupled weight decay
    """

    def __init__(self, weights: dict[str, Tensor], weight_decay: Float[Tensor, " G"]):
        self.weights = weights
        self.weight_decay = weight_decay
        self.mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        # float64: 1 - 0.999 ** t has four digits left in float32 at t = 1
        self.steps = torch.zeros(len(weight_decay), device=weight_decay.device, dtype=torch.float64)

    @torch.no_grad()
    def step(
        self,
        gradients: dict[str, Tensor],
        lr: Float[Tensor, " G"],
        active: Bool[Tensor, " G"],
        frozen: Iterable[str] = (),
    ) -> None:
        """One update. Heads that are not `active` keep weights, moments and step count.

        Gradients must be finite, also those of inactive heads.
        """
        self.steps += active
        on, steps = active.to(lr.dtype), self.steps.clamp_min(1)
        size = (on * lr / (1 - BETAS[0] ** steps)).to(lr.dtype)
        root = (1 - BETAS[1] ** steps).sqrt().to(lr.dtype)
        for name, weight in self.weights.items():
            if name in frozen:
                continue
            gradient, mean, square = gradients[name], self.mean[name], self.square[name]
            share = _per_head(on, weight)
            mean.lerp_(gradient, share * (1 - BETAS[0]))
            square.lerp_(gradient.square(), share * (1 - BETAS[1]))
            if weight.ndim > 2:
                weight.mul_(_per_head(1 - on * lr * self.weight_decay, weight))
            denominator = square.sqrt().div_(_per_head(root, weight)).add_(EPS)
            weight.sub_(mean.div(denominator).mul_(_per_head(size, weight)))

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name."""
        moments = {f"adam.mean.{name}": tensor for name, tensor in self.mean.items()}
        moments |= {f"adam.square.{name}": tensor for name, tensor in self.square.items()}
        return moments | {"adam.steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
