"""`train_heads` is stage two, from a cache to a trained model in a run folder."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int32

from temi.cache import EmbeddingCache
from temi.cache.files import atomic_file, csv_bytes
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.pipeline.config import Config
from temi.pipeline.device import keep_freed_memory, pick_device, return_freed_memory
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import CachedRows, Embeddings
from temi.pipeline.features.constraints import Constraints
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.processes import Task, join
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.plugins import Plugin
from temi.pipeline.progress import say
from temi.pipeline.runs.calibration import calibrated, expected_accuracy
from temi.pipeline.runs.checks import check_settings, training_rows
from temi.pipeline.runs.continued import CONTINUED, Before
from temi.pipeline.runs.csv_table import lines_csv
from temi.pipeline.runs.fit import begin_heads, build_model, told_of_distinct
from temi.pipeline.runs.footprint import check_memory
from temi.pipeline.runs.label_free import label_free_scores
from temi.pipeline.runs.loop import LoggedTrial, TrainingLoop, resume_trials
from temi.pipeline.runs.mirror import shown, typed
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import NOVELTY, Novelty
from temi.pipeline.runs.records import StartRecord, Training, read_record, write_record
from temi.pipeline.runs.run_folder import RunFolder, describe_environment
from temi.pipeline.runs.tracking import check_tracking, log_result
from temi.pipeline.start.find import LARGEST

ASSIGNMENTS = pa.schema({"key": pa.string(), "row": pa.int64(), "cluster": pa.int32(), "confidence": pa.float32()})

Assigned = tuple[Int32[np.ndarray, " n"], Float[np.ndarray, " n"]]


def train_heads(
    cache: EmbeddingCache,
    config: Config,
    out: Path,
    *,
    overwrite: bool = False,
    plugins: Sequence[Plugin] = (),
    before: Before | None = None,
    told: Constraints | None = None,
) -> ClusterModel:
    """Train clustering heads on `cache` and leave a run folder at `out`; an interrupted run goes on where it stopped.

    Clusters keep the numbers that they have in the run `before`, where they are the same. `told` is what a person said
    of the images of an earlier run.

    Raises
    ------
    UserError
        Settings that do not fit the cache, a folder that holds another run or that another process trains, or training
        that cannot go on.
    """
    run = RunFolder(out)
    train_pass(
        cache, [config], [run], out / NEIGHBOR_FOLDER, overwrite=overwrite, plugins=plugins, before=before, told=told
    )
    if run.stopped:
        raise UserError(run.stopped)
    return ClusterModel.load(run.model, pick_device(config.train.device))


def train_pass(
    cache: EmbeddingCache,
    configs: Sequence[Config],
    runs: Sequence[RunFolder],
    scratch: Path,
    *,
    overwrite: bool,
    plugins: Sequence[Plugin] = (),
    before: Before | None = None,
    told: Constraints | None = None,
) -> None:
    """Train trials that can share a pass (see `HeadTrainer`), each into its own run folder.

    Every folder ends up finished, or with the sentence that says why its trial cannot go on. `scratch` takes what is
    kept of the features where the cache's folder cannot. `plugins` are the files of the user's own that settings name,
    `told` is what a person said of images, by their names.
    """
    began = time.perf_counter()
    return_freed_memory()
    device, processes = pick_device(configs[0].train.device), join()
    environment = replace(
        describe_environment(cache, device),
        continues=shown(before.folder) if before else None,
        corrections=told.digest if told else "",
    )
    if not overwrite and all(run.settled for run in runs):
        for config, run in zip(configs, runs, strict=True):
            run.start(config, environment, overwrite, plugins)  # refuses other settings
        return
    for run in runs:
        run.check_place()
    rows = training_rows(cache, configs[0].train.split)
    everything = Features.of_cache(cache, rows, scratch, device)
    features = everything.distinct()
    if len(features) < len(rows):
        say(f"{len(rows) - len(features):,} of {len(rows):,} images repeat others: they count once, and are assigned")
    for config in configs:  # before a folder is begun: a mistake must not stand in the way of the corrected command
        check_settings(
            config, len(features), cache.views, str(cache.folder), rows=len(rows), unreadable=bool(cache.failures)
        )
        check_tracking(config)
        processes.check(config, min(config.train.batch_size, len(features)))
    known = None if told is None else told_of_distinct(told.on([cache.keys[row] for row in rows]), everything)
    with ExitStack() as claims:
        for config, run in zip(configs, runs, strict=True):
            claims.enter_context(run.claim())
            run.start(config, environment, overwrite, plugins)
        owed = [(config, run) for config, run in zip(configs, runs, strict=True) if not run.settled]
        if not owed:  # another process finished them since
            return
        configs, runs = zip(*owed, strict=True)
        footprint = check_memory(configs, cache, len(features), device)
        say(f"memory: about {footprint}")
        if len(features) > LARGEST and configs[0].start.kind != "random":
            say(f"heads begin at cuts of a random {LARGEST:,} of the {len(features):,} images")
        data = load_training_set(features, configs[0], footprint.place, scratch)
        trainer = HeadTrainer(configs, data, processes, told=known)
        return_freed_memory()
        trials = [LoggedTrial(run, trainer, index, config) for index, (config, run) in enumerate(owed)]
        first_step = resume_trials(trials)
        if first_step == 0:
            for run, start in zip(runs, begin_heads(trainer, features, configs, known), strict=False):
                found = StartRecord(cuts=start.names, images=len(start.rows), agreement=start.agreement)
                write_record(run.start_file, found)
        return_freed_memory()
        processes.begin(Task(Path(cache.place), configs, scratch, footprint.place, first_step, known))
        processes.take_over(trainer.state())
        TrainingLoop(trials, trainer, first_step).run()
        novelty = Novelty.of_features(features, configs[0].heads.scale, data.originals)
        return_freed_memory()
        for trial in trials:
            if not trial.stopped:
                _finish(trial, cache, features, everything, novelty, began, before)


def _finish(
    trial: LoggedTrial,
    cache: EmbeddingCache,
    features: Features,
    everything: Features,
    novelty: Novelty,
    began: float,
    before: Before | None,
) -> None:
    """Leave the model of a trained trial, its assignments and its scores in its run folder."""
    trainer, run = trial.trainer, trial.run
    rows, copies = trainer.data.originals, everything.copies[1]
    model = build_model(trial, features, copies, cache.manifest.fingerprint)
    if before is not None:
        model, continued = before.keep_numbers(model, cache)
        write_record(run.folder / CONTINUED, continued)
    agreement = read_record(StartRecord, run.start_file).agreement if run.start_file.exists() else None
    expected = expected_accuracy(agreement, model.clusters)
    model = calibrated(model, rows, expected)
    model.save(run.model)
    novelty.asked(model).save(run.folder / NOVELTY)
    known = None
    if len(everything) == cache.ok.sum():
        one, sure = assign(model.of_scaled, rows)
        known = one[copies], sure[copies]
    cluster = write_assignments(cache, model, run.folder, known)
    training = Training(
        steps=trainer.steps,
        images=len(everything),
        seconds=round(time.perf_counter() - began, 3),
        trials_in_pass=trainer.trials,
        skipped_steps=int(trainer.skipped[trial.index]),
        head_loss=tuple(model.loss.tolist()),
        selected_head=model.selected,
        expected_accuracy=expected,
        **label_free_scores(model.of_scaled, rows, trainer.data.neighbors, copies).model_dump(),
    )
    log_result(run, trial.config, training, np.bincount(cluster, minlength=model.clusters).tolist())
    write_record(run.training, training)


def follow() -> None:
    """On every process of torchrun but the first: take part in each pass that it begins. Writes nothing."""
    processes = join()
    while (task := processes.hear()) is not None:
        settings, cache = task.configs[0].train, EmbeddingCache.open(task.cache)
        rows, device = training_rows(cache, settings.split), pick_device(settings.device)
        features = Features.of_cache(cache, rows, task.scratch, device).distinct()
        data = load_training_set(features, task.configs[0], task.place, task.scratch)
        trainer = HeadTrainer(task.configs, data, processes, told=task.told)
        processes.take_over(trainer.state())
        batches = trainer.batches.bank_rows(task.first_step, trainer.steps)
        with keep_freed_memory(device):
            for done, bank_rows in enumerate(batches, start=task.first_step + 1):
                trainer.step(done - 1, bank_rows)
                if settings.recorded(done, trainer.steps) and not processes.agree(True):
                    break
    processes.leave()


def assign(model: ClusterModel, embedding: Float[np.ndarray, "n D"] | Embeddings) -> Assigned:
    """Cluster (n,) int32 and confidence (n,) float32 of each embedding."""
    rows = torch.from_numpy(embedding) if isinstance(embedding, np.ndarray) else embedding
    cluster, confidence = model.assign(rows)
    return cluster.cpu().numpy().astype(np.int32), confidence.cpu().numpy()


def read_assignments(folder: Path) -> pa.Table:
    """What `write_assignments` left in a run folder, its pages checked; UserError where it is gone or damaged."""
    path = folder / "assignments.parquet"
    try:
        return pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {written_again(folder)}") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({error}); {written_again(folder)}") from None


def written_again(folder: Path) -> str:
    """What to do about assignments that cannot be used."""
    return f"write it again with `temi evaluate {typed(folder)}`"


def write_assignments(
    cache: EmbeddingCache, model: ClusterModel, folder: Path, known: Assigned | None = None
) -> Int32[np.ndarray, " n"]:
    """Cluster of every readable image of `cache`; assignments.parquet and .csv have key, row, cluster, confidence.

    `known` is what `model` says of these images, where it was asked already. Tables are written shard by shard.
    """
    rows = np.flatnonzero(cache.ok)
    cluster, confidence = known or assign(model, CachedRows(cache, rows))
    with ExitStack() as files:
        csv = files.enter_context(atomic_file(folder / "assignments.csv"))
        file = files.enter_context(atomic_file(folder / "assignments.parquet"))
        parquet = files.enter_context(pq.ParquetWriter(file, ASSIGNMENTS, write_page_checksum=True))
        csv.write(csv_bytes([ASSIGNMENTS.names]))
        for shard, keys in zip(cache.manifest.shards, cache.keys_by_shard(), strict=True):
            own = slice(*np.searchsorted(rows, (shard.start, shard.stop)))
            names = [keys[row - shard.start] for row in rows[own]]
            table = pa.table([names, rows[own], cluster[own], confidence[own]], ASSIGNMENTS)
            parquet.write_table(table)
            csv.write(lines_csv(table.to_pydict()))
    return cluster
