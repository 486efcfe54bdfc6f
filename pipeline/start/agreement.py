"""How far partitions of the same rows agree: the table that counts rows in both, and what is read from it."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

AGREEMENT_ROWS = 4_000  # rows that partitions are compared on, where the comparison need not be exact

Labeling = Int[np.ndarray, " N"]


def contingency(one: Labeling, other: Labeling, shape: tuple[int, int] | None = None) -> Int64[np.ndarray, "A B"]:
    """Rows that are in cluster a of `one` and in cluster b of `other`.

    `shape` says how many ids there are; without it, ids that no row has get no row and no column.
    """
    if shape is None:
        one, other = (np.unique(labeling, return_inverse=True)[1] for labeling in (one, other))
        shape = int(one.max()) + 1, int(other.max()) + 1
    cell = one.astype(np.int64) * shape[1] + other
    return np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)


def mutual_information(
    labelings: Sequence[Int64[np.ndarray, " N"]] | Int[np.ndarray, "L N"],
) -> Float64[np.ndarray, "L L"]:
    """Normalized mutual information of every two of L labelings; 1 on the diagonal.

    2 I(A, B) / (H(A) + H(B)), Strehl and Ghosh, JMLR 2002, with the arithmetic mean; 1 for two of one cluster each.
    """
    dense = [np.unique(labeling, return_inverse=True)[1] for labeling in labelings]
    sizes = [np.bincount(labeling) for labeling in dense]
    own, score = [_entropy(size) for size in sizes], np.eye(len(dense))
    for a, b in combinations(range(len(dense)), 2):
        joint = _entropy(contingency(dense[a], dense[b], (len(sizes[a]), len(sizes[b]))))
        mean = (own[a] + own[b]) / 2
        score[a, b] = score[b, a] = max(0.0, 2 - joint / mean) if mean > 0 else 1.0
    return score


def _entropy(count: Int64[np.ndarray, "..."]) -> float:
    """In nats, of a distribution given by counts."""
    share: Float[np.ndarray, " M"] = count[count > 0] / count.sum()
    return float(-(share * np.log(share)).sum())


def mean_agreement(score: Float64[np.ndarray, "L L"]) -> float:
    """Mean over the pairs of labelings."""
    return float(score[np.triu_indices(len(score), 1)].mean())
