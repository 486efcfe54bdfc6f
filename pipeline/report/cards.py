"""What a page says of a cluster: its center, its typical images, the clusters most like it."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64

from temi.pipeline.features.unit_rows import unit_rows

TYPICAL = 12  # images of a cluster whose pictures a page holds first
NEAREST = 3
BLOCK_ROWS = 8192  # images gone through at a time

Scaled = Float32[np.ndarray, "n D"]


def centers(scaled: Scaled, cluster: Int64[np.ndarray, " n"], clusters: int) -> Float32[np.ndarray, "C D"]:
    """Direction of the mean of each cluster, at unit norm; zeros for an empty one. A row of cluster -1 is in none."""
    inside = np.flatnonzero(cluster >= 0)
    member = sp.csr_array((np.ones(len(inside), np.float32), (cluster[inside], inside)), shape=(clusters, len(cluster)))
    return unit_rows(member @ scaled)


def typical_images(
    scaled: Scaled, cluster: Int64[np.ndarray, " n"], center: Float32[np.ndarray, "C D"], count: int
) -> list[list[int]]:
    """The up to `count` images of each cluster that are nearest to its center, the nearest first."""
    closeness = along_centers(scaled, cluster, center)
    order = np.argsort(-closeness, kind="stable")
    return [order[cluster[order] == index][:count].tolist() for index in range(len(center))]


def along_centers(
    scaled: Scaled, cluster: Int64[np.ndarray, " n"], center: Float32[np.ndarray, "C D"]
) -> Float32[np.ndarray, " n"]:
    """Product of each image with the center of its cluster."""
    found = np.empty(len(scaled), np.float32)
    for start in range(0, len(scaled), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        found[rows] = np.einsum("nd,nd->n", scaled[rows], center[cluster[rows]])
    return found


def nearest_clusters(center: Float32[np.ndarray, "C D"], cluster: Int64[np.ndarray, " n"]) -> list[list[int]]:
    """The clusters whose centers have the largest cosine to each one's, empty ones left out."""
    cosine = center @ center.T
    empty = np.bincount(cluster, minlength=len(center)) == 0
    cosine[:, empty] = -np.inf
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAREST]
    return [
        [] if empty[own] else [int(other) for other in others if np.isfinite(cosine[own, other])]
        for own, others in enumerate(order)
    ]


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a class, or its number where the source has no names."""
    return classes[index] if index < len(classes) else f"class {index}"
