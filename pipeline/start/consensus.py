"""One partition of several that also divide rows otherwise, not only into other ids: what most of them keep together.

The similarity of two rows is the share of the partitions that put both into one cluster ("evidence accumulation"; Fred
and Jain, IEEE PAMI 2005), and rows are merged by average linkage. So clusters are as uneven as the partitions say, and
no cluster of one has to be matched to one of another, as a vote would.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64
from scipy.sparse.csgraph import connected_components

MOST = 2_000  # parts that are merged, or as many as clusters; smaller ones join the cluster they share most with
SIMILARITY_COPIES = 3  # of the similarity of parts, while it is summed and while they are merged

Labeling = Int64[np.ndarray, " N"]
Similarity = Float64[np.ndarray, "A A"]


def consensus(labelings: Sequence[Labeling], weight: Float64[np.ndarray, " L"], clusters: int) -> Labeling:
    """`clusters` clusters of the rows, fewer where all labelings together tell fewer parts apart.

    Rows that no labeling tells apart are a part and are merged as one of their number.

    Parameters
    ----------
    labelings : cluster of each row, ids from 0
    weight : what each of them counts, above 0
    """
    share = weight / weight.sum()
    part = common_parts(labelings)
    _, first, size = np.unique(part, return_index=True, return_counts=True)
    cuts = [label[first] for label in labelings]
    known = np.sort(np.argsort(-size, kind="stable")[: max(MOST, clusters)])
    similarity = np.zeros((len(known), len(known)))
    for cut, own in zip(cuts, share, strict=True):
        similarity += own * (cut[known, None] == cut[known])
    label = np.empty(len(size), dtype=np.int64)
    label[known] = average_linkage(similarity, size[known], clusters)
    if len(known) < len(size):
        _join_rest(label, known, size, cuts, share)
    found: Labeling = label[part]
    return found


def _join_rest(
    label: Labeling,
    known: Int64[np.ndarray, " k"],
    size: Int64[np.ndarray, " A"],
    cuts: Sequence[Labeling],
    share: Float64[np.ndarray, " L"],
) -> None:
    """Parts that are not `known` join, in place, the cluster whose rows theirs are most similar to in the mean."""
    inside = np.bincount(label[known], size[known])
    near = []  # similarity of the rows of each id to those of each cluster, by each labeling
    for cut, own in zip(cuts, share, strict=True):
        mean = own * size[known] / inside[label[known]]
        near.append(sp.csr_array((mean, (cut[known], label[known])), shape=(int(cut.max()) + 1, len(inside))))
    others = np.delete(np.arange(len(size)), known)
    for begin in range(0, len(others), MOST):
        rows = others[begin : begin + MOST]
        label[rows] = sum(of[cut[rows]] for of, cut in zip(near, cuts, strict=True)).toarray().argmax(1)


def common_parts(labelings: Sequence[Labeling]) -> Labeling:
    """Rows that are of one cluster in every labeling have one id; ids are in the order of the first row of each."""
    part = np.zeros_like(labelings[0])
    for label in labelings:
        _, first, part = np.unique(part * (int(label.max()) + 1) + label, return_index=True, return_inverse=True)
    found: Labeling = np.argsort(np.argsort(first))[part]
    return found


def average_linkage(similarity: Similarity, size: Int64[np.ndarray, " A"], clusters: int) -> Int64[np.ndarray, " A"]:
    """Parts of so many rows each, merged until `clusters` are left: always the two whose rows are most similar in the
    mean over pairs (Sokal and Michener 1958).

    By chains of nearest neighbors (Murtagh 1983): two that are nearest to each other are merged at once, in whatever
    order, as what is merged later is never more similar. SciPy's linkage takes parts of one row only.
    """
    near, rows = similarity.copy(), size.astype(np.float64)
    np.fill_diagonal(near, -np.inf)
    alive = np.ones(len(near), dtype=bool)
    chain: list[int] = []
    merged = []
    for _ in range(len(near) - 1):
        chain = chain or [int(alive.argmax())]
        while len(chain) < 2 or near[chain[-1], chain[-2]] < near[chain[-1]].max():
            chain.append(int(near[chain[-1]].argmax()))
        other, one = chain.pop(), chain.pop()
        merged.append((near[one, other], one, other))
        near[one] = near[:, one] = (rows[[one, other]] @ near[[one, other]]) / rows[[one, other]].sum()
        near[other] = near[:, other] = near[one, one] = -np.inf
        rows[one], alive[other] = rows[one] + rows[other], False
    merged.sort(key=lambda pair: -pair[0])
    joined = np.array([pair[1:] for pair in merged[: max(len(near) - clusters, 0)]], dtype=np.int64).reshape(-1, 2)
    graph = sp.coo_array((np.ones(len(joined)), (joined[:, 0], joined[:, 1])), shape=near.shape)
    label: Int64[np.ndarray, " A"] = connected_components(graph, directed=False)[1].astype(np.int64)
    return label


def consensus_bytes(rows: int, clusters: int) -> int:
    """Memory of `consensus`, at most, beside the labelings."""
    parts = min(rows, max(MOST, clusters))
    return SIMILARITY_COPIES * parts**2 * np.dtype(np.float64).itemsize
