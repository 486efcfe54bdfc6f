"""Where heads begin: at partitions of a pool, chosen without a label and without a threshold.

From a random start a few thousand steps of TEMI lose to k-means on small folders. So the rows are first cut into
clusters in several ways (pool.py), and the heads learn these cuts before the first step of the objective.

Cuts come in three kinds. Clusters of very different size that lie apart are found by density, overlapping ones by cuts
that keep sizes alike, and many small ones along the graph. Which of these the data have is told by stability: heads
learn the kind whose cuts agree most from space to space (von Luxburg, "Clustering stability", 2010).

Rows that repeat others count once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from temi.cache.kept import Arrays, Recipe
from temi.pipeline.config import StartConfig
from temi.pipeline.features.copies import near_copies
from temi.pipeline.features.features import Features
from temi.pipeline.registry import STARTS
from temi.pipeline.start.pool import KINDS, make_pool, neighbor_counts, pool_bytes, spaces_of
from temi.pipeline.start.vote import match, vote

# Of more rows than this a random sample is cut; the heads that learn the cuts know the rest.
LARGEST = 100_000

Rows = Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Start:
    """Partitions for one number of clusters.

    Attributes
    ----------
    rows : (M,) positions of the training rows that were cut: all, or a sample of LARGEST
    clusters : C
    agreement : of the cuts of each kind, mean normalized mutual information of two of them
    names : kind and space of each cut
    cuts : (L, M) cluster of each row in each cut, ids matched
    """

    rows: Int64[np.ndarray, " M"]
    clusters: int
    agreement: Mapping[str, float]
    names: tuple[str, ...]
    cuts: Int64[np.ndarray, "L M"]


FindStart = Callable[[Features, int, StartConfig], Start | None]
"""What `start.kind` names: partitions of the rows into so many clusters; None where heads begin at random."""


def pool_start(features: Features, clusters: int, config: StartConfig) -> Start:
    """Cut the rows in every way, and choose the cuts that heads learn; made once. Labels are not read."""
    made_from = {"kinds": " ".join(KINDS), "spaces": " ".join(spaces_of(features))}
    recipe: Recipe = {**made_from, "clusters": clusters, "seed": config.seed}
    kept = features.memo("start", recipe, partial(_find_start, features, clusters, config))
    agreement = dict(zip(KINDS, kept["agreement"].tolist(), strict=True))
    names = kept["names"].tobytes().decode().split("\n")
    return Start(kept["rows"], clusters, agreement, tuple(names), kept["cuts"].astype(np.int64))


def _find_start(features: Features, clusters: int, config: StartConfig) -> Arrays:
    distinct = distinct_sample(features, clusters)
    pool = make_pool(distinct.features, clusters, config.seed)
    agreement = {kind: pool.of(kind).agreement() for kind in KINDS}
    chosen = pool.of(max(agreement, key=lambda kind: agreement[kind]))
    best = chosen.labels[chosen.score.argmax()]
    aligned = vote([best, *chosen.labels], clusters)[0]
    cuts = np.stack([match(label, aligned, clusters)[label][distinct.group] for label in chosen.labels])
    return {
        "rows": distinct.rows,
        "agreement": np.array([agreement[kind] for kind in KINDS]),
        "names": np.frombuffer("\n".join(chosen.names).encode(), np.uint8),
        "cuts": cuts.astype(np.int32),
    }


@dataclass(frozen=True)
class Distinct:
    """Rows that are cut.

    Attributes
    ----------
    features : of D rows that are no near-copies of one another
    rows : (M,) positions of the rows that these stand for: all, or a sample of LARGEST
    group : (M,) which of the D each is like
    """

    features: Features
    rows: Int64[np.ndarray, " M"]
    group: Int64[np.ndarray, " M"]


def distinct_sample(features: Features, clusters: int) -> Distinct:
    """Rows, at most LARGEST, that near-copies do not decide; all count where fewer than `clusters` differ."""
    rows = sample(len(features))
    cut = features if len(rows) == len(features) else features.sample(rows).loaded()
    index, similarity = cut.neighbors(neighbor_counts(len(cut), clusters)[-1], "center")
    first, group = near_copies(index, 1 - similarity.astype(np.float32))
    if len(first) < clusters:
        first, group = np.arange(len(cut)), np.arange(len(cut))
    return Distinct(cut.sample(first), rows, group)


def sample(count: int) -> Rows:
    """Positions, in order, of the rows to cut of `count`: all of them up to LARGEST."""
    if count <= LARGEST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, LARGEST, replace=False))


def start_bytes(counts: Sequence[int], rows: int, dim: int, device: str) -> int:
    """Memory of `pool_start` for these numbers of clusters."""
    loaded = LARGEST * dim * np.dtype(np.float16).itemsize if rows > LARGEST else 0
    # While near-copies are taken out of the sample it is there twice.
    return loaded + max(loaded, pool_bytes(counts, min(rows, LARGEST), dim, device))


def register_start(name: str, find: FindStart) -> None:
    """Make `find` available as ``start.kind = NAME``."""
    STARTS.register(name, find)


def _random(features: Features, clusters: int, config: StartConfig) -> None:
    return None


register_start("pool", pool_start)
register_start("random", _random)
