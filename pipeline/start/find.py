"""Where heads begin: at partitions of a pool, the best by a score that needs no label, and at their vote.

From a random start a few thousand steps of TEMI lose to k-means on small folders. So the rows are first cut into
clusters in several ways (pool.py), and the heads learn these cuts before the first step of the objective. Rows that
repeat others count once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from temi.pipeline.config import StartConfig
from temi.pipeline.features.copies import near_copies
from temi.pipeline.features.features import Features
from temi.pipeline.registry import STARTS
from temi.pipeline.start.pool import make_pool, neighbor_counts
from temi.pipeline.start.vote import match, vote

VOTERS = 12  # partitions of the highest score that vote
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
    names : kind and space of each cut, the best first
    score : (L,) edge information of each, in nats
    cuts : (L, M) cluster of each row in each cut, ids matched to those of `voted`
    voted : (M,) the cluster that most of the cuts put each row into
    """

    rows: Int64[np.ndarray, " M"]
    clusters: int
    names: tuple[str, ...]
    score: Float[np.ndarray, " L"]
    cuts: Int64[np.ndarray, "L M"]
    voted: Int64[np.ndarray, " M"]

    def summary(self) -> dict[str, Any]:
        """The cuts and their scores, for the run folder."""
        return {"cuts": [{"name": name, "score": float(s)} for name, s in zip(self.names, self.score, strict=True)]}


FindStart = Callable[[Features, int, StartConfig], Start | None]
"""What `start.kind` names: partitions of the rows into so many clusters; None where heads begin at random."""


def pool_start(features: Features, clusters: int, config: StartConfig) -> Start:
    """Cut the rows and let the best cuts vote. Labels are not read."""
    rows = sample(len(features))
    cut = features if len(rows) == len(features) else features.sample(rows)
    index, similarity = cut.neighbors(neighbor_counts(len(cut), clusters)[-1], "center")
    first, group = near_copies(index, 1 - similarity.astype(np.float32))
    if len(first) < clusters:  # so few differ: every row counts
        first, group = np.arange(len(cut)), np.arange(len(cut))
    pool = make_pool(cut if len(first) == len(cut) else cut.sample(first), clusters, config.seed)
    best = pool.labels[:VOTERS]
    voted, _ = vote(list(best), clusters)
    cuts = np.stack([match(label, voted, clusters)[label][group] for label in best])
    return Start(rows, clusters, pool.names[:VOTERS], pool.score[:VOTERS], cuts, voted[group])


def sample(count: int) -> Rows:
    """Positions, in order, of the rows to cut of `count`: all of them up to LARGEST."""
    if count <= LARGEST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, LARGEST, replace=False))


def register_start(name: str, find: FindStart) -> None:
    """Make `find` available as ``start.kind = NAME``."""
    STARTS.register(name, find)


def _random(features: Features, clusters: int, config: StartConfig) -> None:
    return None


register_start("pool", pool_start)
register_start("random", _random)
