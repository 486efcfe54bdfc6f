"""How the clusters of a finer clustering join into those of coarser ones of the same images.

Nothing makes clusterings with different numbers of clusters nest: a finer cluster may lie across coarser ones. So each
joins the coarser cluster that holds most of its images, and the share of them says how far that is the whole story.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from temi.pipeline.runs.records import Join, Level, MergeTree, Setting, Top
from temi.pipeline.start.agreement import contingency

Assignment = Int64[np.ndarray, " n"]


def joins(finer: Assignment, coarser: Assignment) -> list[Join]:
    """For each cluster of `finer` that has images, in order, the cluster of `coarser` it joins; of equals the first."""
    table = contingency(finer, coarser)
    into, images = table.argmax(1), table.sum(1)
    names = np.unique(finer), np.unique(coarser)
    return [
        Join(cluster=int(cluster), images=int(size), into=int(names[1][best]), share=round(float(row[best] / size), 4))
        for cluster, size, best, row in zip(names[0], images, into, table, strict=True)
    ]


def merge_tree(settings: dict[str, Setting], levels: Sequence[Level], assignments: Sequence[Assignment]) -> MergeTree:
    """The clusters of the assignment of each level, the finest first, with what they join in the next."""
    steps = [joins(finer, coarser) for finer, coarser in pairwise(assignments)]
    together = np.ones(len(assignments[0]), dtype=bool)
    for step, finer, coarser in zip(steps, assignments, assignments[1:], strict=False):
        into = np.full(finer.max() + 1, -1)
        into[[join.cluster for join in step]] = [join.into for join in step]
        together &= into[finer] == coarser
    cluster, images = np.unique(assignments[-1], return_counts=True)
    return MergeTree(
        settings=settings,
        levels=tuple(levels),
        joins=tuple(map(tuple, steps)),
        top=tuple(Top(cluster=int(c), images=int(size)) for c, size in zip(cluster, images, strict=True)),
        together=round(float(together.mean()), 4),
    )
