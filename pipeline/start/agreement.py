"""How far partitions of the same rows agree."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int, Int64
from sklearn.metrics import normalized_mutual_info_score


def mutual_information(
    labelings: Sequence[Int64[np.ndarray, " N"]] | Int[np.ndarray, "L N"],
) -> Float64[np.ndarray, "L L"]:
    """Normalized mutual information of every two of L labelings; 1 on the diagonal."""
    score = np.eye(len(labelings))
    for a, b in combinations(range(len(labelings)), 2):
        score[a, b] = score[b, a] = normalized_mutual_info_score(labelings[a], labelings[b])
    return score


def mean_agreement(score: Float64[np.ndarray, "L L"]) -> float:
    """Mean over the pairs: how far heads agree."""
    return float(score[np.triu_indices(len(score), 1)].mean())
