"""`train_heads` is stage two, from a cache to a trained model in a run folder."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float16
from torch import Tensor

from temi.cache import EmbeddingCache
from temi.cache.files import os_errors, write_atomic
from temi.pipeline.config import Config
from temi.pipeline.device import pick_device, return_freed_memory
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import CachedRows
from temi.pipeline.heads.batches import check_settings, load_training_set, training_rows
from temi.pipeline.heads.processes import Task, join
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs.label_free import label_free_scores
from temi.pipeline.runs.loop import TrainingLoop
from temi.pipeline.runs.memory import check_memory
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import NOVELTY, Novelty
from temi.pipeline.runs.run_folder import RunFolder, describe_environment, read_json, write_json
from temi.pipeline.runs.tracking import check_tracking, log_result
from temi.pipeline.start.agreement import match
from temi.pipeline.start.find import find_start, warm_start


def train_heads(cache: EmbeddingCache, config: Config, out: Path, *, overwrite: bool = False) -> ClusterModel:
    """Train clustering heads on `cache` and leave a run folder at `out`; an interrupted run goes on where it stopped.

    Raises
    ------
    UserError
        Settings that do not fit the cache, a folder that holds another run, or training that cannot go on.
    """
    run = RunFolder(out)
    train_pass(cache, [config], [run], out / "neighbors", overwrite=overwrite)
    if run.stopped:
        raise UserError(run.stopped)
    return ClusterModel.load(run.model, pick_device(config.train.device))


def train_pass(
    cache: EmbeddingCache, configs: Sequence[Config], runs: Sequence[RunFolder], scratch: Path, *, overwrite: bool
) -> None:
    """Train trials that can share a pass (see `HeadTrainer`), each into its own run folder.

    Every folder ends up finished, or with the sentence that says why its trial cannot go on. `scratch` takes the
    neighbor graph where the cache cannot.
    """
    began = time.perf_counter()
    device = pick_device(configs[0].train.device)
    team = join()
    for config in configs:  # before a folder is begun: a mistake must not stand in the way of the corrected command
        rows = len(training_rows(cache, config.train.split))
        check_settings(cache, config, rows)
        check_tracking(config)
        team.check(config, min(config.train.batch_size, rows))
    environment = describe_environment(cache, device)
    for config, run in zip(configs, runs, strict=True):
        run.start(config, environment, overwrite)
    owed = [(config, run) for config, run in zip(configs, runs, strict=True) if not (run.finished or run.stopped)]
    if not owed:
        return
    configs, runs = zip(*owed, strict=True)
    footprint = check_memory(configs, cache, len(training_rows(cache, configs[0].train.split)), device)
    print(f"memory: about {footprint}", file=sys.stderr)
    data = load_training_set(cache, configs[0], device, scratch, footprint.place)
    return_freed_memory()
    trainer = HeadTrainer(configs, data, team)
    loop = TrainingLoop(runs, trainer, configs[0])
    if configs[0].start.kind == "layouts" and loop.first_step == 0:
        _begin_at_layouts(cache, configs, runs, trainer, scratch)
    return_freed_memory()
    team.begin(Task(cache.folder, configs, scratch, footprint.place, loop.first_step))
    team.take_over(trainer.state())
    finished = loop.run()
    return_freed_memory()
    novelty = Novelty.fit(data.originals)
    return_freed_memory()
    for index, (run, best) in enumerate(zip(runs, finished, strict=True)):
        if run.stopped:
            continue
        model = build_model(trainer, index, best, cache)
        model.save(run.model)
        novelty.save(run.folder / NOVELTY)
        cluster = write_assignments(cache, model, run.folder)["cluster"].to_numpy()
        summary = _summary(trainer, index, model, cache, time.perf_counter() - began)
        sizes = np.bincount(cluster, minlength=model.clusters).tolist()
        log_result(run, configs[index], summary, sizes)
        write_json(run.training, summary | ({"start": read_json(run.start_file)} if run.start_file.exists() else {}))


def _begin_at_layouts(
    cache: EmbeddingCache, configs: Sequence[Config], runs: Sequence[RunFolder], trainer: HeadTrainer, scratch: Path
) -> None:
    """Warm-start every trial at the cuts for its number of clusters, and say in its folder how they were chosen."""
    start, counts = configs[0].start, sorted({config.heads.clusters for config in configs})
    starts = {c: find_start(cache, trainer.data.rows, c, start, trainer.device, scratch) for c in counts}
    return_freed_memory()
    warm_start(trainer, [starts[config.heads.clusters] for config in configs], start)
    for config, run in zip(configs, runs, strict=True):
        write_json(run.start_file, starts[config.heads.clusters].summary())


def build_model(trainer: HeadTrainer, trial: int, best: dict[str, Tensor], cache: EmbeddingCache) -> ClusterModel:
    """The best checkpoint's teachers, aligned to one another, with clusters numbered by falling size."""
    heads = trainer.teacher.select(trainer.heads_of(trial))
    weights = {name: best[f"teacher.{name}"] for name in heads.weights}
    buffers = {name: best[f"teacher.{name}"] for name in heads.buffers}
    heads = replace(heads, weights=weights, buffers=buffers).without_absent()
    loss = best["loss"].to(trainer.device)
    plain = torch.arange(heads.outputs.shape[1], device=trainer.device).repeat(len(loss), 1)
    temperature = trainer.teacher_temperature[trainer.heads_of(trial)]
    fingerprint = asdict(cache.manifest.fingerprint)
    model = ClusterModel(heads, trainer.data.scaling, temperature, loss, plain, fingerprint)
    embedding = CachedRows(cache, trainer.data.rows)
    return _number_by_size(_align_heads(model, embedding), embedding)


def _align_heads(model: ClusterModel, embedding: CachedRows) -> ClusterModel:
    """Match every head's clusters to those of the head with the lowest loss, on the training rows."""
    labels = model.head_clusters(embedding).cpu().numpy()
    reference = labels[model.selected].astype(np.int64)
    matches = np.stack([match(reference, own.astype(np.int64), model.clusters) for own in labels])
    return replace(model, alignment=torch.from_numpy(matches).to(model.alignment.device))


def _number_by_size(model: ClusterModel, embedding: CachedRows) -> ClusterModel:
    sizes = model.assign(embedding)[0].bincount(minlength=model.clusters)
    return replace(model, alignment=model.alignment[:, sizes.argsort(descending=True, stable=True)])


def assign(model: ClusterModel, embedding: Float16[np.ndarray, "n D"] | CachedRows) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (n,) int32 and confidence (n,) float32 of each embedding."""
    rows = torch.from_numpy(embedding) if isinstance(embedding, np.ndarray) else embedding
    cluster, confidence = model.assign(rows)
    return cluster.cpu().numpy().astype(np.int32), confidence.cpu().numpy()


def write_assignments(cache: EmbeddingCache, model: ClusterModel, folder: Path) -> pd.DataFrame:
    """Assign every readable image of `cache`; assignments.parquet and .csv with key, row, cluster, confidence."""
    rows = np.flatnonzero(cache.ok)
    cluster, confidence = assign(model, CachedRows(cache, rows))
    keys = [cache.keys[row] for row in rows]
    table = pd.DataFrame({"key": keys, "row": rows, "cluster": cluster, "confidence": confidence})
    with os_errors(folder, "write"):
        write_atomic(folder / "assignments.parquet", table.to_parquet(index=False))
        write_atomic(folder / "assignments.csv", table.to_csv(index=False, float_format="%.4f").encode())
    return table


def _summary(
    trainer: HeadTrainer, trial: int, model: ClusterModel, cache: EmbeddingCache, seconds: float
) -> dict[str, Any]:
    data = trainer.data
    embedding = CachedRows(cache, data.rows)
    return {
        "steps": trainer.steps,
        "images": len(data.rows),
        "seconds": round(seconds, 3),
        "trials_in_pass": trainer.trials,
        "skipped_steps": int(trainer.skipped[trial]),
        "head_loss": model.loss.tolist(),
        "selected_head": model.selected,
        **label_free_scores(model, embedding, data.neighbors),
    }
