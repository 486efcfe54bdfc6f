"""What a page says of a cluster: its center, its typical images, the clusters most like it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from temi.pipeline.features.neighbors import unit_rows

TYPICAL = 12  # images of a cluster whose pictures a page holds first
NEAREST = 3

Scaled = Float32[np.ndarray, "n D"]


def centers(scaled: Scaled, cluster: Int64[np.ndarray, " n"], clusters: int) -> Float32[np.ndarray, "C D"]:
    """Direction of the mean of each cluster, at unit norm; zeros for an empty one."""
    total = np.zeros((clusters, scaled.shape[1]), dtype=np.float32)
    np.add.at(total, cluster, scaled)
    return unit_rows(total)


def typical_images(
    scaled: Scaled, cluster: Int64[np.ndarray, " n"], center: Float32[np.ndarray, "C D"], count: int
) -> list[list[int]]:
    """The up to `count` images of each cluster that are nearest to its center, the nearest first."""
    closeness = np.einsum("nd,nd->n", scaled, center[cluster])
    order = np.argsort(-closeness, kind="stable")
    return [order[cluster[order] == index][:count].tolist() for index in range(len(center))]


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
