"""How the clusters of a finer clustering join into those of coarser ones of the same images.

Nothing makes clusterings with different numbers of clusters nest: a finer cluster may lie across coarser ones. So each
joins the coarser cluster that holds most of its images, and the share of them says how far that is the whole story.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int64
from sklearn.metrics.cluster import contingency_matrix

Assignment = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Join:
    """A cluster, its number of images, and the coarser cluster that holds the share `share` of them, the most."""

    cluster: int
    images: int
    into: int
    share: float


def joins(finer: Assignment, coarser: Assignment) -> list[Join]:
    """For each cluster of `finer` that has images, in order, the cluster of `coarser` it joins; of equals the first."""
    table = contingency_matrix(finer, coarser)
    into, images = table.argmax(1), table.sum(1)
    names = np.unique(finer), np.unique(coarser)
    return [
        Join(int(cluster), int(size), int(names[1][best]), round(float(row[best] / size), 4))
        for cluster, size, best, row in zip(names[0], images, into, table, strict=True)
    ]


def merge_tree(assignments: Sequence[Assignment]) -> dict[str, Any]:
    """The clusters of each assignment, from the finest to the coarsest, with what they join in the next.

    Returns
    -------
    ``joins``: for each assignment but the last a list of `Join` as dicts; ``top``: cluster -> images of the last;
    ``together``: share of all images that lie, from each assignment to the next, where their cluster joins.
    """
    steps = [joins(finer, coarser) for finer, coarser in pairwise(assignments)]
    together = np.ones(len(assignments[0]), dtype=bool)
    for step, finer, coarser in zip(steps, assignments, assignments[1:], strict=False):
        into = np.full(finer.max() + 1, -1)
        into[[join.cluster for join in step]] = [join.into for join in step]
        together &= into[finer] == coarser
    cluster, images = np.unique(assignments[-1], return_counts=True)
    return {
        "joins": [[asdict(join) for join in step] for step in steps],
        "top": [{"cluster": int(c), "images": int(size)} for c, size in zip(cluster, images, strict=True)],
        "together": round(float(together.mean()), 4),
    }
