"""What a card of the report says of a cluster: center, typical and uncertain images, neighbors, classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

TYPICAL, UNCERTAIN = 12, 6  # images on a card
NEAREST = 3

Scaled = Float32[np.ndarray, "n D"]


def centers(scaled: Scaled, cluster: Int64[np.ndarray, " n"], clusters: int) -> Float32[np.ndarray, "C D"]:
    """Direction of the mean of each cluster, at unit norm; zeros for an empty one."""
    total = np.zeros((clusters, scaled.shape[1]), dtype=np.float32)
    np.add.at(total, cluster, scaled)
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "C D"] = total / np.maximum(norm, 1e-12)
    return unit


def cluster_cards(
    scaled: Scaled,
    cluster: Int64[np.ndarray, " n"],
    confidence: Float32[np.ndarray, " n"],
    center: Float32[np.ndarray, "C D"],
) -> list[dict[str, Any]]:
    """Size, mean confidence, the images nearest to the center, and the least confident others of each cluster."""
    closeness = np.einsum("nd,nd->n", scaled, center[cluster])
    cards = []
    for index in range(len(center)):
        members = np.flatnonzero(cluster == index)
        typical = members[np.argsort(-closeness[members], kind="stable")[:TYPICAL]]
        rest = members[~np.isin(members, typical)]
        uncertain = rest[np.argsort(confidence[rest], kind="stable")[:UNCERTAIN]]
        mean = float(confidence[members].mean()) if len(members) else 0.0
        lists = {"typical": typical.tolist(), "uncertain": uncertain.tolist()}
        cards.append({"id": index, "size": len(members), "confidence": round(mean, 4), **lists})
    return cards


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


def class_shares(
    label: Int64[np.ndarray, " n"], cluster: Int64[np.ndarray, " n"], classes: Sequence[str], clusters: int
) -> list[list[tuple[str, float]]]:
    """The up to three most frequent classes of each cluster and their share of its labeled images."""
    known = label >= 0
    shares: list[list[tuple[str, float]]] = []
    for index in range(clusters):
        count = np.bincount(label[known & (cluster == index)], minlength=len(classes))
        top = [int(c) for c in np.argsort(-count, kind="stable")[:3] if count[c]]
        shares.append([(class_name(classes, c), round(count[c] / count.sum(), 3)) for c in top])
    return shares


def class_name(classes: Sequence[str], index: int) -> str:
    """The name of a class, or its number where the source has no names."""
    return classes[index] if index < len(classes) else f"class {index}"
