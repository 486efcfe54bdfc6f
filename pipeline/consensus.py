"""One partition from many: cluster ids are aligned first, then rows vote."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

ROUNDS = 3  # of voting: first against the medoid, then against the majority so far
MEDOID_ROWS = 20_000  # rows that the medoid is chosen on: NMI needs no more

Labeling = Int64[np.ndarray, " N"]


def match(label: Labeling, reference: Labeling, clusters: int) -> Int64[np.ndarray, " C"]:
    """Entry c is the reference's cluster that cluster c of `label` is matched to, one to one (Hungarian)."""
    count = np.zeros((clusters, clusters))
    np.add.at(count, (label, reference), 1)
    matched: Int64[np.ndarray, " C"] = linear_sum_assignment(count, maximize=True)[1].astype(np.int64)
    return matched


def medoid(labelings: Sequence[Labeling]) -> int:
    """Which labeling has the highest mean normalized mutual information with all others."""
    step = -(-len(labelings[0]) // MEDOID_ROWS)
    sample = [label[::step] for label in labelings]
    score = np.zeros((len(sample), len(sample)))
    for a in range(len(sample)):
        for b in range(a):
            score[a, b] = score[b, a] = normalized_mutual_info_score(sample[a], sample[b])
    return int(score.sum(1).argmax())


def vote(labelings: Sequence[Labeling], clusters: int) -> Float32[np.ndarray, "N C"]:
    """Share of the labelings that put each row into each cluster, after alignment to the medoid and the majority."""
    reference = labelings[medoid(labelings)]
    row = np.arange(len(reference))
    for _ in range(ROUNDS):
        share = np.zeros((len(row), clusters), dtype=np.float32)
        for label in labelings:
            share[row, match(label, reference, clusters)[label]] += 1
        reference = share.argmax(1)
    return share / len(labelings)
