"""Heads learn the cuts that they start from, before the first step of the objective."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from temi.pipeline.config import StartConfig
from temi.pipeline.heads import losses
from temi.pipeline.heads.optimizer import StackedAdamW
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.progress import Progress
from temi.pipeline.start.find import Start


def warm_start(trainer: HeadTrainer, starts: Sequence[Start], config: StartConfig) -> None:
    """Teach every head its cuts by cross-entropy; teachers and marginals start where the students end.

    The cuts of a trial's start are dealt to its heads: head h of H learns the cuts h, h + H, ... in turn, or where
    heads are many, cut h modulo their number.
    """
    x, device, heads = trainer.data.originals, trainer.device, trainer.heads_per_trial
    known = torch.from_numpy(starts[0].rows).to(x.device)  # the same for every number of clusters
    cuts = {start.clusters: torch.from_numpy(start.cuts).to(device) for start in starts}
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = StackedAdamW(trainer.student.weights, [0.0] * len(trainer.blocks))
    with Progress("warm start", total=config.steps, unit="step") as progress:
        for step in range(config.steps):
            rows = torch.randint(len(known), (min(config.batch_size, len(known)),), generator=generator)
            batch = x[known[rows.to(x.device)]].to(device)
            rows, rate = rows.to(device), config.lr * (1 - step / config.steps)
            wanted = torch.cat([_targets(cuts[start.clusters], rows, heads, step) for start in starts])
            for number, block in enumerate(trainer.blocks):
                passed = block.student.forward(batch, trainer.student_temperature[block.heads], training=True)
                gradient, _ = losses.softmax(passed.logits)
                gradient.scatter_add_(2, wanted[block.heads, :, None], -torch.ones_like(gradient[..., :1]))
                gradient /= len(rows)
                optimizer.step(number, block.student.gradients(passed, gradient), rate)
            progress.advance()
    trainer.begin_at_students()


def _targets(cuts: Int64[Tensor, "L M"], rows: Int64[Tensor, " B"], heads: int, step: int) -> Int64[Tensor, "H B"]:
    """Clusters that the heads of a trial learn for these rows at a step."""
    turn = torch.tensor(_dealt(heads, len(cuts), step), device=cuts.device)
    return cuts[turn[:, None], rows]


def _dealt(heads: int, cuts: int, step: int) -> list[int]:
    """The cut that each head of a trial learns at a step."""
    hands = [range(head % cuts, cuts, heads) for head in range(heads)]
    return [hand[step % len(hand)] for hand in hands]
