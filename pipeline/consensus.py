"""Many partitions of the same rows: how far they agree, and cluster ids that mean the same in all of them."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64
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


def agreement(labelings: Sequence[Labeling]) -> Float64[np.ndarray, "L L"]:
    """Normalized mutual information of every two of L labelings; 1 on the diagonal."""
    step = -(-len(labelings[0]) // AGREEMENT_ROWS)
    sample = [label[::step] for label in labelings]
    score = np.eye(len(sample))
    for a, b in combinations(range(len(sample)), 2):
        score[a, b] = score[b, a] = normalized_mutual_info_score(sample[a], sample[b])
    return score


def mean_agreement(labelings: Sequence[Labeling]) -> float:
    """Mean of `agreement` over the pairs: how steady a way of cutting is from layout to layout."""
    return float(agreement(labelings)[np.triu_indices(len(labelings), 1)].mean())


def align(labelings: Sequence[Labeling], clusters: int) -> Int64[np.ndarray, "L N"]:
    """The labelings with cluster ids matched to the medoid's, then to the majority's."""
    reference = labelings[agreement(labelings).sum(1).argmax()]
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
