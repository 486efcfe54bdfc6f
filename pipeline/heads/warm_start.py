"""Heads learn the cuts that they start from, before the first step of the objective."""

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import xxhash
from jaxtyping import Int64
from torch import Tensor

from temi.pipeline.config import Config, StartConfig
from temi.pipeline.device import keep_freed_memory
from temi.pipeline.features.features import Features
from temi.pipeline.heads import losses
from temi.pipeline.heads.optimizer import StackedAdamW
from temi.pipeline.heads.trainer import Block, HeadTrainer
from temi.pipeline.products import arithmetic
from temi.pipeline.progress import Progress
from temi.pipeline.start.find import Start

STUDENT = "student."
Settings = dict[str, str | int | float]


def begin_at_cuts(
    trainer: HeadTrainer, features: Features, configs: Sequence[Config], starts: Sequence[Start], trials: Sequence[int]
) -> None:
    """Put the heads of `trials` at their starts: those kept from a pass before as they were, the others learn.

    Nothing of the objective or the optimizer enters here, so a pass with another loss finds its heads ready.
    """
    recipes = {trial: _recipe(trainer, configs[trial], starts[trial]) for trial in trials}
    kept = {trial: features.memory.recall("heads", recipe) for trial, recipe in recipes.items()}
    if fresh := [trial for trial in trials if kept[trial] is None]:
        warm_start(trainer, starts, configs[0].start, fresh)
    for trial, recipe in recipes.items():
        own = {name: t for name, t in trainer.trial(trial).tensors.items() if name.startswith(STUDENT)}
        if (found := kept[trial]) is None:
            features.memory.keep("heads", recipe, {name: tensor.numpy(force=True) for name, tensor in own.items()})
        else:
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(found[name]))
    trainer.begin_at_students([trial for trial in trials if kept[trial] is not None])


def _recipe(trainer: HeadTrainer, config: Config, start: Start) -> Settings:
    """All that warm-started heads depend on, besides the embeddings."""
    cuts = xxhash.xxh3_128_hexdigest(start.rows.tobytes() + np.ascontiguousarray(start.cuts).tobytes())
    return {
        "cuts": cuts,
        "start": config.start.model_dump_json(exclude={"seed"}),
        "heads": config.heads.model_dump_json(),
        "seed": config.train.seed,
        "temperature": config.objective.student_temperature,
        "arithmetic": json.dumps(
            [arithmetic(trainer.device), len(trainer.blocks[0].student.outputs), trainer.student.widest]
        ),
    }


def warm_start(
    trainer: HeadTrainer, starts: Sequence[Start], config: StartConfig, trials: Sequence[int] | None = None
) -> None:
    """Teach the heads of `trials` (all of them) their cuts by cross-entropy; teachers start where students end.

    The cuts of a trial's start are dealt to its heads: head h of H learns the cuts h, h + H, ... in turn, or where
    heads are many, cut h modulo their number. Every trial sees the same rows.
    """
    x, device, heads = trainer.data.originals, trainer.device, trainer.heads_per_trial
    chosen = range(trainer.trials) if trials is None else trials
    blocks = [pair for pair in enumerate(trainer.blocks) if any(trial in chosen for trial, _ in pair[1].trials)]
    known = torch.from_numpy(starts[0].rows).to(x.device)  # the same for every number of clusters
    cuts = {id(start): torch.from_numpy(start.cuts).to(device) for start in starts}
    generator = torch.Generator().manual_seed(0)
    optimizer = StackedAdamW(trainer.student.weights, [0.0] * len(trainer.blocks))

    def learn(batch: Tensor, wanted: Tensor, rate: float, number: int, block: Block) -> None:
        passed = block.student.forward(batch, trainer.student_temperature[block.heads], training=True)
        gradient, _ = losses.softmax(passed.logits)
        gradient.scatter_add_(2, wanted[block.heads, :, None], -torch.ones_like(gradient[..., :1]))
        gradient /= len(batch)
        optimizer.step(number, block.student.gradients(passed, gradient), rate)

    progress = Progress("warm start", total=config.steps, unit="step")
    with keep_freed_memory(device), trainer.lanes.own_threads(), progress:
        for step in range(config.steps):
            rows = torch.randint(len(known), (min(config.batch_size, len(known)),), generator=generator)
            batch = x[known[rows.to(x.device)]].to(device)
            rows, rate = rows.to(device), config.lr * (1 - step / config.steps)
            wanted = torch.cat([_targets(cuts[id(start)], rows, heads, step) for start in starts])
            trainer.lanes.each(partial(learn, batch, wanted, rate), *zip(*blocks, strict=True))
            progress.advance()
    trainer.begin_at_students(chosen)


def _targets(cuts: Int64[Tensor, "L M"], rows: Int64[Tensor, " B"], heads: int, step: int) -> Int64[Tensor, "H B"]:
    """Clusters that the heads of a trial learn for these rows at a step."""
    turn = torch.tensor(_dealt(heads, len(cuts), step), device=cuts.device)
    return cuts[turn[:, None], rows]


def _dealt(heads: int, cuts: int, step: int) -> list[int]:
    """The cut that each head of a trial learns at a step."""
    hands = [range(head % cuts, cuts, heads) for head in range(heads)]
    return [hand[step % len(hand)] for hand in hands]
