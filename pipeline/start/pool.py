"""Many partitions of the same rows at exactly C clusters, and one score that needs no label.

Every space gives two fuzzy graphs, of 10 and 15 neighbors, and every graph its communities; the larger graph of a space
is laid out in three dimensions, and the layout is cut into parts of similar size. A partition's score is its edge
information, mean over the larger graphs of all spaces. There is no threshold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32, Int64

from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import search_bytes
from temi.pipeline.features.scaling import leading_directions
from temi.pipeline.products import product
from temi.pipeline.progress import Progress
from temi.pipeline.start.communities import communities
from temi.pipeline.start.graph import fuzzy_graph
from temi.pipeline.start.layout import EPOCHS, cut_bytes, even_cut, layout
from temi.pipeline.start.score import edge_information

# Spaces that rows are compared in. `joined` reads the views, too; a metric that views teach replaces the plain one.
PLAIN: tuple[Kind, ...] = ("center", "joined")
VIEWED: tuple[Kind, ...] = ("views", "joined")
NEIGHBORS = (10, 15)  # of the graphs of a space; the larger is the one that is laid out and that scores
FEWEST_NEIGHBORS = 5
EDGE = 40  # bytes per neighbor of a fuzzy graph: 12 an edge, 1.6 edges a neighbor; twice while laid out (measured)
CUT_COPIES = 4  # labelings of the pool: made, stacked, kept, matched
COMPONENTS = 4  # principal components that a layout begins at

Labeling = Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Pool:
    """Partitions at one number of clusters.

    Attributes
    ----------
    names : of each, as `members` has them
    labels : (P, N)
    score : edge information of each, in nats
    """

    names: tuple[str, ...]
    labels: Int64[np.ndarray, "P N"]
    score: Float[np.ndarray, " P"]

    def best(self, count: int) -> "Pool":
        """Those of the highest score, the highest first; of equals the first named."""
        kept = np.argsort(-self.score, kind="stable")[:count]
        return Pool(tuple(self.names[place] for place in kept), self.labels[kept], self.score[kept])


def make_pool(features: Features, clusters: int, seed: int) -> Pool:
    """All partitions of the rows into `clusters`, made once for these features."""
    spaces, counts = spaces_of(features), neighbor_counts(len(features), clusters)
    names = members(features, clusters)

    def make() -> dict[str, np.ndarray]:
        graphs: dict[tuple[str, int], sp.csr_array] = {}
        for space in spaces:
            graphs |= {(space, k): graph for k, graph in space_graphs(features, space, counts)}
        laid_out, labels = layouts(features, clusters, seed), []
        with Progress("partitions", len(names), "partition") as progress:
            for name in names:
                kind, own, k = name.split()
                if kind == "communities":
                    labels.append(communities(graphs[own, int(k)], clusters, seed))
                else:
                    labels.append(even_cut(laid_out[own], clusters, seed))
                progress.advance()
        score = [mean_information([graphs[space, counts[-1]] for space in spaces], label) for label in labels]
        return {"labels": np.stack(labels).astype(np.int32), "score": np.array(score)}

    kept = features.memo("pool", {"members": " ".join(names), "clusters": clusters, "seed": seed}, make)
    return Pool(tuple(names), kept["labels"].astype(np.int64), kept["score"])


def members(features: Features, clusters: int) -> list[str]:
    """Kind, space and neighbors of every partition of the pool, such as "even joined 15"."""
    spaces, counts = spaces_of(features), neighbor_counts(len(features), clusters)
    cuts = [f"communities {space} {k}" for space in spaces for k in counts]
    return cuts + [f"even {space} {counts[-1]}" for space in spaces]


def judges(features: Features, clusters: int) -> list[sp.csr_array]:
    """The graphs by which partitions are scored: the larger one of every space."""
    k = neighbor_counts(len(features), clusters)[-1]
    return [graph for space in spaces_of(features) for _, graph in space_graphs(features, space, [k])]


def mean_information(graphs: list[sp.csr_array], label: Labeling) -> float:
    """Edge information of a partition, mean over graphs."""
    return float(np.mean([edge_information(graph, label) for graph in graphs]))


def spaces_of(features: Features) -> tuple[Kind, ...]:
    """The spaces that these rows are compared in."""
    return VIEWED if features.view_count else PLAIN


def neighbor_counts(rows: int, clusters: int) -> list[int]:
    """Sizes of the graphs of a space, rising: in a small folder of many clusters neighborhoods are smaller."""
    most = max(FEWEST_NEIGHBORS, rows // (2 * clusters))
    return sorted({min(k, most, rows - 1) for k in NEIGHBORS})


def space_graphs(features: Features, space: Kind, counts: list[int]) -> Iterator[tuple[int, sp.csr_array]]:
    """The fuzzy graphs of a space; the largest, which also scores heads, is made once for these features."""
    *smaller, largest = counts
    for k in smaller:
        yield k, _fuzzy_graph(features, space, k, largest)

    def make() -> dict[str, np.ndarray]:
        graph = _fuzzy_graph(features, space, largest, largest)
        return {"weight": graph.data, "end": graph.indices, "pointer": graph.indptr}

    kept = features.memo("graph", {"space": space, "neighbors": largest}, make)
    yield largest, sp.csr_array((kept["weight"], kept["end"], kept["pointer"]), shape=(len(features), len(features)))


def _fuzzy_graph(features: Features, space: Kind, k: int, found: int) -> sp.csr_array:
    """The graph of the nearest `k` of `found` neighbors."""
    index, similarity = features.neighbors(found, space)
    return fuzzy_graph(index[:, :k], 1 - similarity[:, :k].astype(np.float32))


def layouts(features: Features, clusters: int, seed: int) -> dict[str, Float32[np.ndarray, "N 3"]]:
    """A layout of the larger graph of every space, made once for these features."""
    spaces, k = spaces_of(features), neighbor_counts(len(features), clusters)[-1]

    def make() -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        with Progress("layouts", len(spaces), "layout") as progress:
            for number, space in enumerate(spaces):
                ((_, graph),) = space_graphs(features, space, [k])
                made[space] = layout(graph, leading_components(features, space), 1000 * seed + number)
                progress.advance()
        return made

    return features.memo("layouts", {"spaces": " ".join(spaces), "neighbors": k, "epochs": EPOCHS, "seed": seed}, make)


def leading_components(features: Features, space: Kind) -> Float32[np.ndarray, "N 4"]:
    """The COMPONENTS leading principal components of the rows in `space`, or as many as there are; block by block."""
    width = features.scaling(space).width
    summed = torch.zeros(width, dtype=torch.float64, device=features.device)
    squares = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for x in features.scaled_blocks(space):
        summed += x.sum(0)
        squares += product(x.mT, x)
    mean = summed / len(features)
    basis = leading_directions(squares - len(features) * torch.outer(mean, mean), COMPONENTS)[1].float()
    return np.concatenate([((x - mean.float()) @ basis).numpy(force=True) for x in features.scaled_blocks(space)])


def pool_bytes(counts: Sequence[int], rows: int, dim: int, device: str) -> int:
    """Memory of the pools of these numbers of clusters: the most of the graphs of all spaces while one is mined or cut,
    and of the cuts while they vote.
    """
    spaces = len(PLAIN)
    graphs = spaces * sum(NEIGHBORS) * rows * EDGE
    cuts = CUT_COPIES * len(set(counts)) * spaces * (len(NEIGHBORS) + 1) * rows * np.dtype(np.int64).itemsize
    voting = rows * max(counts) * np.dtype(np.float32).itemsize
    making = max(search_bytes(rows, dim, max(NEIGHBORS), device), cut_bytes(rows, max(counts)))
    return max(graphs + making, cuts + voting)
