"""Layouts of a graph in three dimensions, and their cuts into clusters of similar size."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64

NEGATIVES = 5  # rows repelled per end of an edge
EPOCHS = 100
SMALL = 3000  # rows up to which a layout gets twice the epochs
WARD_STARTS = 3  # k-means restarts, each seeded by Ward clusters of a row sample
WARD_ROWS = 20  # rows of that sample per cluster
FEWEST_WARD_ROWS, MOST_WARD_ROWS = 1_000, 5_000  # the time of Ward's tree grows with their square
WARD_COPIES = 2  # of the distances of its rows
ROUNDS = 50  # of k-means

Labeling = Int64[np.ndarray, " N"]
Layout = Float32[np.ndarray, "N E"]


def layout(graph: sp.csr_array, leading: Float32[np.ndarray, "N P"], seed: int, dimensions: int = 3) -> Layout:
    """UMAP's layout of the graph (McInnes et al. 2018) with the similarity 1 / (1 + d^2), a = b = 1.

    `leading` principal components, turned at random into so many dimensions, are where it begins.
    """
    from temi.pipeline.start.kernels import spread  # compiled: what finds its layouts kept does not wait for it

    draw = np.random.default_rng(seed)
    y: Layout = leading @ draw.normal(size=(leading.shape[1], dimensions))
    y = (10 * y / max(np.abs(y).max(), 1e-12) + 1e-2 * draw.normal(size=y.shape)).astype(np.float32)
    epochs = EPOCHS * (2 if len(y) <= SMALL else 1)
    edges = sp.coo_array(sp.triu(graph, 1))
    share = edges.data / edges.data.max()
    kept = share >= 1 / epochs  # the others would never be used
    ends = edges.row[kept].astype(np.int64), edges.col[kept].astype(np.int64)
    spread(y, *ends, (1 / share[kept]).astype(np.float32), epochs, NEGATIVES, seed)
    return y


def even_cut(y: Layout, clusters: int, seed: int) -> Labeling:
    """k-means from Ward's clusters of a sample of rows, the best of WARD_STARTS."""
    from temi.pipeline.start.kernels import lloyd

    draw = np.random.default_rng(seed)
    sample = ward_rows(clusters)
    starts = 1 if len(y) <= sample else WARD_STARTS  # all rows: the starts would be one
    runs = [lloyd(y, _ward_centers(y[draw.permutation(len(y))[:sample]], clusters), ROUNDS) for _ in range(starts)]
    best: Labeling = min(runs, key=lambda run: run[1])[0]
    return best


def ward_rows(clusters: int) -> int:
    """Rows of a layout that Ward's clusters are made of, where it has so many."""
    return max(min(WARD_ROWS * clusters, MOST_WARD_ROWS), FEWEST_WARD_ROWS, clusters)


def cut_bytes(rows: int, clusters: int) -> int:
    """Memory of cutting a layout into parts of similar size: the distances of all pairs of Ward's rows, float64."""
    return WARD_COPIES * min(rows, ward_rows(clusters)) ** 2 // 2 * 8


def _ward_centers(y: Layout, clusters: int) -> Float32[np.ndarray, "C 3"]:
    """Means of the parts that Ward's tree has before its last `clusters` - 1 merges."""
    from scipy.cluster.hierarchy import ward  # scikit-learn's is this one, and takes two seconds to import

    merged = ward(y)[: len(y) - clusters, :2].astype(np.int64)  # merge m makes node n + m of two nodes
    nodes = len(y) + len(merged)
    edges = merged.T.ravel(), np.tile(np.arange(len(y), nodes), 2)
    linked = sp.coo_array((np.ones(len(edges[0])), edges), shape=(nodes, nodes))
    part = sp.csgraph.connected_components(linked, directed=False)[1][: len(y)]
    centers: Float32[np.ndarray, "C 3"] = np.stack([y[part == own].mean(0) for own in range(clusters)])
    return centers.astype(np.float32)
