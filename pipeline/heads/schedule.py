"""How long a run is, and its learning rate and teacher momentum at every step."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from temi.pipeline.config import Config, OptimizerConfig, TeacherConfig
from temi.pipeline.errors import UserError

EPOCH_ROWS = 200_000  # heads of some thousand weights learn no more from more rows (benchmarks/scale.md)
MOST_STEPS = 100_000_000  # their learning rates, in float64, are 0.8 GB


def total_steps(config: Config, rows: int) -> int:
    """Steps of a run: epochs * floor(min(rows, EPOCH_ROWS) / batch), rounded up, and at least `min_steps`.

    A batch of more than EPOCH_ROWS is an epoch of one step.

    Raises
    ------
    UserError
        They are more than MOST_STEPS.
    """
    batch = min(config.train.batch_size, rows)
    steps = max(config.train.min_steps, config.train.epochs * max(min(rows, EPOCH_ROWS) // batch, 1))
    if steps > MOST_STEPS:
        raise UserError(
            f"train.epochs = {config.train.epochs:g} and train.min_steps = {config.train.min_steps} make {steps:.3g} "
            f"steps; ask for at most {MOST_STEPS:,}"
        )
    return math.ceil(steps)


def learning_rate(config: OptimizerConfig, steps: int) -> Float[Tensor, " S"]:
    """Rate of each step: `lr` (s + 1) / W in the W steps s = 0, 1, ... of the warm-up, then a cosine from `lr` to
    `min_lr`, or `lr` throughout."""
    step = torch.arange(steps, dtype=torch.float64)
    warmup = round(config.warmup * steps)
    progress = ((step - warmup) / max(steps - warmup - 1, 1)).clamp(0, 1)
    decayed = config.min_lr + (config.lr - config.min_lr) * (1 + (math.pi * progress).cos()) / 2
    rate = decayed if config.schedule == "cosine" else torch.full_like(step, config.lr)
    return torch.where(step < warmup, config.lr * (step + 1) / max(warmup, 1), rate).float()


def teacher_momentum(config: TeacherConfig, steps: int) -> Float[Tensor, " S"]:
    """Momentum of each step: a cosine from `momentum` to `final_momentum`."""
    progress = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    rise = (1 - (math.pi * progress).cos()) / 2
    return (config.momentum + (config.final_momentum - config.momentum) * rise).float()
