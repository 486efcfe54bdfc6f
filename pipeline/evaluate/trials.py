"""Many trials against the labels, beside baselines once for every split and number of clusters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from temi.cache import EmbeddingCache
from temi.cache.files import check_writable
from temi.cache.words import counted
from temi.pipeline.evaluate.recipes import runnable
from temi.pipeline.evaluate.tables import (
    Part,
    open_training_cache,
    run_rivals,
    score_row,
    scored_parts,
    trained_split,
)
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.records import RESULT, Result, ScoredPart, ScoreRow, write_record
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.train import assign
from temi.pipeline.runs.trials import list_trained


def evaluate_trials(
    folder: Path,
    other: EmbeddingCache | None = None,
    baselines: Sequence[str] = ("kmeans",),
    *,
    leave_out: bool = False,
) -> Result:
    """Score every finished trial in `folder`; also written to ``result.json``, the best of every part first.

    Trials of different splits share no table: they saw other rows, and others are held out from them.
    `leave_out` as for `evaluate_run`.
    """
    check_writable(folder)
    parts: dict[str, Part] = {}
    rows: dict[str, list[ScoreRow]] = {}
    compared: set[tuple[str, int]] = set()
    names: dict[str, list[str]] = {}
    trained = [(trial, RunFolder(folder / trial.trial)) for trial in list_trained(folder)]
    splits = [trained_split(run) for _, run in trained]
    for (trial, run), split in zip(trained, splits, strict=True):
        model = ClusterModel.load(run.model)
        home = open_training_cache(run, other)
        scored = scored_parts(run, home, None if other is None or other.digest == home.digest else other, model)
        if len(set(splits)) > 1:
            scored = [replace(part, name=f"{part.name}, train.split={split}") for part in scored]
        for part in scored:
            parts.setdefault(part.name, part)
            own = score_row(trial.name, part, assign(model, part.embedding)[0], model.clusters)
            rows.setdefault(part.name, []).append(own)
        if (split, model.clusters) not in compared:
            compared.add((split, model.clusters))
            if split not in names:
                names[split] = runnable(baselines, home, split, leave_out=leave_out)
            for rival in run_rivals(run, home, scored, names[split], model.clusters):
                title = f"{rival.title}, {counted(model.clusters, 'cluster')}"
                for part, cluster in zip(scored, rival.clusters, strict=True):
                    rows[part.name].append(score_row(title, part, cluster, model.clusters, kind="baseline"))
    tables = tuple(
        ScoredPart(name=name, images=len(part.label), rows=tuple(sorted(rows[name], key=lambda row: -(row.acc or 0))))
        for name, part in parts.items()
    )
    result = Result(run=str(folder), parts=tables)
    write_record(folder / RESULT, result)
    return result
