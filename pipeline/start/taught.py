"""Cuts made anew in the metric that they teach: what tells clusters apart counts, what varies inside them does not.

The vote of some cuts is taken for classes, rows are mapped to the discriminants of these classes, communities are found
there, and their vote is taken for classes again: as Ding and Li do with k-means ("Adaptive dimension reduction using
discriminant analysis and k-means clustering", ICML 2007). Communities much smaller than clusters teach one, too: of
clusters of very uneven size they know more than as many communities as there are clusters. There communities are found
again, or the small ones merged. No label is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float32, Float64, Int64
from scipy.linalg import eigh

from temi.pipeline.features.neighbors import find_neighbors, search_bytes
from temi.pipeline.features.scaling import COMPONENTS, ROOT_COMPONENTS
from temi.pipeline.features.unit_rows import UnitRows, unit_rows
from temi.pipeline.products import product
from temi.pipeline.progress import Progress
from temi.pipeline.start.communities import cut_graphs, find_communities, search_resolution
from temi.pipeline.start.graph import graphs_of
from temi.pipeline.start.spaces import EDGE, NEIGHBORS
from temi.pipeline.start.vote import vote

ROUNDS = 3  # the first brings most of it
SMALL = (50, 40, 30)  # rows of a small community, about
DIRECTIONS = COMPONENTS  # that small communities teach, at most: those that tell most of them apart
SHRINKAGE = 0.6  # of the scatter inside clusters towards a sphere: a thousand rows do not show it in 400 directions
FEWEST = 2  # discriminants: along a single one, rows have no angle
WIDEST = ROOT_COMPONENTS + COMPONENTS  # coordinates of a row
COPIES = 6  # of the discriminants of all rows: made, shifted, at unit norm, compared (measured at 100,000 rows)

Labeling = Int64[np.ndarray, " N"]
Rows = Float32[np.ndarray, "N P"]


@dataclass(frozen=True)
class Way:
    """Cuts made in one way.

    Attributes
    ----------
    cuts : cluster of each row
    neighbors : of the graph of each cut; 0 where small communities were merged instead
    small : rows of the communities that taught the metric of each cut; 0 where as many as there are clusters did
    """

    cuts: list[Labeling]
    neighbors: list[int]
    small: list[int]


def taught_way(metrics: "Metrics", cuts: list[Labeling], clusters: int, counts: list[int], seed: int) -> Way:
    """Cuts of graphs of so many neighbors, one each, in the metric that the vote of `cuts` teaches.

    Where that is one direction they are as many of `cuts`: so it is of two clusters, and of rows that do not differ.
    """
    with Progress("metric of clusters", ROUNDS, "round") as progress:
        for _ in range(ROUNDS):
            apart = metrics.apart(vote(cuts, clusters)[0])
            if apart is None:
                cuts = cuts[: len(counts)]
                break
            cuts = cuts_of(apart, clusters, counts, seed)
            progress.advance()
    return Way(cuts, counts, [0] * len(counts))


def finely_taught_ways(
    metrics: "Metrics", graph: sp.csr_array, clusters: int, counts: list[int], seed: int
) -> Iterator[Way]:
    """In each metric that communities of SMALL rows of the graph teach, the same in one round; then all of these
    communities merged, each in the metric they teach.

    None where a cluster has about as few rows as such a community.
    """
    rows = len(metrics.rows)
    wanted = {size: rows // size for size in SMALL if rows // size > clusters}
    mergers = dict[int, Labeling]()
    with Progress("metric of small communities", len(wanted), "metric") as progress:
        for size, number in wanted.items():
            small = search_resolution(partial(find_communities, graph, seed=seed), rows, number)
            apart = metrics.apart(small, DIRECTIONS)
            if apart is not None:
                yield Way(cuts_of(apart, clusters, counts, seed), counts, [size] * len(counts))
                mergers[size] = merged(apart, small, clusters)
            progress.advance()
    if mergers:
        yield Way(list(mergers.values()), [0] * len(mergers), list(mergers))


def cuts_of(rows: Rows, clusters: int, counts: list[int], seed: int) -> list[Labeling]:
    """Communities of graphs of so many neighbors by cosine."""
    index, similarity, _ = find_neighbors(UnitRows(torch.from_numpy(rows)), max(counts))
    return list(cut_graphs(graphs_of(index, similarity, counts), clusters, seed))


def merged(rows: Rows, small: Labeling, clusters: int) -> Labeling:
    """Communities merged until `clusters` are left: always the two of the highest mean cosine of their members' means
    (average linkage; Sokal and Michener 1958).

    Communities as many as clusters in a graph are of like size; these are as uneven as the clusters are. Fewer than
    `clusters` stay as they are.
    """
    from sklearn.cluster import AgglomerativeClustering  # here: who only assigns images does not wait for it
    from sklearn.metrics.pairwise import cosine_distances

    size = np.bincount(small)
    if len(size) <= clusters:
        return small
    centers = class_centers(unit_rows(rows), small, size, np.arange(len(rows)))
    linkage = AgglomerativeClustering(n_clusters=clusters, metric="precomputed", linkage="average")
    label: Labeling = linkage.fit_predict(cosine_distances(centers)).astype(np.int64)[small]
    return label


class Metrics:
    """What classes of these rows teach."""

    def __init__(self, rows: Rows):
        self.rows = rows - rows.mean(0)
        self.total = covariance(self.rows)

    def apart(self, label: Labeling, directions: int = WIDEST) -> Rows | None:
        """Rows along the first discriminants of `label`; None where there is a single one."""
        found = discriminants(self.rows, self.total, label, directions)
        return found if found.shape[1] >= FEWEST else None


def covariance(x: Rows) -> Float64[np.ndarray, "P P"]:
    """Mean of x x^T over the rows: their covariance where they are of mean zero."""
    rows = torch.from_numpy(x)
    found: Float64[np.ndarray, "P P"] = product(rows.mT, rows).numpy().astype(np.float64) / len(x)
    return found


def class_centers(
    x: Rows, label: Labeling, size: Int64[np.ndarray, " C"], rows: Int64[np.ndarray, " m"]
) -> Float64[np.ndarray, "C P"]:
    """Mean of every class over `rows` of x: `label` is the class of each, `size` how many a class has; 0 of none."""
    weight = (1 / np.maximum(size, 1))[label]
    found: Float64[np.ndarray, "C P"] = sp.csr_array((weight, (label, rows)), shape=(len(size), len(x))) @ x
    return found


def discriminants(
    x: Rows, total: Float64[np.ndarray, "P P"], label: Labeling, most: int = WIDEST
) -> Float32[np.ndarray, "N Q"]:
    """Rows along the directions that tell their C clusters apart best, Q < C (Fisher 1936, Rao 1948), `most` at most.

    These are the v of S_b v = w S v, v^T S v = 1, with S_b the scatter between clusters and S that inside them, shrunk
    towards a sphere: (1 - s) S_w + s tr(S_w) / P I (Friedman, "Regularized discriminant analysis", 1989). Rows are seen
    from the mean of the clusters' centers, which no cluster of most rows is close to, whatever the sizes.

    Parameters
    ----------
    x : of mean zero
    total : their covariance, S_w + S_b
    label : cluster of each; an id may have no rows
    """
    _, label, size = np.unique(label, return_inverse=True, return_counts=True)
    centers = class_centers(x, label, size, np.arange(len(x)))
    between = np.sqrt(size / len(x))[:, None] * centers
    value, vector = eigh(total - between.T @ between)
    spread = (1 - SHRINKAGE) * value.clip(0) + SHRINKAGE * value.mean()
    whiten = vector / np.sqrt(np.maximum(spread, np.finfo(np.float32).tiny))
    _, apart, turn = np.linalg.svd(between @ whiten, full_matrices=False)
    kept = apart[: min(len(size) - 1, most)] > 1e-6 * max(apart[0], 1e-12)
    directions = (whiten @ turn[: len(kept)][kept].T).astype(np.float32)
    seen = product(torch.from_numpy(x), torch.from_numpy(directions)).numpy() - centers.mean(0) @ directions
    found: Float32[np.ndarray, "N Q"] = seen.astype(np.float32, copy=False)
    return found


def taught_bytes(rows: int, clusters: int, device: str) -> int:
    """Memory of `Metrics` and of the cuts made there, beside what is given."""
    width = min(max(clusters, DIRECTIONS), WIDEST)
    columns = 2 * WIDEST + max(COPIES * width, clusters)  # rows as given and of mean zero; what is compared, or votes
    graphs = search_bytes(rows, width, max(NEIGHBORS), device) + sum(NEIGHBORS) * rows * EDGE
    distances = 2 * (rows // min(SMALL)) ** 2 * np.dtype(np.float64).itemsize  # of small communities, and as a half
    return columns * rows * np.dtype(np.float32).itemsize + max(graphs, distances)
