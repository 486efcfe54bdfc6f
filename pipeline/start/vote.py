"""One partition of several: their cluster ids are matched, and the majority decides every row."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment

from temi.pipeline.start.agreement import contingency

ROUNDS = 3  # of matching: first to the first labeling, then to the majority so far

Labeling = Int64[np.ndarray, " N"]


def vote(labelings: Sequence[Labeling], clusters: int) -> tuple[Labeling, Float[np.ndarray, "N C"]]:
    """The cluster that most labelings put each row into, and the share of votes of every cluster.

    Ids are matched one to one (Hungarian) to those of the first labeling, the most trusted, then to the majority's.
    Of equally many votes the lowest id wins.
    """
    reference, rows = labelings[0], np.arange(len(labelings[0]))
    for _ in range(ROUNDS):
        share = np.zeros((len(rows), clusters), np.float32)
        for label in labelings:
            share[rows, match(label, reference, clusters)[label]] += 1 / len(labelings)
        reference = share.argmax(1)
    return reference, share


def agreement(labelings: Sequence[Labeling], clusters: int) -> float:
    """Share of rows that two labelings put into the same cluster, ids matched one to one; mean over the pairs."""
    pairs = combinations(labelings, 2)
    return float(np.mean([(match(one, other, clusters)[one] == other).mean() for one, other in pairs]))


def match(label: Labeling, reference: Labeling, clusters: int) -> Int64[np.ndarray, " C"]:
    """Entry c is the reference's cluster that cluster c of `label` is matched to, one to one."""
    count = contingency(label, reference, (clusters, clusters))
    matched: Int64[np.ndarray, " C"] = linear_sum_assignment(count, maximize=True)[1].astype(np.int64)
    return matched
