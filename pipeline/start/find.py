"""Where heads begin: at cuts of the rows into clusters, made without a label and without a threshold.

From a random start a few thousand steps of TEMI lose to k-means on small folders. So the graphs of the rows' neighbors
are first cut into communities; these cuts teach a metric, and cuts are made in that (taught.py). Communities much
smaller than clusters teach another, and are merged there. Heads learn the consensus of these three ways to cut
(consensus.py), each weighed by how well its clusters can be predicted (reliance.py), before the first step of the
objective.

Rows that repeat others count once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from temi.cache.kept import Arrays, Recipe
from temi.pipeline.config import StartConfig
from temi.pipeline.errors import UserError
from temi.pipeline.features.copies import cosine_distances, near_copies
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import search_bytes
from temi.pipeline.features.unit_rows import UnitRows
from temi.pipeline.progress import Progress, quiet
from temi.pipeline.registry import STARTS
from temi.pipeline.start.communities import Labeling, cut_graphs, cutting_bytes
from temi.pipeline.start.consensus import consensus, consensus_bytes
from temi.pipeline.start.reliance import reliance
from temi.pipeline.start.spaces import EDGE, GRAPH_NEIGHBORS, neighbor_counts, space_graphs, spaces_of
from temi.pipeline.start.taught import (
    ROUNDS,
    SMALL,
    Metrics,
    finely_taught_cuts,
    small_communities,
    taught_bytes,
    taught_cuts,
)
from temi.pipeline.start.vote import agreement, match, vote

# Of more rows than this a random sample is cut; the heads that learn the cuts know the rest.
LARGEST = 100_000
REPEATS = 3  # cuts of every graph: they differ by chance, and their vote errs less
TURNS = 6  # of it all, where rows are few and a turn takes half a second: the vote of their consensuses errs less again
FEW = 5_000
APART = 10_000  # between the seeds of turns
COPY_SPACE: Kind = "whiten50"  # near-copies are looked for where pairs are, too: one search serves both


@dataclass(frozen=True)
class Start:
    """Partitions for one number of clusters.

    Attributes
    ----------
    rows : (M,) positions of the training rows that were cut: all, or a sample of LARGEST
    clusters : C
    names : what each cut is, such as "consensus: 60 % communities joined 15, 12, 10; ..."; see `_name`
    cuts : (L, M) cluster of each row in each cut, ids matched
    agreement : how far communities that differ by chance and by their graph agree, which tells how right clusters are
        (runs/calibration.py); None where that is not known
    """

    rows: Int64[np.ndarray, " M"]
    clusters: int
    names: tuple[str, ...]
    cuts: Int64[np.ndarray, "L M"]
    agreement: float | None = None


FindStart = Callable[[Features, int, StartConfig], Start | None]
"""What `start.kind` names: partitions of the rows into so many clusters; None where heads begin at random."""


def checked_start(found: object, kind: str, rows: int, clusters: int) -> Start:
    """What the start `kind` found for `rows` rows, ids as int64; UserError where heads could not learn it."""
    if not isinstance(found, Start):
        raise UserError(
            f"the start {kind!r} returned {type(found).__name__}; return a Start, or None where heads begin at random"
        )
    known, cuts = np.asarray(found.rows), np.asarray(found.cuts)
    if known.ndim != 1 or cuts.shape != (len(found.names), len(known)) or not cuts.size:
        raise UserError(
            f"the start {kind!r} returned {len(found.names)} names, rows of shape {known.shape} and cuts of shape "
            f"{cuts.shape}; return L names, rows (M,) and cuts (L, M), L and M at least 1"
        )
    for name, ids, end in (("rows", known, rows), ("cuts", cuts, clusters)):
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= end:
            raise UserError(
                f"the start {kind!r} returned {name} of {ids.dtype} from {ids.min()} to {ids.max()}; "
                f"return integers from 0 to {end - 1}"
            )
    return replace(found, rows=known.astype(np.int64, copy=False), cuts=cuts.astype(np.int64, copy=False))


def pool_start(features: Features, clusters: int, config: StartConfig) -> Start:
    """Cuts of these rows; made once. Labels are not read."""
    space = spaces_of(features)[0]
    recipe: Recipe = {
        "space": space,
        "graphs": " ".join(map(str, GRAPH_NEIGHBORS)),
        "repeats": REPEATS,
        "taught": ROUNDS,
        "small": " ".join(map(str, SMALL)),
        "weighed": "by reliability",
        "merged": "average linkage",
        "consensus": "average linkage",
        "turns": TURNS,
        "clusters": clusters,
        "seed": config.seed,
    }
    kept = features.memo("start", recipe, partial(_find_start, features, clusters, config))
    name = _name(space, kept["neighbors"].tolist(), kept["small"].tolist(), kept["reliance"].tolist())
    cuts = kept["cuts"].astype(np.int64)
    return Start(kept["rows"], clusters, (name,) * len(cuts), cuts, float(kept["agreement"][0]))


def _find_start(features: Features, clusters: int, config: StartConfig) -> Arrays:
    distinct = distinct_sample(features, clusters)
    own, space = distinct.features, spaces_of(features)[0]
    counts = neighbor_counts(len(own), clusters)
    graphs, metrics = space_graphs(own, space, counts), Metrics(own.scaled(space).numpy(force=True))
    first, small, turns = [], {}, []
    for seed in _one_by_one([config.seed + APART * turn for turn in range(TURNS if len(own) <= FEW else 1)]):
        first.append(first_cuts(graphs, clusters, seed))
        small = small_communities(graphs[0], clusters, seed)
        plain = taught_cuts(metrics, first[-1], clusters, counts, seed)
        turns.append([plain, *finely_taught_cuts(metrics, small, clusters, counts, seed)])
    ways = list(zip(*turns, strict=False))  # where small communities teach in some turns only, these do not count
    votes = [vote([vote(cuts, clusters)[0] for cuts in way], clusters)[0] for way in ways]
    weight = reliance(metrics.rows, votes)
    found = _consensuses(list(zip(*ways, strict=True)), weight, clusters)
    voted = vote(found, clusters)[0]
    return {
        "rows": distinct.rows,
        "neighbors": np.array(counts),
        "small": np.array(list(small), dtype=np.int64),
        "reliance": weight,
        "cuts": np.stack([match(cut, voted, clusters)[cut][distinct.group] for cut in found]).astype(np.int32),
        "agreement": np.array([np.mean([agreement(cuts, clusters) for cuts in first])]),
    }


def _one_by_one(seeds: list[int]) -> Iterator[int]:
    """The seed of each turn; of several, one line says how many are done, and none what is done in each."""
    if len(seeds) == 1:
        yield from seeds
        return
    with Progress("cuts", len(seeds), "turn") as progress:
        for seed in seeds:
            with quiet():
                yield seed
            progress.advance()


def _consensuses(
    turns: list[tuple[list[Labeling], ...]], weight: Float64[np.ndarray, " W"], clusters: int
) -> list[Labeling]:
    """What heads begin at: the consensus of each turn.

    Of a single turn there are as many as a way has cuts, each without one cut of every way: heads that began at the
    same would hardly differ.
    """
    if len(turns) > 1:
        return [_weighed(ways, weight, clusters) for ways in turns]
    [ways] = turns
    left_out = range(max(len(way) for way in ways))
    return [_weighed([[*way[:cut], *way[cut + 1 :]] or way for way in ways], weight, clusters) for cut in left_out]


def _weighed(ways: Sequence[list[Labeling]], weight: Float64[np.ndarray, " W"], clusters: int) -> Labeling:
    """The consensus of the cuts of several ways; those of one way share its weight."""
    count = [len(way) for way in ways]
    return consensus([cut for way in ways for cut in way], np.repeat(weight / count, count), clusters)


def _name(space: Kind, neighbors: list[int], small: list[int], weight: list[float]) -> str:
    """What heads learn: what each way to cut is of, and how much it counts."""
    of, sizes = ", ".join(map(str, neighbors)), ", ".join(map(str, small))
    ways = (
        f"communities {space} {of}",
        f"communities {space} {of} taught by small ones",
        f"communities of {sizes} {space} merged",
    )
    return "consensus: " + "; ".join(f"{share:.0%} {way}" for way, share in zip(ways, weight, strict=False))


def first_cuts(graphs: list[sp.csr_array], clusters: int, seed: int) -> list[Labeling]:
    """Communities of these graphs, REPEATS of each."""
    cuts = []
    with Progress("communities", REPEATS * len(graphs), "cut") as progress:
        for cut in cut_graphs(REPEATS * graphs, clusters, seed):
            cuts.append(cut)
            progress.advance()
    return cuts


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
    index, similarity = cut.neighbors(max(neighbor_counts(len(cut), clusters)), COPY_SPACE)
    distance = cosine_distances(UnitRows(cut.embedding, cut.scaling(COPY_SPACE)), index, similarity)
    first, group = near_copies(index, distance)
    if len(first) < clusters:
        first, group = np.arange(len(cut)), np.arange(len(cut))
    return Distinct(cut.sample(first), rows, group)


def sample(count: int) -> Int64[np.ndarray, " M"]:
    """Positions, in order, of the rows to cut of `count`: all of them up to LARGEST."""
    if count <= LARGEST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, LARGEST, replace=False))


def start_bytes(counts: Sequence[int], rows: int, dim: int, device: str) -> int:
    """Memory of `pool_start` for these numbers of clusters."""
    loaded = LARGEST * dim * np.dtype(np.float16).itemsize if rows > LARGEST else 0
    cut = min(rows, LARGEST)
    graphs = sum(GRAPH_NEIGHBORS) * cut * EDGE + cutting_bytes(
        REPEATS * len(GRAPH_NEIGHBORS), cut, max(GRAPH_NEIGHBORS)
    )
    finding = max(graphs, search_bytes(cut, dim, max(GRAPH_NEIGHBORS), device))
    # While near-copies are taken out of the sample it is there twice.
    agreeing = consensus_bytes(cut, max(counts))
    return loaded + max(loaded, finding, taught_bytes(cut, max(counts), device), agreeing)


def register_start(name: str, find: FindStart) -> None:
    """Make `find` available as ``start.kind = NAME``."""
    STARTS.register(name, find)


def _random(features: Features, clusters: int, config: StartConfig) -> None:
    return None


register_start("pool", pool_start)
register_start("random", _random)
