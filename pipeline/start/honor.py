"""The cuts that heads begin at, changed to what a person said: images that were placed stay, and take others along."""

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64
from scipy.optimize import linear_sum_assignment

from temi.pipeline.features.constraints import NOWHERE, Constraints
from temi.pipeline.features.features import Features
from temi.pipeline.features.unit_rows import unit_rows
from temi.pipeline.start.agreement import contingency
from temi.pipeline.start.find import Start
from temi.pipeline.start.spaces import largest_graphs, spaces_of
from temi.pipeline.start.taught import class_centers

ROUNDS = 20  # of spreading along the graph
HELD = 1.0  # weight of a row's own cut against all its neighbors
COLUMNS = 64  # clusters spread at a time: memory stays small where there are many

Labeling = Int64[np.ndarray, " N"]


def honored(start: Start, features: Features, told: Constraints) -> Start:
    """Cuts in which every row that a person placed lies with the cluster it was put into.

    Clusters as a person left them are matched to those of the cuts by the rows they share; the rows that were placed
    spread to rows like them. Where as many clusters are asked for as were left, these are the one cut.
    """
    left, said = told.cluster[start.rows], told.said[start.rows]
    if (left == NOWHERE).all():
        return start
    numbers, cluster = np.unique(left, return_inverse=True)
    cluster = cluster - int(numbers[0] == NOWHERE)  # 0, 1, ... and NOWHERE
    home = matched([*start.cuts], cluster, start.clusters)
    if len(home) == start.clusters:
        corrected = np.where(cluster == NOWHERE, NOWHERE, home[cluster])
        start = replace(start, names=("as corrected",), cuts=corrected[None])
    placed, walk = np.where(said, home[cluster], NOWHERE), _walk(features.sample(start.rows), start.clusters)
    changed = [spread_placed(cut, placed, walk, start.clusters) for cut in start.cuts]
    return replace(start, cuts=np.stack([at_nearest_center(cut, start.rows, features) for cut in changed]))


def matched(cuts: list[Labeling], cluster: Labeling, clusters: int) -> Int64[np.ndarray, " B"]:
    """For each of B earlier clusters the one of the cuts that shares most rows with it, one to one while there are
    enough; a cluster that finds none left goes where most of its rows are."""
    before, known = int(cluster.max()) + 1, cluster != NOWHERE
    shared = np.sum([contingency(cluster[known], cut[known], (before, clusters)) for cut in cuts], axis=0)
    home: Int64[np.ndarray, " B"] = shared.argmax(1)
    one, other = linear_sum_assignment(shared, maximize=True)
    home[one] = other
    return home


def spread_placed(cut: Labeling, placed: Labeling, walk: sp.csr_array, clusters: int) -> Labeling:
    """Label propagation (Zhu and Ghahramani 2002) from rows that are `placed`, against the pull of a row's own cut.

    f <- (W f + HELD y) / (1 + HELD), y the cut as it was (zero where it is NOWHERE), with f clamped at placed rows.
    What nothing reaches is NOWHERE.
    """
    rows = np.flatnonzero(placed != NOWHERE)
    best, found = np.zeros(len(cut), dtype=np.float32), np.full(len(cut), NOWHERE, dtype=np.int64)
    for first in range(0, clusters, COLUMNS):
        columns = np.arange(first, min(first + COLUMNS, clusters))
        own, fixed = _one_hot(cut, columns), _one_hot(placed[rows], columns)
        f = own.copy()
        for _ in range(ROUNDS):
            f[rows] = fixed
            f = (walk @ f + HELD * own) / (1 + HELD)
        f[rows] = 2 * fixed
        top = f.max(1)
        found = np.where(top > best, columns[f.argmax(1)], found)
        best = np.maximum(top, best)
    return found


def at_nearest_center(cut: Labeling, rows: Labeling, features: Features) -> Labeling:
    """The cut of these rows in which those that are NOWHERE lie with the center of the highest cosine: heads learn a
    cluster of every row, and the first is one that a person left."""
    lost = cut == NOWHERE
    if not lost.any():
        return cut
    seen, known = features.sample(rows), np.flatnonzero(~lost)
    unit = unit_rows(seen.scaled(spaces_of(seen)[0]).numpy(force=True))
    numbers, label, size = np.unique(cut[known], return_inverse=True, return_counts=True)
    center = unit_rows(class_centers(unit, label, size, known))
    found = cut.copy()
    found[lost] = numbers[(unit[lost] @ center.T).argmax(1)]
    return found


def _one_hot(label: Labeling, columns: Int64[np.ndarray, " c"]) -> Float32[np.ndarray, "N c"]:
    hot: Float32[np.ndarray, "N c"] = (label[:, None] == columns).astype(np.float32)
    return hot


def _walk(features: Features, clusters: int) -> sp.csr_array:
    """Random walk on the graphs of all spaces together: rows sum to one."""
    graphs = largest_graphs(features, clusters)
    whole = sum(graphs[1:], graphs[0])
    steps = sp.csr_array(sp.diags_array(1 / np.maximum(whole.sum(1), 1e-12)) @ whole)
    return steps.astype(np.float32)
