"""Cuts made anew in the metric that they teach: what tells clusters apart counts, what varies inside them does not.

The vote of some cuts is taken for classes, rows are mapped to the discriminants of these classes, communities are found
there, and their vote is taken for classes again: as Ding and Li do with k-means ("Adaptive dimension reduction using
discriminant analysis and k-means clustering", ICML 2007). No label is read.
"""

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float32, Int64
from scipy.linalg import eigh

from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import find_neighbors, search_bytes
from temi.pipeline.features.scaling import COMPONENTS, ROOT_COMPONENTS
from temi.pipeline.features.unit_rows import UnitRows
from temi.pipeline.products import product
from temi.pipeline.progress import Progress
from temi.pipeline.start.communities import communities
from temi.pipeline.start.graph import fuzzy_graph
from temi.pipeline.start.pool import EDGE, NEIGHBORS, Pool, judges, mean_information, neighbor_counts
from temi.pipeline.start.vote import vote

ROUNDS = 3  # the first brings most of it
SHRINKAGE = 0.6  # of the scatter inside clusters towards a sphere: a thousand rows do not show it in 400 directions
PLAIN: Kind = "joined"  # the space whose coordinates the discriminants combine;
VIEWED: Kind = "views"  # this one where there are views
FEWEST = 2  # discriminants: along a single one, rows have no angle
WIDEST = ROOT_COMPONENTS + COMPONENTS  # rows of either space
COPIES = 3  # of the discriminants of all rows: made, at unit norm, compared

Labeling = Int64[np.ndarray, " N"]


def taught_pool(features: Features, pool: Pool, clusters: int, seed: int) -> Pool:
    """As many cuts as `pool` has, in the metric that their vote teaches; `pool` itself where that is one direction.

    That is so of two clusters, and of rows that do not differ.
    """
    rows = features.scaled(VIEWED if features.view_count else PLAIN).numpy(force=True)
    rows -= rows.mean(0)
    counts = neighbor_counts(len(features), clusters)[::-1]
    sizes = [counts[number % len(counts)] for number in range(len(pool.names))]
    labels = list(pool.labels)
    with Progress("metric of clusters", ROUNDS, "round") as progress:
        for _ in range(ROUNDS):
            apart = discriminants(rows, vote(labels, clusters)[0])
            if apart.shape[1] < FEWEST:
                return pool
            index, similarity, _ = find_neighbors(UnitRows(torch.from_numpy(apart)), counts[0])
            distance = 1 - similarity.astype(np.float32)
            graphs = {k: fuzzy_graph(index[:, :k], distance[:, :k]) for k in counts}
            labels = [communities(graphs[k], clusters, seed + number) for number, k in enumerate(sizes)]
            progress.advance()
    spaces = judges(features, clusters)
    score = np.array([mean_information(spaces, label) for label in labels])
    return Pool(tuple(f"communities taught {k}" for k in sizes), np.stack(labels), score)


def discriminants(x: Float32[np.ndarray, "N P"], label: Labeling) -> Float32[np.ndarray, "N Q"]:
    """Rows, of mean zero, along the directions that tell their C clusters apart best, Q < C (Fisher 1936, Rao 1948).

    These are the v of S_b v = w S v, v^T S v = 1, with S_b the scatter between clusters and S that inside them, shrunk
    towards a sphere: (1 - s) S_w + s tr(S_w) / P I (Friedman, "Regularized discriminant analysis", 1989).
    """
    size, whole = np.bincount(label), torch.from_numpy(x)
    member = sp.csr_array((np.float32(1) / size[label], (label, np.arange(len(x)))), shape=(len(size), len(x)))
    centers = np.sqrt(size / len(x))[:, None] * (member @ x)
    within = product(whole.mT, whole).numpy().astype(np.float64) / len(x) - centers.T @ centers
    value, vector = eigh(within)
    spread = (1 - SHRINKAGE) * value.clip(0) + SHRINKAGE * value.mean()
    whiten = vector / np.sqrt(np.maximum(spread, np.finfo(np.float32).tiny))
    _, apart, turn = np.linalg.svd(centers @ whiten, full_matrices=False)
    kept = apart[: len(size) - 1] > 1e-6 * max(apart[0], 1e-12)
    directions = whiten @ turn[: len(kept)][kept].T
    found: Float32[np.ndarray, "N Q"] = product(whole, torch.from_numpy(directions.astype(np.float32))).numpy()
    return found


def taught_bytes(rows: int, clusters: int, device: str) -> int:
    """Memory of `taught_pool`, beside what it is given."""
    width = min(clusters, WIDEST)
    columns = WIDEST + COPIES * width
    graphs = sum(NEIGHBORS) * rows * EDGE
    return columns * rows * np.dtype(np.float32).itemsize + search_bytes(rows, width, max(NEIGHBORS), device) + graphs
