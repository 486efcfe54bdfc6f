"""The weighted graph of neighbor lists, and how much of it lies between clusters."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int, Int64

from temi.pipeline.threads import in_threads

Index = Int[np.ndarray, "N K"]
Distance = Float[np.ndarray, "N K"]


def graphs_of(index: Index, similarity: Float[np.ndarray, "N K"], counts: Sequence[int]) -> list[sp.csr_array]:
    """Fuzzy graphs of so many of the neighbors each; equal numbers give one graph."""
    distance, different = 1 - similarity.astype(np.float32), sorted(set(counts))
    made = in_threads(lambda k: fuzzy_graph(index[:, :k], distance[:, :k]), different)
    graph = dict(zip(different, made, strict=True))
    return [graph[k] for k in counts]


def fuzzy_graph(index: Index, distance: Distance) -> sp.csr_array:
    """UMAP's fuzzy union of the neighbor lists (McInnes et al. 2018, algorithms 2 and 3), symmetric, entries in (0, 1].

    w_ij = exp(-(d_ij - rho_i) / sigma_i) with rho_i the nearest distance and sigma_i such that row i sums to
    log2(K + 1), but at least 1e-3 of the mean distance; then w + w^T - w w^T.
    """
    from temi.pipeline.start.kernels import scales  # compiled: what finds its graphs kept does not wait for it

    rows, k = index.shape
    excess = np.maximum(distance - distance[:, :1], 0).astype(np.float32)
    sigma = scales(excess, np.log2(k + 1))[:, None]
    floor = 1e-3 * max(float(distance.mean()), 1e-12)  # a row of equal distances has no scale of its own
    weight = np.exp(-excess / np.maximum(sigma, floor))
    one_way = sp.csr_array((weight.ravel(), index.ravel(), np.arange(0, rows * k + 1, k)), shape=(rows, rows))
    graph = sp.csr_array(one_way + one_way.T - one_way.multiply(one_way.T))
    graph.sort_indices()
    return graph


def edge_counts(graph: sp.csr_array, label: Int64[np.ndarray, " N"]) -> Float[np.ndarray, "C C"]:
    """Summed edge weight between every two clusters."""
    clusters = int(label.max()) + 1
    cell = np.repeat(label * clusters, np.diff(graph.indptr)) + label[graph.indices]
    between: Float[np.ndarray, "C C"] = np.bincount(cell, graph.data, clusters * clusters).reshape(clusters, clusters)
    return between
