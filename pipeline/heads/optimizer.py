"""AdamW over stacked heads: every group of heads has its own hyperparameters, and can sit a step out."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.torch_private import fused_adamw_

BETAS = (0.9, 0.999)
EPS = 1e-8


class StackedAdamW:
    """`torch.optim.AdamW` for parameters with a leading axis G, group by group of heads, by torch's fused kernel.

    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. Weight decay applies to matrices only,
    not to biases and gains.

    Parameters
    ----------
    weights : name -> (G, ...) tensors, updated in place
    weight_decay : decoupled weight decay of each group; axis G divides evenly among the groups
    """

    def __init__(self, weights: dict[str, Tensor], weight_decay: Sequence[float]):
        self.weights, self.weight_decay = weights, weight_decay
        self.mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.steps = torch.zeros(len(weight_decay), device=next(iter(weights.values())).device)
        parts = [
            {name: tensor.chunk(len(weight_decay)) for name, tensor in tensors.items()}
            for tensors in (weights, self.mean, self.square)
        ]
        self.groups = [
            {name: [part[name][group] for part in parts] for name in weights} for group in range(len(weight_decay))
        ]

    @torch.no_grad()
    def step(
        self,
        group: int,
        gradients: dict[str, Tensor],
        lr: float | Float[Tensor, ""],
        skip: Float[Tensor, ""] | None = None,
        shrink: Float[Tensor, ""] | None = None,
        frozen: Iterable[str] = (),
    ) -> None:
        """One update of a group.

        Parameters
        ----------
        gradients : name -> (G / groups, ...) of this group's heads
        skip : 1 leaves weights, moments and step count as they are, and the gradients may hold anything; 0 does not
        shrink : the gradients are divided by this
        frozen : names that stay as they are
        """
        own, count = self.groups[group], self.steps[group]
        count += 1 if skip is None else 1 - skip
        names = [name for name in gradients if name not in frozen]
        for matrices, decay in ((True, self.weight_decay[group]), (False, 0.0)):
            chosen = [name for name in names if (self.weights[name].ndim > 2) == matrices]
            if chosen:
                weights, means, squares = zip(*(own[name] for name in chosen), strict=True)
                fused_adamw_(
                    list(weights),
                    [gradients[name].contiguous() for name in chosen],  # the kernel reads memory, not strides
                    (list(means), list(squares)),
                    [count] * len(chosen),
                    lr=lr,
                    betas=BETAS,
                    eps=EPS,
                    weight_decay=decay,
                    skip=skip,
                    shrink=shrink,
                )

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name."""
        moments = {f"adam.mean.{name}": tensor for name, tensor in self.mean.items()}
        moments |= {f"adam.square.{name}": tensor for name, tensor in self.square.items()}
        return moments | {"adam.steps": self.steps}
