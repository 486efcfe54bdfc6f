"""Communities of a graph, as many as are asked for: Louvain at the resolution that gives them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, repeat

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int64

from temi.pipeline.start.graph import edge_counts
from temi.pipeline.threads import in_threads, threads_for

TRIES = 12  # resolutions tried on the way to the number of clusters
SURPLUS = 1.02  # communities per cluster at which the search ends; the surplus is merged
COARSEST = 1e-2  # resolution: one community for every part of the graph
ROUNDS = 6  # of Louvain, each from where the last ended
LINKAGE = 0.75  # 1 is average linkage; lower lets sizes differ more
APART = 1_000  # between the random numbers of a seed's cuts and of the next: runs of two seeds share none
CUTTING = 100  # bytes per neighbor while a graph is cut (measured)

Labeling = Int64[np.ndarray, " N"]


def communities(graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """Communities of high modularity, `clusters` of them; fewer where the graph does not break into so many."""
    found = search_resolution(partial(find_communities, graph, seed=seed), graph.shape[0], clusters)
    return merge_parts(found, graph, clusters, evenly=True)


def cut_graphs(graphs: Sequence[sp.csr_array], clusters: int, seed: int) -> Iterator[Labeling]:
    """Communities of every graph, in order; of equal graphs they differ by chance."""
    return in_threads(communities, graphs, repeat(clusters), count(APART * seed))


def cutting_bytes(graphs: int, rows: int, neighbors: int) -> int:
    """Memory of `cut_graphs`, beside so many graphs."""
    return threads_for(graphs) * CUTTING * neighbors * rows


def search_resolution(cut: Callable[[float], Labeling], rows: int, clusters: int) -> Labeling:
    """What `cut` makes at the resolution that gives `clusters` parts or a few more; else the nearest number found.

    The number of parts grows about as a power of the resolution, so the search interpolates logarithms, and halves the
    interval every third time, as steps of that curve can be steep.
    """
    low, high = [np.log(COARSEST), 0.0], [np.log(rows)] * 2  # logs of resolution and number
    wanted, nearest = np.log(clusters * (1 + SURPLUS) / 2), (True, rows)
    best: Labeling = np.zeros(rows, np.int64)
    for attempt in range(TRIES):
        share = np.clip((wanted - low[1]) / max(high[1] - low[1], 1e-9), 0.1, 0.9) if attempt % 3 < 2 else 0.5
        resolution = float(np.exp(low[0] + share * (high[0] - low[0])))
        label = cut(resolution)
        found = int(label.max()) + 1
        if (found < clusters, abs(found - clusters)) < nearest:
            nearest, best = (found < clusters, abs(found - clusters)), label
        if clusters <= found <= SURPLUS * clusters:
            break
        bound = low if found < clusters else high
        bound[:] = np.log(resolution), np.log(found)
    return best


def find_communities(graph: sp.csr_array, resolution: float, *, seed: int) -> Labeling:
    """Communities of high modularity at a resolution, numbered from 0."""
    from temi.pipeline.start.kernels import louvain  # compiled: what finds its cuts kept does not wait for it

    arrays = graph.indptr.astype(np.int64), graph.indices.astype(np.int64), graph.data.astype(np.float64)
    label: Labeling = louvain(*arrays, resolution, ROUNDS, seed % 2**32)
    return label


def merge_parts(part: Labeling, graph: sp.csr_array, clusters: int, *, evenly: bool = False) -> Labeling:
    """Parts of the rows, merged along the graph until `clusters` are left; see `merge`."""
    if part.max() < clusters:
        return part
    label: Labeling = merge(edge_counts(graph, part), np.bincount(part), clusters, evenly=evenly)[part]
    return label


def merge(
    between: Float[np.ndarray, "M M"], size: Int64[np.ndarray, " M"], clusters: int, *, evenly: bool
) -> Int64[np.ndarray, " M"]:
    """Agglomerate M groups: always the pair of the largest w_ab / (n_a n_b)^LINKAGE, until `clusters` are left.

    n is a group's share of all rows. Groups that no edge joins merge last: `evenly` the smallest first, as the first in
    order would swallow the others.
    """
    weight, mass = between.copy(), np.maximum(size, 1) / max(size.sum(), 1)

    def closeness(w: Float[np.ndarray, "..."], product: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.where(w > 0, w / product**LINKAGE, -product if evenly else 0)

    np.fill_diagonal(weight, 0)
    parent, alive = np.arange(len(mass)), np.ones(len(mass), bool)
    score = closeness(weight, np.outer(mass, mass))
    np.fill_diagonal(score, -np.inf)
    for _ in range(len(mass) - clusters):
        a, b = divmod(int(score.argmax()), len(mass))
        weight[a] += weight[b]
        weight[:, a] += weight[:, b]
        mass[a] += mass[b]
        alive[b] = False
        parent[parent == b] = a
        fresh = np.where(alive, closeness(weight[a], mass[a] * mass), -np.inf)
        fresh[a] = -np.inf
        score[a], score[:, a], score[b], score[:, b] = fresh, fresh, -np.inf, -np.inf
    merged: Int64[np.ndarray, " M"] = np.unique(parent, return_inverse=True)[1].astype(np.int64)
    return merged
