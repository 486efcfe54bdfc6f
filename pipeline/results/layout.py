"""Layouts of a neighbor graph in the plane, on which rows that are like lie together."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32

NEGATIVES = 5  # rows repelled per end of an edge
EPOCHS = 100
SMALL = 3000  # rows up to which a layout gets twice the epochs

Layout = Float32[np.ndarray, "N 2"]


def layout(graph: sp.csr_array, leading: Float32[np.ndarray, "N P"]) -> Layout:
    """UMAP's layout of the graph (McInnes et al. 2018) with the similarity 1 / (1 + d^2), a = b = 1.

    `leading` principal components, turned at random into the plane, are where it begins.
    """
    from temi.pipeline.results.spread import spread  # compiled: a map that is kept does not wait for it

    draw = np.random.default_rng(0)
    y: Layout = leading @ draw.normal(size=(leading.shape[1], 2))
    y = (10 * y / max(np.abs(y).max(), 1e-12) + 1e-2 * draw.normal(size=y.shape)).astype(np.float32)
    epochs = EPOCHS * (2 if len(y) <= SMALL else 1)
    edges = sp.coo_array(sp.triu(graph, 1))
    share = edges.data / edges.data.max()
    kept = share >= 1 / epochs  # the others would never be used
    ends = edges.row[kept].astype(np.int64), edges.col[kept].astype(np.int64)
    spread(y, *ends, (1 / share[kept]).astype(np.float32), epochs, NEGATIVES)
    return y
