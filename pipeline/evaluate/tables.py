"""Metrics against labels, comparison rows and ceilings. Nothing else in this project reads a label."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import train_test_split

from temi.cache import EmbeddingCache
from temi.pipeline.config import recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.recipes import TITLES, run_rival
from temi.pipeline.features.neighbors import drop_self, nearest
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.label_free import size_scores
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.run_folder import RunFolder, read_json, write_json
from temi.pipeline.runs.train import assign, write_assignments

KNN = 20  # neighbors that vote in the kNN ceiling
CONFIDENT = (50, 80, 90, 100)  # percent

Labels = Int[np.ndarray, " n"]
Embedding = Float[np.ndarray, "n D"]

# Two caches whose fingerprints differ in one of these hold embeddings of different meaning.
EMBEDDING_FIELDS = ("backbone", "revision", "preprocessing", "pooling")


def contingency(label: Labels, cluster: Labels) -> Int64[np.ndarray, "classes clusters"]:
    """Images of each class in each cluster; classes and clusters without images have no row or column."""
    _, row = np.unique(label, return_inverse=True)
    _, column = np.unique(cluster, return_inverse=True)
    table = np.zeros((row.max() + 1, column.max() + 1), dtype=np.int64)
    np.add.at(table, (row, column), 1)
    return table


def hungarian_accuracy(label: Labels, cluster: Labels) -> float:
    """Share of images right under the best one-to-one match of clusters and classes (ACC)."""
    table = contingency(label, cluster)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(label))


def purity(label: Labels, cluster: Labels) -> float:
    """Share of images right when every cluster takes its majority class: the many-to-one accuracy."""
    return float(contingency(label, cluster).max(0).sum() / len(label))


def cluster_scores(label: Labels, cluster: Labels, clusters: int) -> dict[str, Any]:
    """ACC, NMI, AMI, ARI, purity, and the sizes of `size_scores`; rows with label -1 are left out of the first five.

    Purity is the many-to-one ACC: when clusters outnumber classes it is the figure to read.
    """
    known = label >= 0
    scores: dict[str, Any] = {}
    if known.any():
        truth, found = label[known], cluster[known]
        scores = {
            "acc": hungarian_accuracy(truth, found),
            "nmi": float(normalized_mutual_info_score(truth, found)),
            "ami": float(adjusted_mutual_info_score(truth, found)),
            "ari": float(adjusted_rand_score(truth, found)),
            "purity": purity(truth, found),
        }
    return scores | size_scores(torch.from_numpy(cluster.astype(np.int64)), clusters)


def confident_accuracy(label: Labels, cluster: Labels, confidence: Float[np.ndarray, " n"]) -> dict[str, float]:
    """ACC among the most confident 50, 80, 90 and 100 % of the labeled rows, under the match of all of them."""
    known = label >= 0
    if not known.any():
        return {}
    table = contingency(label[known], cluster[known])
    row, column = linear_sum_assignment(table, maximize=True)
    names = dict(zip(np.unique(cluster[known])[column], np.unique(label[known])[row], strict=True))
    right = np.array([names.get(c) == y for c, y in zip(cluster[known], label[known], strict=True)])
    right = right[np.argsort(-confidence[known], kind="stable")]
    return {str(share): float(right[: max(1, round(len(right) * share / 100))].mean()) for share in CONFIDENT}


def knn_accuracy(
    train: Embedding, label: Labels, queries: Embedding | None = None, truth: Labels | None = None
) -> float:
    """Accuracy of a vote among the 20 nearest labeled rows; leave-one-out on `train` where no queries are given.

    A ceiling, not a competitor: it reads the labels.
    """
    own = queries is None
    asked, wanted = (train, label) if queries is None or truth is None else (queries, truth)
    k = min(KNN, len(train) - 1)
    found, score = nearest(train, asked, k + own)
    if own:
        found, score = drop_self(np.arange(len(train)), found, score)
    votes = np.zeros((len(asked), label.max() + 1))
    np.add.at(votes, (np.arange(len(asked))[:, None], label[found]), np.maximum(score, 0))
    return float((votes.argmax(1) == wanted).mean())


def probe_accuracy(
    train: Embedding, label: Labels, queries: Embedding | None = None, truth: Labels | None = None
) -> float:
    """Accuracy of logistic regression on standardized embeddings, trained on labels: the linear ceiling.

    Without queries: trained on a random half of `train` (stratified where classes allow), scored on the other half.
    """
    if queries is None or truth is None:
        counts = np.bincount(label)
        halves = train_test_split(
            train, label, test_size=0.5, random_state=0, stratify=label if counts[counts > 0].min() >= 2 else None
        )
        train, queries, label, truth = halves
    mean, deviation = train.mean(0, dtype=np.float32), train.std(0, dtype=np.float32) + 1e-6
    model = LogisticRegression(C=0.01, max_iter=200, tol=1e-3)
    model.fit((train - mean) / deviation, label)
    return float((model.predict((queries - mean) / deviation) == truth).mean())


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
    folder: Path, other: EmbeddingCache | None = None, baselines: Sequence[str] = ("kmeans",)
) -> dict[str, Any]:
    """Score the trained model of a run on its training rows and on what is held out, beside baselines and the ceilings.

    Held out are the splits of the run's cache that were not trained on, or the cache `other`. Writes ``result.json``
    and assignments of every row that was scored into the run folder.

    Returns
    -------
    dict with ``parts``: name, number of images and rows of the table (method, kind, scores), in printed order.
    """
    run = RunFolder(folder)
    if not run.finished:
        raise UserError(f"{folder} is not a finished run; run (or resume) `temi train-heads CACHE --out {folder}`")
    model = ClusterModel.load(run.model)
    home = open_training_cache(run, other)
    parts = scored_parts(run, home, None if other is None or other.digest == home.digest else other, model)
    training = read_json(run.training)
    rivals = run_rivals(run, home, parts, baselines, model.clusters)
    result = {
        "run": str(folder),
        "training": training,
        "parts": [
            {"name": part.name, "images": len(part.label), "rows": rows}
            for part, rows in zip(parts, _tables(model, parts, rivals, training["seconds"]), strict=True)
        ],
    }
    write_json(folder / "result.json", result)
    if other is not None and other.digest != home.digest:
        held_out = folder / "held-out"
        held_out.mkdir(exist_ok=True)
        write_assignments(other, model, held_out)
    else:
        write_assignments(home, model, folder)
    return result


def open_training_cache(run: RunFolder, other: EmbeddingCache | None) -> EmbeddingCache:
    """The cache that `run` was trained on: where it was, or `other` if it holds the same embeddings."""
    there = read_json(run.environment)["cache"]
    if other is not None and other.digest == there["digest"]:
        return other
    cache = EmbeddingCache.open(Path(there["folder"]))
    if cache.digest != there["digest"]:
        raise UserError(
            f"{there['folder']} has changed since {run.folder} was trained; give the original cache, by --cache or as "
            "second argument of `temi evaluate`"
        )
    return cache


def scored_parts(run: RunFolder, home: EmbeddingCache, other: EmbeddingCache | None, model: ClusterModel) -> list[Part]:
    trained_split = recorded_config(run.config).train.split
    rows = training_rows(home, trained_split)
    parts = [_part("training rows", home, rows)]
    if other is not None:
        check_same_backbone(model, other)
        return [*parts, _part(f"held out: {other.folder.name}", other, np.flatnonzero(other.ok))]
    for name in home.splits:
        held_out = np.setdiff1d(training_rows(home, name), rows)
        if len(held_out):
            parts.append(_part(f"held out: {name}", home, held_out))
    return parts


def _part(name: str, cache: EmbeddingCache, rows: Int64[np.ndarray, " n"]) -> Part:
    if not len(rows):
        raise UserError(f"{cache.folder} has no readable image to score; see failures.csv there")
    return Part(name, cache.embedding()[rows], cache.labels[rows].astype(np.int64))


def check_same_backbone(model: ClusterModel, cache: EmbeddingCache) -> None:
    """Refuse a cache whose embeddings do not mean what the model was trained on."""
    there = asdict(cache.manifest.fingerprint)
    for field in EMBEDDING_FIELDS:
        if there[field] != model.fingerprint[field]:
            raise UserError(
                f"{cache.folder} was embedded with {field} {there[field]!r} and the run with "
                f"{model.fingerprint[field]!r}; embed these images with the run's settings"
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
    """Baselines fitted on the training rows of `run`, which are the first part."""
    split = recorded_config(run.config).train.split
    embeddings = [part.embedding for part in parts]
    found = [run_rival(name, home, split, embeddings, clusters) for name in names]
    return [Rival(TITLES[name], *clustered) for name, clustered in zip(names, found, strict=True)]


def _tables(
    model: ClusterModel, parts: list[Part], rivals: Sequence[Rival], seconds: float
) -> list[list[dict[str, Any]]]:
    """Rows of every part's table: the model, its rivals, and the two ceilings.

    Seconds are those of training or fitting, so they stand beside the training rows alone.
    """
    train = parts[0]
    tables = []
    for position, part in enumerate(parts):
        cluster, confidence = assign(model, part.embedding)
        own = cluster_scores(part.label, cluster, model.clusters) | {"confidence": float(confidence.mean())}
        own |= {"acc_of_most_confident": confident_accuracy(part.label, cluster, confidence), "seconds": seconds}
        single = model.head_clusters(torch.from_numpy(part.embedding))[model.selected].cpu().numpy()
        rows = [
            {"method": "TEMI", "kind": "clustering", **own},
            {"method": "best head", "kind": "clustering", **cluster_scores(part.label, single, model.clusters)},
        ]
        for rival in rivals:
            scores = cluster_scores(part.label, rival.clusters[position], model.clusters)
            rows.append({"method": rival.title, "kind": "clustering", **scores, "seconds": rival.seconds})
        if part is not train:
            rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        tables.append(rows + _ceilings(train, part))
    return tables


def _ceilings(train: Part, part: Part) -> list[dict[str, Any]]:
    if not (train.labeled and part.labeled):
        return []
    queries = () if part is train else (part.embedding, part.label)
    ceilings = {f"{KNN}-NN on labels": knn_accuracy, "linear probe": probe_accuracy}
    return [
        {"method": name, "kind": "ceiling", "acc": accuracy(train.embedding, train.label, *queries)}
        for name, accuracy in ceilings.items()
    ]
