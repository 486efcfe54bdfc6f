"""Scores that never see a label: what heads and trials are compared by before anybody evaluates."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from pipeline.model import ClusterModel
from pipeline.rows import Embeddings, blocks_of

AGREEMENT_HEADS = 8  # heads compared pairwise: 28 pairs tell as much as 1,225
LINEAR_ROWS = 10_000  # rows that a linear classifier is tried on
FOLDS = 3
RIDGE = 1e-2  # penalty, as a share of the mean variance of a coordinate


def label_free_scores(
    model: ClusterModel, embedding: Embeddings, neighbors: Int64[Tensor, "N K"] | None
) -> dict[str, Any]:
    """What can be said of a trained model without a label.

    Returns
    -------
    dict with the size scores of `size_scores`, ``mean_confidence``, ``head_agreement`` and ``stability`` (None with
    one head), ``neighbor_consistency`` (None without a graph) and ``linear_accuracy``.
    """
    probability = model.predict_proba(embedding)
    cluster = probability.argmax(-1)
    return {
        **size_scores(cluster, model.clusters),
        "mean_confidence": probability.amax(-1).mean().item(),
        "head_agreement": head_agreement(model.head_clusters(embedding)),
        "stability": stability(model, embedding),
        "neighbor_consistency": None
        if neighbors is None or not neighbors.shape[1]
        else neighbor_consistency(cluster, neighbors),
        "linear_accuracy": _linear_accuracy_of(model, embedding, cluster),
    }


def choose_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trial to trust: the highest stability, or linear accuracy where trials have a single head.

    Of all scores these follow ACC best, with a rank correlation of 0.89 and 0.79 over 48 trials on each of four sets
    (benchmarks/RESULTS.md).
    """
    score = "linear_accuracy" if any(trial["stability"] is None for trial in trials) else "stability"
    return max(trials, key=lambda trial: trial[score])


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


def stability(model: ClusterModel, embedding: Embeddings) -> float | None:
    """Normalized mutual information of the consensus of every other head and that of the rest.

    Every head weighed the images by draws of its own, so these are two clusterings of two resamplings.
    """
    if len(model.loss) < 2:
        return None
    halves = [
        torch.stack([aligned[part::2].mean(0).argmax(-1) for part in (0, 1)])
        for aligned in model.aligned_blocks(embedding)
    ]
    one, other = torch.cat(halves, 1).cpu().numpy()
    return float(normalized_mutual_info_score(one, other))


def _linear_accuracy_of(model: ClusterModel, embedding: Embeddings, cluster: Int64[Tensor, " N"]) -> float:
    step = -(-len(cluster) // LINEAR_ROWS)
    device = model.scaling.shift.device
    chosen, passed = [], 0
    for block in blocks_of(embedding):
        chosen.append(model.scaling(block[-passed % step :: step].to(device)))
        passed += len(block)
    return linear_accuracy(torch.cat(chosen), cluster[::step].to(device), model.clusters)


def linear_accuracy(x: Float[Tensor, "N D"], cluster: Int64[Tensor, " N"], clusters: int) -> float:
    """Share of rows that ridge regression, fitted to the clusters of the other two thirds, puts into their cluster.

    W = (X^T X + lambda I)^-1 X^T Y, Y one-hot; the score that HUME and TURTLE are selected by, in closed form.
    """
    x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], 1)
    wanted = torch.nn.functional.one_hot(cluster, clusters).double()
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(x)) % FOLDS).to(x.device)
    right = 0
    for held_out in range(FOLDS):
        seen = x[fold != held_out]
        gram = seen.mT @ seen
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        weight = torch.linalg.solve(gram, seen.mT @ wanted[fold != held_out])
        found = (x[fold == held_out] @ weight).argmax(1)
        right += int((found == cluster[fold == held_out]).sum())
    return right / len(x)
