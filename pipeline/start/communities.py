"""Cutting the neighbor graph itself, without a layout: communities of high modularity, as many as are asked for.

Three dimensions have no room for hundreds of small clusters, and the graph needs none: among 1,000 classes of twenty
rows its communities are right ten points more often than parts of its layouts. Where clusters are few and large, the
layouts know more (benchmarks/RESULTS.md).
"""

import numpy as np
import scipy.sparse as sp
from sknetwork.clustering import Louvain

from temi.pipeline.start.cuts import Labeling, merge_parts

TRIES = 12  # resolutions tried on the way to the number of clusters
SURPLUS = 1.02  # communities per cluster that end the search: so few more are merged
COARSEST = 1e-2  # resolution: one community for every part of the graph
ROUNDS = 30  # of settling
TIE = 1e-9  # edge weight by which a row prefers the community that it is in


def communities(graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """Communities of the graph, `clusters` of them, of neither equal nor very different size.

    Fewer where the graph does not break into so many.
    """
    label, resolution = at_least(graph, clusters, seed)
    settled = settle(graph, label, resolution, seed)
    if settled.max() >= clusters - 1:  # settling may empty a community
        label = settled
    return merge_parts(label, graph, clusters)


def at_least(graph: sp.csr_array, clusters: int, seed: int) -> tuple[Labeling, float]:
    """Communities by Louvain (Blondel et al. 2008), as many as `clusters` or few more, and their resolution.

    The number of communities grows about as a power of the resolution, so the search interpolates logarithms, and
    halves the interval every third time, as steps of that curve can be steep.
    """
    matrix = sp.csr_matrix(graph)  # scikit-network takes no arrays
    low, high = np.array([np.log(COARSEST), 0.0]), np.full(2, np.log(graph.shape[0]))  # logs of resolution and number
    wanted = np.log(clusters * (1 + SURPLUS) / 2)
    nearest = (True, clusters)
    for attempt in range(TRIES):
        share = np.clip((wanted - low[1]) / (high[1] - low[1]), 0.1, 0.9) if attempt % 3 < 2 else 0.5
        resolution = float(np.exp(low[0] + share * (high[0] - low[0])))
        louvain = Louvain(resolution, random_state=seed, shuffle_nodes=True, return_probs=False, return_aggregate=False)
        label = louvain.fit_predict(matrix).astype(np.int64)
        found = int(label.max()) + 1
        distance = (found < clusters, abs(found - clusters))
        if distance < nearest:
            nearest, best = distance, (label, resolution)
        if clusters <= found <= SURPLUS * clusters:
            break
        bound = low if found < clusters else high
        bound[:] = np.log(resolution), np.log(found)
    return best


def settle(graph: sp.csr_array, label: Labeling, resolution: float, seed: int) -> Labeling:
    """Rows move to the community that they gain most in, half of those that would at a time, until none would.

    With degrees d, volume V_c of a community (its sum of degrees) and 2m that of the graph, row i gains in community c
    w(i, c) - resolution * d_i * (V_c - [i in c] d_i) / 2m. Louvain moves rows one by one only at first, and whole
    communities afterwards: this repairs what those leave at their borders.
    """
    rows, degree = np.arange(graph.shape[0]), graph.sum(1)
    random = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        member = sp.csr_array((np.ones(len(rows)), (rows, label)))
        links = sp.csr_array(graph @ member + TIE * member)  # a row alone in its community is linked to it, too
        row, column = np.repeat(rows, np.diff(links.indptr)), links.indices
        others = (degree @ member)[column] - np.where(column == label[row], degree[row], 0)
        gain = links.data - resolution * degree[row] * others / degree.sum()
        best = np.flatnonzero(gain == np.maximum.reduceat(gain, links.indptr[:-1])[row])
        wish = label.copy()
        wish[row[best]] = column[best]
        if (wish == label).all():
            break
        label = np.where(random.random(len(rows)) < 0.5, wish, label)
    settled: Labeling = np.unique(label, return_inverse=True)[1].astype(np.int64)
    return settled
