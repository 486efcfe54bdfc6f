"""Scores that never see a label: what heads and trials are compared by before anybody evaluates."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from pipeline.model import ClusterModel
from pipeline.rows import Embeddings

AGREEMENT_HEADS = 8  # heads compared pairwise: 28 pairs tell as much as 1,225


def label_free_scores(
    model: ClusterModel, embedding: Embeddings, neighbors: Int64[Tensor, "N K"] | None
) -> dict[str, Any]:
    """What can be said of a trained model without a label.

    Returns
    -------
    dict with the size scores of `size_scores`, ``mean_confidence``, ``head_agreement`` (None with one head) and
    ``neighbor_consistency`` (None without a graph).
    """
    probability = model.predict_proba(embedding)
    cluster = probability.argmax(-1)
    return {
        **size_scores(cluster, model.clusters),
        "mean_confidence": probability.amax(-1).mean().item(),
        "head_agreement": head_agreement(model.head_clusters(embedding)),
        "neighbor_consistency": None
        if neighbors is None or not neighbors.shape[1]
        else neighbor_consistency(cluster, neighbors),
    }


def size_scores(cluster: Int64[Tensor, " N"], clusters: int) -> dict[str, Any]:
    """Used clusters, exp of the entropy of the sizes (C when all are equal), smallest and largest size."""
    sizes = cluster.bincount(minlength=clusters)
    share = sizes / sizes.sum()
    return {
        "clusters": clusters,
        "used_clusters": int((sizes > 0).sum()),
        "effective_clusters": torch.special.entr(share).sum().exp().item(),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
    }


def neighbor_consistency(cluster: Int64[Tensor, " N"], neighbors: Int64[Tensor, "N K"]) -> float:
    """Share of all neighbors that are in the cluster of the image they are neighbors of."""
    device = cluster.device
    return (cluster[neighbors.to(device)] == cluster[:, None]).float().mean().item()


def head_agreement(clusters: Int64[Tensor, "H N"]) -> float | None:
    """Mean pairwise normalized mutual information of the heads' assignments, over the first AGREEMENT_HEADS."""
    labels = clusters[:AGREEMENT_HEADS].cpu().numpy()
    scores = [normalized_mutual_info_score(a, b) for a, b in combinations(labels, 2)]
    return float(np.mean(scores)) if scores else None
