"""Cuts made anew in the metric that they teach: what tells clusters apart counts, what varies inside them does not.

Several partitions of the rows teach one metric, Fisher's: of the scatter between their clusters and of that inside of
them, each the mean over the partitions. Where these disagree, clusters are close, and what would tell them apart is not
reliable. Communities found in this metric teach the next one, as Ding and Li do with one partition of k-means
("Adaptive dimension reduction using discriminant analysis and k-means clustering", ICML 2007). Communities much smaller
than clusters teach another: of clusters of very uneven size they know more than as many communities as there are
clusters. There communities are found again, or the small ones merged. No label is read.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32, Float64, Int64
from scipy.cluster.hierarchy import cut_tree, linkage

from temi.pipeline.features.neighbors import find_neighbors, search_bytes
from temi.pipeline.features.reliable import DIRECTIONS, reliable_directions
from temi.pipeline.features.scaling import COMPONENTS, ROOT_COMPONENTS
from temi.pipeline.features.unit_rows import UnitRows, unit_rows
from temi.pipeline.products import product
from temi.pipeline.progress import Progress
from temi.pipeline.start.communities import cut_graphs, cutting_bytes, find_communities, search_resolution
from temi.pipeline.start.graph import graphs_of
from temi.pipeline.start.spaces import EDGE, GRAPH_NEIGHBORS
from temi.pipeline.threads import in_threads

ROUNDS = 2  # the first brings most of it, a third nothing
SMALL = (50, 40, 30)  # rows of a small community, about
FINEST = COMPONENTS  # directions that small communities teach, at most: those that tell most of them apart
SHRINKAGE = 0.6  # of the scatter inside clusters towards a sphere: a thousand rows do not show it in 400 directions
FEWEST = 2  # directions: along a single one, rows have no angle
WIDEST = ROOT_COMPONENTS + COMPONENTS  # coordinates of a row
ROW_COPIES = 2  # of the rows along the directions, beside what a search needs (measured at 100,000 rows)

Labeling = Int64[np.ndarray, " N"]
Rows = Float32[np.ndarray, "N P"]


def small_communities(graph: sp.csr_array, clusters: int, seed: int) -> dict[int, Labeling]:
    """Communities of about SMALL rows each; none where a cluster has about as few."""
    rows, cut = graph.shape[0], partial(find_communities, graph, seed=seed)
    sizes = [size for size in SMALL if rows // size > clusters]
    return dict(zip(sizes, in_threads(lambda size: search_resolution(cut, rows, rows // size), sizes), strict=True))


def taught_cuts(
    metrics: "Metrics", cuts: list[Labeling], clusters: int, counts: list[int], seed: int
) -> list[Labeling]:
    """Cuts of graphs of so many neighbors, one each, in the metric that `cuts` teach.

    Where `cuts` teach a single direction (of two clear clusters, or of rows that do not differ), the first of `cuts`
    are returned, as many.
    """
    with Progress("metric of clusters", ROUNDS, "round") as progress:
        for _ in range(ROUNDS):
            taught = metrics.taught(cuts)
            if taught is None:
                cuts = cuts[: len(counts)]
                break
            cuts = cuts_of(taught, clusters, counts, seed)
            progress.advance()
    return cuts


def finely_taught_cuts(
    metrics: "Metrics", small: dict[int, Labeling], clusters: int, counts: list[int], seed: int
) -> list[list[Labeling]]:
    """In the metric that small communities teach: cuts of graphs, and these communities merged; nothing where they
    teach none.

    Directions count alike there: what tells a few rows from all others is little of the scatter between clusters.
    """
    taught = metrics.taught(list(small.values()), FINEST) if small else None
    if taught is None:
        return []
    with Progress("metric of small communities", 2, "way") as progress:
        cuts = cuts_of(taught, clusters, counts, seed)
        progress.advance()
        mergers = [merged(taught, parts, clusters) for parts in small.values()]
        progress.advance()
    return [cuts, mergers]


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
    size = np.bincount(small)
    if len(size) <= clusters:
        return small
    centers = unit_rows(class_centers(unit_rows(rows), small, size, np.arange(len(rows))))
    apart = (1 - centers @ centers.T)[np.triu_indices(len(size), 1)]
    label: Labeling = cut_tree(linkage(apart, "average"), clusters)[:, 0].astype(np.int64)[small]
    return label


class Metrics:
    """What partitions of these rows teach."""

    def __init__(self, rows: Rows):
        self.rows = rows - rows.mean(0)
        self.total = covariance(self.rows)

    def taught(self, labels: Sequence[Labeling], alike: int | None = None) -> Rows | None:
        """Rows along the directions that these partitions teach; None where that is a single one.

        Each direction is scaled by its reliability; or the first `alike` are taken as they are.
        """
        found, reliability = discriminants(self.rows, self.total, labels, alike)
        if len(reliability) < FEWEST:
            return None
        if alike is None:
            found *= reliability
        return found


def covariance(x: Rows) -> Float64[np.ndarray, "P P"]:
    """Mean of x x^T over the rows: their covariance where they are of mean zero."""
    rows = torch.from_numpy(x)
    found: Float64[np.ndarray, "P P"] = product(rows.mT, rows).numpy().astype(np.float64) / len(x)
    return found


def class_centers(
    x: Float[np.ndarray, "N P"], label: Labeling, size: Int64[np.ndarray, " C"], rows: Int64[np.ndarray, " m"]
) -> Float64[np.ndarray, "C P"]:
    """Mean of every class over `rows` of x: `label` is the class of each, `size` how many a class has; 0 of none."""
    weight = (1 / np.maximum(size, 1))[label]
    found: Float64[np.ndarray, "C P"] = sp.csr_array((weight, (label, rows)), shape=(len(size), len(x))) @ x
    return found


def discriminants(
    x: Rows, total: Float64[np.ndarray, "P P"], labels: Sequence[Labeling], most: int | None = None
) -> tuple[Rows, Float32[np.ndarray, " P"]]:
    """Rows along the directions, `most` at most, that tell clusters apart, and the reliability of each; see
    `reliable_directions`.

    S_b is the scatter between the clusters of a partition, in the mean over the partitions, and S_w = S - S_b that
    inside of them, shrunk towards a sphere: (1 - s) S_w + s tr(S_w) / P I (Friedman, "Regularized discriminant
    analysis", 1989). Rows are seen from the mean of the clusters' centers, which no cluster of most rows is close to,
    whatever the sizes.

    Parameters
    ----------
    x : of mean zero
    total : their covariance S
    labels : cluster of each row in every partition; an id may have no rows
    """
    wide = x.astype(np.float64)  # once, and not for every partition
    between, seen_from = np.zeros_like(total), np.zeros(x.shape[1])
    for label in labels:
        _, label, size = np.unique(label, return_inverse=True, return_counts=True)
        centers = class_centers(wide, label, size, np.arange(len(x)))
        between += (size[:, None] * centers).T @ centers / (len(x) * len(labels))
        seen_from += centers.mean(0) / len(labels)
    within = torch.from_numpy((1 - SHRINKAGE) * (total - between))
    along, reliability = reliable_directions(within, torch.from_numpy(between), SHRINKAGE / (1 - SHRINKAGE))
    along, reliability = along[:, :most], reliability[:most]
    found: Rows = product(torch.from_numpy(x), along.float()).numpy()
    found -= (seen_from @ along.numpy()).astype(np.float32)
    return found, reliability.float().numpy()


def taught_bytes(rows: int, clusters: int, device: str) -> int:
    """Memory of `Metrics` and of the cuts made there, beside what is given."""
    column = rows * np.dtype(np.float32).itemsize
    graphs = search_bytes(rows, DIRECTIONS, max(GRAPH_NEIGHBORS), device) + sum(GRAPH_NEIGHBORS) * rows * EDGE
    graphs += cutting_bytes(len(GRAPH_NEIGHBORS), rows, max(GRAPH_NEIGHBORS))
    distances = 2 * (rows // min(SMALL)) ** 2 * np.dtype(np.float64).itemsize  # of small communities, and as a half
    cutting = column * max(ROW_COPIES * DIRECTIONS, clusters) + max(graphs, distances)
    centering = 2 * column * WIDEST  # the rows in float64
    return 2 * column * WIDEST + max(cutting, centering)  # rows as given and of mean zero
