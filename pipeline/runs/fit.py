"""A pass of stage two on features: heads are begun, trained, aligned and numbered. No folder is read or written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import Embeddings
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.heads.warm_start import warm_start
from temi.pipeline.registry import STARTS
from temi.pipeline.runs.checks import check_settings
from temi.pipeline.runs.loop import TrainingLoop, Trial
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.start.find import Start
from temi.pipeline.start.vote import match


def fit_model(features: Features, config: Config) -> ClusterModel:
    """Heads of one trial, trained in memory.

    Raises
    ------
    UserError
        Settings that do not fit the rows, or training that cannot go on: its loss or gradient is not finite.
    """
    distinct = features.distinct()
    check_settings(config, len(distinct), features.view_count, "the array")
    trainer = HeadTrainer([config], load_training_set(distinct, config))
    begin_heads(trainer, distinct, [config])
    trial = Trial(trainer, 0, config)
    TrainingLoop([trial], trainer).run()
    if trial.stopped:
        raise UserError(trial.stopped)
    return build_model(trainer, 0, trial.best, features, {})


def begin_heads(trainer: HeadTrainer, features: Features, configs: Sequence[Config]) -> list[Start]:
    """Put the heads of every trial at the clusters they start from; [] where they start at random."""
    start, counts = configs[0].start, sorted({config.heads.clusters for config in configs})
    find = STARTS[start.kind]
    starts = {clusters: find(features, clusters, start) for clusters in counts}
    chosen = [found for config in configs if (found := starts[config.heads.clusters]) is not None]
    if chosen:
        warm_start(trainer, chosen, start)
    return chosen


def build_model(
    trainer: HeadTrainer, trial: int, best: dict[str, Tensor], features: Features, fingerprint: Mapping[str, Any]
) -> ClusterModel:
    """The best checkpoint's teachers, aligned to one another, with clusters numbered by falling size.

    `fingerprint` says what the embeddings were made from.
    """
    heads = trainer.teacher.select(trainer.heads_of(trial))
    weights = {name: best[f"teacher.{name}"] for name in heads.weights}
    buffers = {name: best[f"teacher.{name}"] for name in heads.buffers}
    heads = replace(heads, weights=weights, buffers=buffers).without_absent()
    loss = best["loss"].to(trainer.device)
    plain = torch.arange(heads.outputs.shape[1], device=trainer.device).repeat(len(loss), 1)
    temperature = trainer.teacher_temperature[trainer.heads_of(trial)]
    model = ClusterModel(heads, trainer.data.scaling, temperature, loss, plain, dict(fingerprint))
    return _number_by_size(_align_heads(model, features.embedding), features.embedding)


def _align_heads(model: ClusterModel, embedding: Embeddings) -> ClusterModel:
    """Match every head's clusters to those of the head with the lowest loss, on the training rows."""
    labels = model.head_clusters(embedding).cpu().numpy()
    reference = labels[model.selected].astype(np.int64)
    matches = np.stack([match(reference, own.astype(np.int64), model.clusters) for own in labels])
    return replace(model, alignment=torch.from_numpy(matches).to(model.alignment.device))


def _number_by_size(model: ClusterModel, embedding: Embeddings) -> ClusterModel:
    sizes = model.assign(embedding)[0].bincount(minlength=model.clusters)
    return replace(model, alignment=model.alignment[:, sizes.argsort(descending=True, stable=True)])
