"""Scores that never see a label: what heads and trials are compared by before anybody evaluates."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from temi.pipeline.features.blocks import BLOCK_ROWS, Embeddings, collect
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.records import LabelFree, Sizes, TrialRecord
from temi.pipeline.start.agreement import mean_agreement, mutual_information

AGREEMENT_HEADS = 8  # heads compared pairwise, or a few more: 28 pairs tell as much as 1,225
COMPARED_ROWS = 100_000  # rows that heads are compared on
LINEAR_ROWS = 10_000  # rows that a linear classifier is tried on
FOLDS = 3
LINEAR_COPIES = 3  # sample of the linear classifier, float64
SCORED = 16  # bytes of a row while scores are made: its cluster, twice, and its confidence
COMPARED = 12  # bytes of a row and head while heads are compared: its cluster, and that in int64
RIDGE = 1e-2  # penalty, as a share of the mean variance of a coordinate


def label_free_scores(
    model: ClusterModel,
    embedding: Embeddings,
    neighbors: Int32[Tensor, "N K"] | None,
    copies: Int64[np.ndarray, " M"] | None = None,
) -> LabelFree:
    """What can be said of a trained model without a label.

    `copies` is which row of `embedding` each image equals, by which clusters are counted; None: each has its own.
    """
    model, rows = replace(model, softness=1.0), len(embedding)  # trials differ in how sure their heads are
    steps = -(-rows // COMPARED_ROWS), -(-rows // LINEAR_ROWS)
    lengths = [rows] * 2 + [-(-rows // step) for step in (steps[0], steps[0], steps[1])]
    cluster, confidence, own, halves, sample = collect(_observed(model, embedding, *steps), lengths)
    mined = neighbors is not None and neighbors.shape[1] > 0
    consistency = neighbor_consistency(cluster, neighbors) if neighbors is not None and mined else None
    assigned = cluster if copies is None else cluster[torch.from_numpy(copies).to(cluster.device)]
    return LabelFree(
        **size_scores(assigned, model.clusters, model.given_up).model_dump(),
        mean_confidence=confidence.mean().item(),
        head_agreement=head_agreement(own.mT),
        stability=None if len(model.loss) < 2 else stability(halves.mT),
        neighbor_consistency=consistency,
        linear_accuracy=linear_accuracy(sample, cluster[:: steps[1]], model.clusters),
    )


def _observed(model: ClusterModel, embedding: Embeddings, every: int, step: int) -> Iterator[tuple[Tensor, ...]]:
    """Of each block: consensus and confidence; of every `every`-th row the clusters of the heads compared (n, A) and of
    the two halves of the heads (n, 2); and every `step`-th scaled row.
    """
    passed = 0
    for scaled, probability in model.blocks(embedding):
        confidence, cluster = model.consensus(probability).max(-1)
        some = probability[:, -passed % every :: every]
        own = some[compared(len(some))].argmax(-1).int().mT
        halves = [torch.tensordot(model.trust[part::2], some[part::2], 1).argmax(-1).int() for part in (0, 1)]
        yield cluster, confidence, own, torch.stack(halves, 1), scaled[-passed % step :: step]
        passed += len(scaled)


def choose_trials(trials: Sequence[TrialRecord]) -> dict[int, list[TrialRecord]]:
    """For each number of clusters that several trials have, the one of the highest score; several where they tie.

    The score is the agreement of heads, or mean confidence where any trial has a single head. The first follows ACC
    best of all scores, with a rank correlation of 0.89 over 48 trials on each of four sets; the second (0.73) never
    chose a trial that had collapsed (benchmarks/history.md). Neither compares different numbers of clusters.
    """
    trained = [(trial, trial.training) for trial in trials if trial.training is not None]
    single = any(training.head_agreement is None for _, training in trained)
    trust: dict[int, dict[str, float]] = {}
    for trial, training in trained:
        score = training.mean_confidence if single else training.head_agreement or 0.0
        trust.setdefault(training.clusters, {})[trial.trial] = score
    return {
        clusters: [trial for trial, _ in trained if score.get(trial.trial) == max(score.values())]
        for clusters, score in sorted(trust.items())
        if len(score) > 1
    }


def size_scores(cluster: Int64[Tensor, " N"], clusters: int, given_up: Collection[int] = ()) -> Sizes:
    """Used clusters, exp of the entropy of the sizes (C when all are equal), smallest and largest size.

    Numbers that were given up are no clusters of size 0.
    """
    sizes = cluster.bincount(minlength=clusters)
    there = [size for number, size in enumerate(sizes.tolist()) if number not in given_up]
    share = sizes / sizes.sum()
    return Sizes(
        clusters=clusters,
        used_clusters=int((sizes > 0).sum()),
        effective_clusters=torch.special.entr(share).sum().exp().item(),
        smallest_cluster=min(there),
        largest_cluster=int(sizes.max()),
    )


def neighbor_consistency(cluster: Int64[Tensor, " N"], neighbors: Int32[Tensor, "N K"]) -> float:
    """Share of all neighbors that are in the cluster of the image they are neighbors of."""
    device, same = cluster.device, 0
    for near, own in zip(torch.split(neighbors, BLOCK_ROWS), torch.split(cluster, BLOCK_ROWS), strict=True):
        same += int((cluster[near.to(device).long()] == own[:, None]).sum())
    return same / neighbors.numel()


def compared(heads: int) -> slice:
    """About AGREEMENT_HEADS of so many heads, evenly spread."""
    return slice(None, None, max(1, heads // AGREEMENT_HEADS))


def head_agreement(clusters: Int32[Tensor, "A N"]) -> float | None:
    """Mean pairwise normalized mutual information of the heads' assignments; None for a single head."""
    return mean_agreement(mutual_information(clusters.cpu().numpy())) if len(clusters) > 1 else None


def stability(halves: Int32[Tensor, "2 N"]) -> float:
    """Normalized mutual information of the consensus of every other head and that of the rest.

    Heads began at several cuts, and both halves have heads of each.
    """
    return float(mutual_information(halves.cpu().numpy())[0, 1])


def linear_accuracy(x: Float[Tensor, "N D"], cluster: Int64[Tensor, " N"], clusters: int) -> float:
    """Share of rows that ridge regression, fitted to the clusters of the other two thirds, puts into their cluster.

    W = (X^T X + lambda I)^-1 X^T Y, Y one-hot; the score that HUME and TURTLE are selected by, in closed form.
    """
    x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)], 1)
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(x)) % FOLDS).to(x.device)
    right = 0
    for held_out in range(FOLDS):
        seen = x[fold != held_out]
        gram = seen.mT @ seen
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        sums = seen.new_zeros(clusters, seen.shape[1]).index_add_(0, cluster[fold != held_out], seen)  # Y^T X
        weight = torch.linalg.solve(gram, sums.mT)
        found = (x[fold == held_out] @ weight).argmax(1)
        right += int((found == cluster[fold == held_out]).sum())
    return right / len(x)


def scoring_bytes(rows: int, width: int, heads: int, clusters: int) -> int:
    """Memory of `label_free_scores`, besides that of assigning the rows."""
    linear = min(rows, LINEAR_ROWS) * (LINEAR_COPIES * width + clusters // FOLDS) * torch.float64.itemsize
    compared_heads = min(rows, COMPARED_ROWS) * heads * COMPARED
    return rows * SCORED + compared_heads + linear
