"""The spaces that rows are compared in, and the fuzzy graphs of their neighbors there."""

from collections.abc import Sequence

import scipy.sparse as sp

from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.start.graph import graphs_of

GRAPH_NEIGHBORS = (15, 12, 10)  # of the graphs that are cut: cuts of graphs that differ err in different places
FEWEST_NEIGHBORS = 5
EDGE = 40  # bytes per neighbor of a fuzzy graph: 12 an edge, 1.6 edges a neighbor; twice while it is made (measured)

# `joined` reads the views, too; a metric that views teach replaces the plain one.
PLAIN: tuple[Kind, ...] = ("joined", "center")
VIEWED: tuple[Kind, ...] = ("views", "joined")


def spaces_of(features: Features) -> tuple[Kind, ...]:
    """The spaces that these rows are compared in: the first is cut, and the others say whether that holds elsewhere."""
    return VIEWED if features.view_count else PLAIN


def neighbor_counts(rows: int, clusters: int) -> list[int]:
    """Neighbors of the graphs of a space, falling: in a small folder of many clusters neighborhoods are smaller."""
    most = min(max(FEWEST_NEIGHBORS, rows // (2 * clusters)), rows - 1)
    return [min(k, most) for k in GRAPH_NEIGHBORS]


def largest_graphs(features: Features, clusters: int) -> list[sp.csr_array]:
    """The graph of most neighbors of every space."""
    k = max(neighbor_counts(len(features), clusters))
    return [graph for space in spaces_of(features) for graph in space_graphs(features, space, [k])]


def space_graphs(features: Features, space: Kind, counts: Sequence[int]) -> list[sp.csr_array]:
    """The fuzzy graphs of the rows in a space, of so many neighbors each."""
    index, similarity = features.neighbors(max(counts), space)
    return graphs_of(index, similarity, counts)
