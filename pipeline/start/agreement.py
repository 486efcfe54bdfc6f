"""Many partitions of the same rows: how far they agree, and cluster ids that mean the same in all of them."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

ROUNDS = 3  # of alignment: first to the medoid, then to the majority so far
AGREEMENT_ROWS = 20_000  # rows that labelings are compared on: NMI needs no more

Labeling = Int64[np.ndarray, " N"]


def match(label: Labeling, reference: Labeling, clusters: int) -> Int64[np.ndarray, " C"]:
    """Entry c is the reference's cluster that cluster c of `label` is matched to, one to one (Hungarian)."""
    count = np.zeros((clusters, clusters))
    np.add.at(count, (label, reference), 1)
    matched: Int64[np.ndarray, " C"] = linear_sum_assignment(count, maximize=True)[1].astype(np.int64)
    return matched


def mutual_information(
    labelings: Sequence[Labeling] | Int[np.ndarray, "L N"],
) -> Float64[np.ndarray, "L L"]:
    """Normalized mutual information of every two of L labelings; 1 on the diagonal."""
    score = np.eye(len(labelings))
    for a, b in combinations(range(len(labelings)), 2):
        score[a, b] = score[b, a] = normalized_mutual_info_score(labelings[a], labelings[b])
    return score


def agreement(labelings: Sequence[Labeling]) -> Float64[np.ndarray, "L L"]:
    """`mutual_information` of at most AGREEMENT_ROWS rows."""
    step = -(-len(labelings[0]) // AGREEMENT_ROWS)
    return mutual_information([label[::step] for label in labelings])


def mean_agreement(score: Float64[np.ndarray, "L L"]) -> float:
    """Mean over the pairs: how steady a way of cutting is from layout to layout, or how far heads agree."""
    return float(score[np.triu_indices(len(score), 1)].mean())


def align(labelings: Sequence[Labeling], score: Float64[np.ndarray, "L L"], clusters: int) -> Int64[np.ndarray, "L N"]:
    """The labelings with cluster ids matched to the medoid's by their `agreement`, then to the majority's."""
    reference = labelings[score.sum(1).argmax()]
    for _ in range(ROUNDS):
        aligned = np.stack([match(label, reference, clusters)[label] for label in labelings])
        reference = majority(aligned, clusters)
    return aligned


def majority(aligned: Int64[np.ndarray, "L N"], clusters: int) -> Labeling:
    """The cluster that most of the aligned labelings put each row into; of equally many the first."""
    row = np.arange(aligned.shape[1])
    votes = np.zeros((len(row), clusters), np.int32)
    for label in aligned:
        votes[row, label] += 1
    elected: Labeling = votes.argmax(1)
    return elected
