"""A pass of stage two on features: heads are begun, trained, aligned and numbered. No folder is read or written."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from temi.cache import Fingerprint
from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.heads.warm_start import begin_at_cuts
from temi.pipeline.plugins import blame
from temi.pipeline.registry import STARTS
from temi.pipeline.runs.calibration import calibrated, expected_accuracy
from temi.pipeline.runs.checks import check_settings
from temi.pipeline.runs.loop import TrainingLoop, Trial
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.start.find import Start, checked_start, sample
from temi.pipeline.start.honor import honored
from temi.pipeline.start.vote import match

Group = Int64[np.ndarray, " N"]


def fit_model(features: Features, config: Config, told: Constraints | None = None) -> ClusterModel:
    """Heads of one trial, trained in memory; `told` is what a person said of the rows.

    Raises
    ------
    UserError
        Settings that do not fit the rows, or training that cannot go on: its loss or gradient is not finite.
    """
    distinct = features.distinct()
    check_settings(config, len(distinct), features.view_count, "the array", rows=len(features))
    known = told_of_distinct(told, features)
    trainer = HeadTrainer([config], load_training_set(distinct, config), told=known)
    starts = begin_heads(trainer, distinct, [config], known)
    trial = Trial(trainer, 0, config)
    TrainingLoop([trial], trainer).run()
    if trial.stopped:
        raise UserError(trial.stopped)
    model = build_model(trial, distinct, features.copies[1], None)
    expected = expected_accuracy(starts[0].agreement if starts else None, model.clusters)
    return calibrated(model, trainer.data.originals, expected)


def told_of_distinct(told: Constraints | None, features: Features) -> Constraints | None:
    """What was said of rows, of those that `Features.distinct` keeps; UserError where copies contradict each other."""
    return None if told is None else told.of_groups(*features.copies)


def begin_heads(
    trainer: HeadTrainer,
    features: Features,
    configs: Sequence[Config],
    told: Constraints | None = None,
    trials: Sequence[int] | None = None,
) -> list[Start]:
    """Put the heads of `trials` (all of them) at the clusters they start from; [] where they start at random.

    What a person `told` of the rows holds in these clusters.
    """
    kind = configs[0].start.kind
    find = STARTS[kind]
    found: dict[tuple[int, int], Start | None] = {}
    for config in configs:
        if (own := _cut_by(config)) not in found:
            with blame(f"the start {kind!r}", find):
                start = find(features, config.heads.clusters, config.start)
                if start is not None:
                    start = checked_start(start, kind, len(features), config.heads.clusters)
            found[own] = start if start is None or told is None else honored(start, features, told)
    starts = [start for config in configs if (start := found[_cut_by(config)]) is not None]
    if starts and not (len(starts) == len(configs) and all(np.array_equal(starts[0].rows, s.rows) for s in starts)):
        raise UserError(
            f"the start {kind!r} cuts other rows for another number of clusters, or none; trials of one pass learn "
            "the same rows: return the same for every number, or train one number at a time"
        )
    if starts:
        begin_at_cuts(trainer, features, configs, starts, range(len(configs)) if trials is None else trials)
    return starts


def _cut_by(config: Config) -> tuple[int, int]:
    """The settings of a start in which trials of one pass may differ."""
    return config.heads.clusters, config.start.seed


def build_model(trial: Trial, features: Features, copies: Group, fingerprint: Fingerprint | None) -> ClusterModel:
    """The best checkpoint's teachers, aligned to one another, with clusters numbered by falling size.

    Parameters
    ----------
    features : the distinct rows that were trained on
    copies : for each training row, copies included, the distinct row that it equals. All rows count for the sizes of
        clusters; heads are matched on the distinct ones, or on the sample of them that was cut
    fingerprint : what the embeddings were made from; None: an array
    """
    trainer, best = trial.trainer, trial.best
    heads = trainer.teacher.select(trainer.heads_of(trial.index))
    weights = {name: best[f"teacher.{name}"] for name in heads.weights}
    buffers = {name: best[f"teacher.{name}"] for name in heads.buffers}
    heads = replace(heads, weights=weights, buffers=buffers).without_absent()
    loss = best["loss"].to(trainer.device)
    plain = torch.arange(heads.outputs.shape[1], device=trainer.device).repeat(len(loss), 1)
    temperature = trainer.teacher_temperature[trainer.heads_of(trial.index)]
    alike = torch.full_like(loss, 1 / len(loss))
    model = ClusterModel(heads, trainer.data.scaling, temperature, loss, alike, plain, fingerprint)
    rows, seen = trainer.data.originals, sample(len(features))
    some = rows if len(seen) == len(rows) else rows[torch.from_numpy(seen).to(rows.device)]
    labels = model.of_scaled.head_clusters(some).cpu().numpy()
    counted = copies if len(seen) == len(features) else np.arange(len(seen))
    model = replace(model, alignment=_aligned(labels, counted, model.selected, model.clusters).to(loss.device))
    sizes = model.of_scaled.assign(rows)[0].cpu()[copies].bincount(minlength=model.clusters)
    order = sizes.argsort(descending=True, stable=True)
    return replace(model, alignment=model.alignment[:, order.to(loss.device)])


def _aligned(labels: Int32[np.ndarray, "H M"], copies: Group, selected: int, clusters: int) -> Int64[Tensor, "H C"]:
    """Every head's clusters, matched to those of the `selected` one."""
    reference = labels[selected][copies].astype(np.int64)
    matches = [match(reference, own[copies].astype(np.int64), clusters) for own in labels]
    return torch.from_numpy(np.stack(matches))
