"""Dense parts of a layout, of any size, brought to the number of clusters that is asked for."""

import numpy as np
import scipy.sparse as sp

from temi.pipeline.start.communities import Labeling, merge_parts
from temi.pipeline.start.layout import Layout

SMALLEST_SHARE = 8  # a dense part has at least an eighth of the mean cluster's rows
SMALLEST, LARGEST_SMALLEST = 5, 50  # bounds of that size
DENSITY_ROWS = 20_000  # rows whose density is looked at: HDBSCAN's time grows with their square


def dense_cut(y: Layout, graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """HDBSCAN's dense parts, merged along the neighbor graph or split in two until they are `clusters`.

    Rows between the parts (noise) join the nearest row of a part. The part split next has the largest inertia.
    """
    from sklearn.cluster import KMeans  # here: what finds its cuts kept does not wait for it

    parts = _dense_parts(y, clusters, seed)
    found = int(parts.max()) + 1
    if found > clusters:
        return merge_parts(parts, graph, clusters)
    inertia = [_inertia(y[parts == part]) for part in range(found)]
    while len(inertia) < clusters and max(inertia) > 0:
        rows = np.flatnonzero(parts == np.argmax(inertia))
        second = KMeans(2, n_init=3, max_iter=50, random_state=seed).fit_predict(y[rows]) == 1
        inertia[parts[rows[0]]] = _inertia(y[rows[~second]])
        inertia.append(_inertia(y[rows[second]]))
        parts[rows[second]] = len(inertia) - 1
    return parts


def _dense_parts(y: Layout, clusters: int, seed: int) -> Labeling:
    """HDBSCAN's clusters (Campello et al. 2013) of at most DENSITY_ROWS rows; every other row joins the nearest."""
    from scipy.spatial import KDTree
    from sklearn.cluster import HDBSCAN

    looked_at = np.sort(np.random.default_rng(seed).permutation(len(y))[:DENSITY_ROWS])
    smallest = min(max(len(looked_at) // (SMALLEST_SHARE * clusters), SMALLEST), LARGEST_SMALLEST)
    found = HDBSCAN(min_cluster_size=min(smallest, len(looked_at)), copy=True).fit_predict(y[looked_at])
    if found.max() < 0:
        return np.zeros(len(y), np.int64)
    inside = found >= 0
    nearest = KDTree(y[looked_at[inside]]).query(y)[1]
    labels: Labeling = found[inside][nearest].astype(np.int64)
    return labels


def _inertia(y: Layout) -> float:
    return float(((y - y.mean(0)) ** 2).sum())
