"""Rows that repeat others: one stands for all in graphs, cuts and scores; the others take its cluster."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float16, Float32, Int, Int64

from temi.cache.neighbors import row_digests
from temi.pipeline.features.blocks import Embeddings, blocks_of
from temi.pipeline.features.unit_rows import BLOCK_ROWS, UnitRows

SAME = 1 / 300  # of the median distance to the last neighbor: two rows nearer than that are one
ROUNDING = 2.0**-12  # distances that a cosine in float16 cannot tell from 0

Groups = tuple[Int64[np.ndarray, " M"], Int64[np.ndarray, " N"]]


def exact_copies(embedding: Embeddings) -> Groups:
    """Positions of the first of every distinct row, in order, and which of them each row equals.

    Rows are compared by digests of 128 bits: two different ones of 10^12 share theirs with a probability of 10^-15.
    """
    digests = [row_digests(block.numpy(force=True)) for block in blocks_of(embedding)]
    _, group = np.unique(np.concatenate(digests), axis=0, return_inverse=True)
    return in_order(group.ravel())


def near_copies(index: Int[np.ndarray, "N K"], distance: Float[np.ndarray, "N K"]) -> Groups:
    """The same for rows far nearer to a neighbor than rows are to theirs (SAME), and chains of such.

    Relative to the data: where clusters are so tight that all their rows look alike, none is a copy.

    Parameters
    ----------
    index : neighbors of rows of unit norm
    distance : one minus the cosine to each
    """
    rows, place = np.nonzero(distance < SAME * np.median(distance[:, -1]))
    linked = sp.coo_array((np.ones(len(rows)), (rows, index[rows, place])), shape=(len(index), len(index)))
    return in_order(sp.csgraph.connected_components(linked, directed=False)[1])


def cosine_distances(
    rows: UnitRows, index: Int[np.ndarray, "N K"], similarity: Float16[np.ndarray, "N K"]
) -> Float32[np.ndarray, "N K"]:
    """One minus the cosine to each neighbor, as `near_copies` needs it.

    Rows may all be so near to one another, in a space of few dimensions, that SAME of their distance is below the
    rounding of `similarity`. There it is |u - v|^2 / 2 of the unit rows themselves.
    """
    distance = 1 - similarity.astype(np.float32)
    if SAME * np.median(distance[:, -1]) >= ROUNDING:
        return distance
    unit = rows.whole()
    for first in range(0, len(unit), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        for place in range(index.shape[1]):
            distance[block, place] = np.square(unit[block] - unit[index[block, place]]).sum(1) / 2
    return distance


def in_order(group: Int64[np.ndarray, " N"]) -> Groups:
    """The first row of every group, rising, and for each row which of these stands for it."""
    _, first, label = np.unique(group, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[label].astype(np.int64)
