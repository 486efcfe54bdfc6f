"""A run beside baselines and the labeled ceilings. This room alone reads labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from temi.cache import EmbeddingCache
from temi.cache.bucket import bucket_url
from temi.cache.files import check_writable
from temi.cache.labels import renumbered
from temi.cache.schema import MANIFEST, NEIGHBOR_FOLDER
from temi.pipeline.config import recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import (
    KNN,
    Embedding,
    Labels,
    cluster_scores,
    confident_accuracy,
    knn_accuracy,
    probe_accuracy,
)
from temi.pipeline.evaluate.recipes import run_rival, runnable, title_of
from temi.pipeline.progress import say
from temi.pipeline.runs.checks import rows_since, training_rows
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.records import RESULT, Result, ScoredPart, ScoreRow, Training, read_record, write_record
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.train import assign, write_assignments

TRAINED = "training rows"  # how the names of parts begin that were trained on


@dataclass(frozen=True)
class Part:
    """Rows that are scored together: those trained on, a held-out split, or another cache."""

    name: str
    embedding: Embedding
    label: Labels

    @property
    def labeled(self) -> bool:
        """Whether every row has a label, as the ceilings need."""
        return len(self.label) > 0 and bool((self.label >= 0).all())


def evaluate_run(
    folder: Path,
    other: EmbeddingCache | None = None,
    baselines: Sequence[str] = ("kmeans",),
    *,
    leave_out: bool = False,
) -> Result:
    """Score the trained model of a run on its training rows and on what is held out, beside baselines and the ceilings.

    Held out are the splits of the run's cache that were not trained on, or the cache `other`. Writes ``result.json``
    and assignments of every row that was scored into the run folder. With `leave_out`, baselines that need more rows
    than there are do not count; else they are a UserError.
    """
    run = RunFolder(folder)
    run.check_finished()
    check_writable(folder)
    model = ClusterModel.load(run.model)
    home = open_training_cache(run, other)
    held_out = None if other is None or other.digest == home.digest else other
    parts = scored_parts(run, home, held_out, model)
    training = read_record(Training, run.training)
    names = runnable(baselines, home, trained_split(run), leave_out=leave_out)
    rivals = run_rivals(run, home, parts, names, model.clusters)
    tables = _tables(model, parts, rivals, training.seconds)
    scored = tuple(
        ScoredPart(name=part.name, images=len(part.label), rows=tuple(rows))
        for part, rows in zip(parts, tables, strict=True)
    )
    result = Result(run=str(folder), parts=scored, training=training)
    write_record(folder / RESULT, result)
    if held_out is not None:
        (folder / "held-out").mkdir(exist_ok=True)
        write_assignments(held_out, model, folder / "held-out")
    write_assignments(home, model, folder)
    return result


def open_training_cache(run: RunFolder, other: EmbeddingCache | None) -> EmbeddingCache:
    """The cache that `run` was trained on, as it was then: where it was, or `other` if that holds the same embeddings.

    Of a cache that has grown since, this is the generation that was there.
    """
    trained = run.begun_with().cache
    if other is not None and (given := EmbeddingCache.open_as(other.place, trained.digest)):
        return given
    if not bucket_url(trained.folder) and not (Path(trained.folder) / MANIFEST).exists():
        raise UserError(
            f"{run.folder} was trained on the cache {trained.folder}, which is not there any more; give its new place "
            "by --cache or as second argument of `temi evaluate`"
        )
    cache = EmbeddingCache.open_as(trained.folder, trained.digest)
    if cache is None:
        raise UserError(
            f"{trained.folder} has changed since {run.folder} was trained; give the original cache, by --cache or as "
            "second argument of `temi evaluate`"
        )
    return cache


def trained_split(run: RunFolder) -> str:
    """The split of the cache that `run` was trained on, as its settings name it."""
    return recorded_config(run.config).train.split


def scored_parts(run: RunFolder, home: EmbeddingCache, other: EmbeddingCache | None, model: ClusterModel) -> list[Part]:
    rows = training_rows(home, trained_split(run))
    parts = [_part(TRAINED, home, rows)]
    if other is not None:
        check_same_backbone(model, other)
        new = rows_since(home, other)
        if not len(new):
            raise UserError(f"{other.folder} holds no image that {run.folder} was not trained on; leave it out")
        name = f"held out: {other.folder.name}" + (", new rows" if len(new) < other.rows else "")
        return [*parts, _part(name, other, new[other.ok[new]], home.classes)]
    for name in home.splits:
        held_out = np.setdiff1d(training_rows(home, name), rows)
        if len(held_out):
            parts.append(_part(f"held out: {name}", home, held_out))
    return parts


def _part(name: str, cache: EmbeddingCache, rows: Int64[np.ndarray, " n"], classes: Sequence[str] = ()) -> Part:
    """These rows of a cache; its classes are numbered after `classes`, where it has these too."""
    if not len(rows):
        raise UserError(f"{cache.folder} has no readable image to score; see failures.csv there")
    labels = renumbered(cache.labels[rows], cache.classes, list(dict.fromkeys([*classes, *cache.classes])))
    return Part(name, cache.embedding()[rows], labels.astype(np.int64))


def check_same_backbone(model: ClusterModel, cache: EmbeddingCache) -> None:
    """Refuse a cache whose embeddings do not mean what the model was trained on."""
    if differences := cache.manifest.fingerprint.differences_in_meaning(model.made_from):
        raise UserError(
            f"{cache.folder} was embedded otherwise than the run ({'; '.join(differences)}); "
            "embed these images with the run's settings"
        )


@dataclass(frozen=True)
class Rival:
    """What a baseline found: the clusters of every part, and the seconds that the first took."""

    title: str
    clusters: list[Labels]
    seconds: float


def run_rivals(
    run: RunFolder, home: EmbeddingCache, parts: Sequence[Part], names: Sequence[str], clusters: int
) -> list[Rival]:
    """Baselines fitted on the training rows of `run`, which are the first part and enough for each."""
    split, embeddings = trained_split(run), [part.embedding for part in parts]
    scratch = run.folder / NEIGHBOR_FOLDER
    found = [run_rival(name, home, split, embeddings, clusters, scratch) for name in names]
    return [Rival(title_of(name), *clustered) for name, clustered in zip(names, found, strict=True)]


def _tables(model: ClusterModel, parts: list[Part], rivals: Sequence[Rival], seconds: float) -> list[list[ScoreRow]]:
    """Rows of every part's table: the model, its rivals, and the two ceilings.

    Seconds are those of training or fitting, so they stand beside the training rows alone.
    """
    tables = []
    for position, part in enumerate(parts):
        cluster, confidence = assign(model, part.embedding)
        single = model.head_clusters(torch.from_numpy(part.embedding))[model.selected].cpu().numpy()
        rows = [
            score_row("TEMI", part, cluster, model.clusters, seconds=seconds, confidence=confidence),
            score_row("best head", part, single, model.clusters),
            *(_rival_row(rival, position, part, model.clusters) for rival in rivals),
        ]
        if position > 0:
            rows = [row.model_copy(update={"seconds": None}) for row in rows]
        tables.append(rows + _ceilings(parts[0], part))
    return tables


def _rival_row(rival: Rival, position: int, part: Part, clusters: int) -> ScoreRow:
    found = rival.clusters[position]
    return score_row(rival.title, part, found, clusters, kind="baseline", seconds=rival.seconds)


def score_row(
    method: str,
    part: Part,
    cluster: Labels,
    clusters: int,
    *,
    kind: Literal["clustering", "baseline"] = "clustering",
    seconds: float | None = None,
    confidence: Float[np.ndarray, " n"] | None = None,
) -> ScoreRow:
    """The scores of one assignment of a part; with the confidence of every row, how right the confident ones are."""
    more: dict[str, Any] = {"seconds": seconds}
    if confidence is not None:
        more["confidence"] = float(confidence.mean())
        more["acc_of_most_confident"] = confident_accuracy(part.label, cluster, confidence)
    return ScoreRow(method=method, kind=kind, **cluster_scores(part.label, cluster, clusters), **more)


def _ceilings(train: Part, part: Part) -> list[ScoreRow]:
    if not (train.labeled and part.labeled):
        return []
    if len(unknown := np.setdiff1d(part.label, train.label)):
        say(f"{part.name}: no ceilings, as {len(unknown)} of its classes are not among those of the training rows")
        return []
    queries = () if part is train else (part.embedding, part.label)
    ceilings = {f"{KNN}-NN on labels": knn_accuracy, "linear probe": probe_accuracy}
    return [
        ScoreRow(method=name, kind="ceiling", acc=accuracy(train.embedding, train.label, *queries))
        for name, accuracy in ceilings.items()
    ]
