"""Where heads begin: at partitions of a pool, chosen without a label and without a threshold.

From a random start a few thousand steps of TEMI lose to k-means on small folders. So the rows are first cut into
clusters in several ways (pool.py), and the heads learn these cuts before the first step of the objective.

Chosen are the cuts that say most about where an edge of the neighbor graph ends (score.py): of many label-free scores,
the one by which chosen cuts were best on real sets (benchmarks/RESULTS.md). They are more than one, as the vote of some
near the top errs less than the first of them. Their vote teaches a metric, and the heads learn cuts made in that
(taught.py).

Rows that repeat others count once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from temi.cache.kept import Arrays, Recipe
from temi.pipeline.config import StartConfig
from temi.pipeline.features.copies import near_copies
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.registry import STARTS
from temi.pipeline.start.pool import make_pool, members, neighbor_counts, pool_bytes
from temi.pipeline.start.taught import ROUNDS, taught_bytes, taught_pool
from temi.pipeline.start.vote import match, vote

# Of more rows than this a random sample is cut; the heads that learn the cuts know the rest.
LARGEST = 100_000
LEARNED = 3  # cuts: fewer than three have no majority
COPIES: Kind = "whiten50"  # near-copies are looked for where pairs are, too: one search serves both

Rows = Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Start:
    """Partitions for one number of clusters.

    Attributes
    ----------
    rows : (M,) positions of the training rows that were cut: all, or a sample of LARGEST
    clusters : C
    names : kind, space and neighbors of each cut that heads learn
    information : edge information of each as it was found, in nats; of none where a person's corrections are the cut
    cuts : (L, M) cluster of each row in each cut, ids matched
    """

    rows: Int64[np.ndarray, " M"]
    clusters: int
    names: tuple[str, ...]
    information: tuple[float, ...]
    cuts: Int64[np.ndarray, "L M"]


FindStart = Callable[[Features, int, StartConfig], Start | None]
"""What `start.kind` names: partitions of the rows into so many clusters; None where heads begin at random."""


def pool_start(features: Features, clusters: int, config: StartConfig) -> Start:
    """Cut the rows in every way, and choose the cuts that heads learn; made once. Labels are not read."""
    made_from = " ".join(members(features, clusters))
    recipe: Recipe = {
        "members": made_from,
        "learned": LEARNED,
        "taught": ROUNDS,
        "clusters": clusters,
        "seed": config.seed,
    }
    kept = features.memo("start", recipe, partial(_find_start, features, clusters, config))
    names, information = kept["names"].tobytes().decode().split("\n"), kept["information"].tolist()
    return Start(kept["rows"], clusters, tuple(names), tuple(information), kept["cuts"].astype(np.int64))


def _find_start(features: Features, clusters: int, config: StartConfig) -> Arrays:
    distinct = distinct_sample(features, clusters)
    chosen = make_pool(distinct.features, clusters, config.seed).best(LEARNED)
    best = taught_pool(distinct.features, chosen, clusters, config.seed)
    aligned = vote(list(best.labels), clusters)[0]
    cuts = np.stack([match(label, aligned, clusters)[label][distinct.group] for label in best.labels])
    return {
        "rows": distinct.rows,
        "names": np.frombuffer("\n".join(best.names).encode(), np.uint8),
        "information": best.score,
        "cuts": cuts.astype(np.int32),
    }


@dataclass(frozen=True)
class Distinct:
    """Rows that are cut.

    Attributes
    ----------
    features : of D rows that are no near-copies of one another
    rows : (M,) positions of the rows that these stand for: all, or a sample of LARGEST
    first : (D,) which of the M each of them is
    group : (M,) which of the D each is like
    """

    features: Features
    rows: Int64[np.ndarray, " M"]
    first: Int64[np.ndarray, " D"]
    group: Int64[np.ndarray, " M"]


def distinct_sample(features: Features, clusters: int) -> Distinct:
    """Rows, at most LARGEST, that near-copies do not decide; all count where fewer than `clusters` differ."""
    rows = sample(len(features))
    cut = features if len(rows) == len(features) else features.sample(rows).loaded()
    index, similarity = cut.neighbors(neighbor_counts(len(cut), clusters)[-1], COPIES)
    first, group = near_copies(index, 1 - similarity.astype(np.float32))
    if len(first) < clusters:
        first, group = np.arange(len(cut)), np.arange(len(cut))
    return Distinct(cut.sample(first), rows, first, group)


def sample(count: int) -> Rows:
    """Positions, in order, of the rows to cut of `count`: all of them up to LARGEST."""
    if count <= LARGEST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, LARGEST, replace=False))


def start_bytes(counts: Sequence[int], rows: int, dim: int, device: str) -> int:
    """Memory of `pool_start` for these numbers of clusters."""
    loaded = LARGEST * dim * np.dtype(np.float16).itemsize if rows > LARGEST else 0
    cut = min(rows, LARGEST)
    # While near-copies are taken out of the sample it is there twice.
    return loaded + max(loaded, pool_bytes(counts, cut, dim, device), taught_bytes(cut, max(counts), device))


def register_start(name: str, find: FindStart) -> None:
    """Make `find` available as ``start.kind = NAME``."""
    STARTS.register(name, find)


def _random(features: Features, clusters: int, config: StartConfig) -> None:
    return None


register_start("pool", pool_start)
register_start("random", _random)
