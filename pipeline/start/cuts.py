"""Cutting a layout into clusters: into parts of similar size, or into parts that may differ freely."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Int64
from scipy.spatial import KDTree
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.metrics import silhouette_score

WARD_STARTS = 3  # of k-means, each from the clusters of a sample of rows: so many
WARD_ROWS = 20  # per cluster, but at least
FEWEST_WARD_ROWS, MOST_WARD_ROWS = 1_000, 5_000  # and at most: the tree's time grows with their square
SMALLEST_SHARE, SMALLEST, LARGEST_SMALLEST = 8, 5, 50  # a dense part has at least an eighth of the mean cluster's rows
DENSITY_ROWS = 20_000  # rows whose density is looked at: HDBSCAN takes time that grows with their square
MICRO = 4  # microclusters per cluster asked for,
MICRO_ROWS = 8  # and rows per microcluster at least
LINKAGE = 0.75  # 1 is average linkage; lower lets sizes differ more
SILHOUETTE_ROWS = 2_000  # rows of a layout whose silhouette is measured

Labeling = Int64[np.ndarray, " N"]
Layout = Float32[np.ndarray, "N 3"]


def even_sizes(y: Layout, graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """k-means from Ward's clusters of a sample of rows, the best of WARD_STARTS; `graph` has no effect.

    At 50 clusters and more that ends at an inertia as low as the best of 100 k-means++ starts, 50 times sooner.
    """
    draw, count = np.random.default_rng(seed), ward_rows(clusters)
    runs = [_from_ward(y, clusters, draw.permutation(len(y))[:count]) for _ in range(WARD_STARTS)]
    best: Labeling = min(runs, key=lambda run: run.inertia_).labels_.astype(np.int64)
    return best


def ward_rows(clusters: int) -> int:
    """Rows of a layout that Ward's clusters are made of, where it has so many."""
    return max(min(WARD_ROWS * clusters, MOST_WARD_ROWS), FEWEST_WARD_ROWS, clusters)


def _from_ward(y: Layout, clusters: int, rows: Labeling) -> KMeans:
    parts = AgglomerativeClustering(clusters).fit_predict(y[rows])
    centers = np.stack([y[rows[parts == part]].mean(0) for part in range(clusters)])
    return KMeans(clusters, init=centers, n_init=1, max_iter=50).fit(y)


def k_means(y: Layout, clusters: int, seed: int, starts: int = 1) -> Labeling:
    """k-means++ labels, for parts that are small, few, or joined afterwards."""
    labels: Labeling = KMeans(clusters, n_init=starts, max_iter=50, random_state=seed).fit_predict(y).astype(np.int64)
    return labels


def free_sizes(y: Layout, graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """Microclusters of the layout, merged along the neighbor graph until `clusters` are left, of any size."""
    count = max(clusters, min(MICRO * clusters, len(y) // MICRO_ROWS))
    return merge_parts(k_means(y, count, seed), graph, clusters)


def density_sizes(y: Layout, graph: sp.csr_array, clusters: int, seed: int) -> Labeling:
    """HDBSCAN's dense parts, of any size, merged along the neighbor graph or split in two until they are `clusters`.

    Rows between the parts (noise) join the nearest row of a part. The part split next has the largest inertia.
    """
    parts = _dense_parts(y, clusters, seed)
    found = int(parts.max()) + 1
    if found > clusters:
        return merge_parts(parts, graph, clusters)
    inertia = [_inertia(y[parts == part]) for part in range(found)]
    while len(inertia) < clusters and max(inertia) > 0:
        rows = np.flatnonzero(parts == np.argmax(inertia))
        second = k_means(y[rows], 2, seed, starts=3) == 1
        inertia[parts[rows[0]]] = _inertia(y[rows[~second]])
        inertia.append(_inertia(y[rows[second]]))
        parts[rows[second]] = len(inertia) - 1
    return parts


def _dense_parts(y: Layout, clusters: int, seed: int) -> Labeling:
    """HDBSCAN's clusters (Campello et al. 2013) of at most DENSITY_ROWS rows; every other row joins the nearest."""
    looked_at = np.sort(np.random.default_rng(seed).permutation(len(y))[:DENSITY_ROWS])
    smallest = min(max(len(looked_at) // (SMALLEST_SHARE * clusters), SMALLEST), LARGEST_SMALLEST)
    found = HDBSCAN(min_cluster_size=min(smallest, len(looked_at)), copy=True).fit_predict(y[looked_at])
    if found.max() < 0:
        return np.zeros(len(y), np.int64)
    inside = found >= 0
    nearest = KDTree(y[looked_at[inside]]).query(y)[1]
    labels: Labeling = found[inside][nearest].astype(np.int64)
    return labels


def _inertia(y: Float32[np.ndarray, "n 3"]) -> float:
    return float(((y - y.mean(0)) ** 2).sum())


def merge_parts(part: Labeling, graph: sp.csr_array, clusters: int) -> Labeling:
    """Parts of the rows, merged along the graph."""
    member = sp.csr_array((np.ones(len(part)), (np.arange(len(part)), part)))
    between = (member.T @ graph @ member).toarray()
    labels: Labeling = merge(between, np.bincount(part), clusters)[part]
    return labels


def merge(between: Float[np.ndarray, "M M"], size: Int64[np.ndarray, " M"], clusters: int) -> Int64[np.ndarray, " M"]:
    """Agglomerate M groups: always the pair of the largest w_ab / (n_a n_b)^LINKAGE, until `clusters` are left.

    Parameters
    ----------
    between : summed edge weight between groups
    size : rows of each group
    """
    weight, mass = between.copy(), size.astype(np.float64)
    np.fill_diagonal(weight, 0)
    parent, alive = np.arange(len(mass)), mass > 0
    score = weight / np.maximum(np.outer(mass, mass), 1) ** LINKAGE
    np.fill_diagonal(score, -1)
    score[~alive], score[:, ~alive] = -1, -1
    for _ in range(int(alive.sum()) - clusters):
        a, b = divmod(int(score.argmax()), len(mass))
        weight[a] += weight[b]
        weight[:, a] += weight[:, b]
        mass[a] += mass[b]
        alive[b] = False
        parent[parent == b] = a
        fresh = np.where(alive, weight[a] / np.maximum(mass[a] * mass, 1) ** LINKAGE, -1)
        fresh[a] = -1
        score[a], score[:, a], score[b], score[:, b] = fresh, fresh, -1, -1
    merged: Int64[np.ndarray, " M"] = np.unique(parent, return_inverse=True)[1].astype(np.int64)
    return merged


def silhouette(y: Layout, label: Labeling) -> float:
    """Mean silhouette (Rousseeuw 1987) of at most SILHOUETTE_ROWS rows in the layout; -1 for a single cluster."""
    step = -(-len(y) // SILHOUETTE_ROWS)
    y, label = y[::step], label[::step]
    if not 1 < len(np.unique(label)) < len(label):
        return -1.0
    return float(silhouette_score(y, label))


def evenness(label: Labeling, clusters: int) -> float:
    """exp(entropy of the sizes) / C: 1 for equal sizes."""
    share = np.bincount(label, minlength=clusters) / len(label)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()) / clusters)
