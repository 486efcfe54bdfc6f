"""The warm start: every head begins at the clusters of a graph layout of its own instead of at random.

From a random start a few thousand steps of TEMI lose to k-means on small folders. So the neighbor graph is laid out in
three dimensions several times over several scalings of the embeddings, every layout is cut into clusters, and the heads
learn the cuts before the first step of the objective. Clusterings of different layouts differ, and the loss that a head
ends at tells the good ones from the bad (pipeline/runs/model.py); heads of one common start would all end alike.

Cuts come in three kinds (pipeline/start/cuts.py): *even* ones by k-means, whose clusters are of similar size, and two
that leave sizes free: *merged* along the graph, and *dense* parts. Which kind is learned is a setting, or is decided
without labels by `choose_cut`. Where clusters are many, half of the heads that would begin at even cuts begin at
communities of the graph instead (pipeline/start/communities.py): the loss tells which of them the data bear out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64

from temi.cache.kept import Recipe
from temi.pipeline.config import StartConfig
from temi.pipeline.features.features import Features
from temi.pipeline.features.scaling import Kind
from temi.pipeline.progress import Progress
from temi.pipeline.start.agreement import agreement, align, mean_agreement
from temi.pipeline.start.communities import communities
from temi.pipeline.start.cuts import density_sizes, even_sizes, evenness, free_sizes, silhouette
from temi.pipeline.start.umap import fuzzy_graph, layout, principal_start

SPACES: tuple[Kind, ...] = ("center", "root", "whiten25", "whiten50")
NEIGHBORS = (10, 15, 15, 20)  # of the layouts of one space: they differ in graph, start and noise
FEWEST_NEIGHBORS = 5
EPOCHS = 100
SMALL = 3000  # rows up to which a layout gets twice the epochs
# Of more rows than this a random sample is laid out and cut; the heads that learn the cuts know the rest. Sixteen
# layouts of a million rows would take a day, and neighbors of so many rows are still searched exactly.
LARGEST = 100_000

CUTS = {"even": even_sizes, "merged": free_sizes, "dense": density_sizes}
MANY = 20  # clusters from which on communities of every second graph take the place of its even cut
UNEVEN = 0.8  # a free cut is believed where its evenness is below this
STEADIER = 0.005  # and its agreement from layout to layout above that of the even cuts by more than this,
LOOSER = 0.035  # and its silhouette not below that of the even cuts, which k-means all but maximizes, by more than this

Rows = Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Start:
    """What the layouts say about one number of clusters.

    Attributes
    ----------
    rows : (M,) positions of the training rows that were laid out: all, or a sample of LARGEST
    clusters : C
    cuts : (L, M) cluster of each of them in each layout; ids of different layouts are matched
    cut : the kind of these cuts, one of CUTS; of MANY clusters every second "even" one is communities
    evenness : of each kind, mean exp(entropy) / C of its cuts; 1 for equal sizes
    agreement : of each kind, mean normalized mutual information of its cuts of two layouts
    silhouette : of each kind, mean silhouette of its cuts in their layouts; empty where the kind was not to be decided
    """

    rows: Int64[np.ndarray, " M"]
    clusters: int
    cuts: Int64[np.ndarray, "L M"]
    cut: str
    evenness: Mapping[str, float]
    agreement: Mapping[str, float]
    silhouette: Mapping[str, float]

    @property
    def free(self) -> bool:
        """Whether cluster sizes were left free."""
        return self.cut != "even"

    def summary(self) -> dict[str, Any]:
        """How the sizes were decided, for the run folder."""
        sizes = "free" if self.free else "even"
        scores = {"evenness": {**self.evenness}, "agreement": {**self.agreement}, "silhouette": {**self.silhouette}}
        return {"sizes": sizes, "cut": self.cut, **scores}


def find_start(features: Features, clusters: int, config: StartConfig) -> Start:
    """Lay out and cut. Layouts are kept by `features`; labels are not read."""
    made = graph_layouts(features, clusters, config.seed)
    kinds = {"auto": tuple(CUTS), "even": ("even",), "free": ("merged", "dense")}[config.sizes]
    cuts: dict[str, list[Rows]] = {kind: [] for kind in kinds}
    apart = dict.fromkeys(kinds, 0.0) if config.sizes == "auto" else {}
    with Progress("partitions", total=len(made), unit="layout") as progress:
        for number, (graph, y) in enumerate(made):
            for kind, labels in cuts.items():
                labels.append(CUTS[kind](y, graph, clusters, 1000 * config.seed + number))
                if kind in apart:
                    apart[kind] += silhouette(y, labels[-1]) / len(made)
            progress.advance()
    level = {kind: float(np.mean([evenness(label, clusters) for label in labels])) for kind, labels in cuts.items()}
    agreements = {kind: agreement(labels) for kind, labels in cuts.items()}
    steady = {kind: mean_agreement(score) for kind, score in agreements.items()}
    chosen = choose_cut(level, steady, apart) if config.sizes == "auto" else max(steady, key=lambda kind: steady[kind])
    learned, score = cuts[chosen], agreements[chosen]
    if chosen == "even" and clusters >= MANY:
        learned = _half_communities(learned, [graph for graph, _ in made], clusters, config.seed)
        score = agreement(learned)
    aligned = align(learned, score, clusters)
    return Start(sample(len(features)), clusters, aligned, chosen, level, steady, apart)


def _half_communities(cuts: list[Rows], graphs: list[sp.csr_array], clusters: int, seed: int) -> list[Rows]:
    """The cuts, with communities of its graph in place of every second one."""
    mixed = list(cuts)
    with Progress("communities", total=len(cuts) // 2, unit="graph") as progress:
        for number in range(1, len(cuts), 2):
            mixed[number] = communities(graphs[number], clusters, 1000 * seed + number)
            progress.advance()
    return mixed


def sample(count: int) -> Rows:
    """Positions, in order, of the rows to lay out of `count`: all of them up to LARGEST."""
    if count <= LARGEST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, LARGEST, replace=False))


def choose_cut(evenness: Mapping[str, float], agreement: Mapping[str, float], silhouette: Mapping[str, float]) -> str:
    """The free kind that is uneven and steadier than the even cuts, the steadiest of two; otherwise the even cuts.

    Where clusters lie apart and differ in size, k-means halves the large ones, another way in every layout: free cuts
    agree better and lie as far apart. Where clusters overlap, free cuts follow the noise and agree less, or they join
    neighbors, which are then less far apart.
    The thresholds were chosen on 43 sets and subsets (benchmarks/RESULTS.md) such that no balanced one is freed;
    imbalanced ones whose clusters overlap stay even. Where classes are known to differ much in size,
    ``start.sizes = "free"``.
    """
    believed = [
        kind
        for kind in evenness
        if kind != "even"
        and evenness[kind] < UNEVEN
        and agreement[kind] > agreement["even"] + STEADIER
        and silhouette[kind] > silhouette["even"] - LOOSER
    ]
    return max(believed, key=lambda kind: agreement[kind], default="even")


def graph_layouts(
    features: Features, clusters: int, seed: int
) -> list[tuple[sp.csr_array, Float32[np.ndarray, "M 3"]]]:
    """A neighbor graph of the `sample` of rows, and its layout, for every space and number of neighbors."""
    positions = sample(len(features))
    laid_out = features if len(positions) == len(features) else features.sample(positions)
    rows = len(laid_out)
    most = max(FEWEST_NEIGHBORS, rows // (2 * clusters))
    counts = [min(k, most, rows - 1) for k in NEIGHBORS]
    epochs = EPOCHS * (2 if rows <= SMALL else 1)
    graphs = list(_graphs(laid_out, counts))

    def make() -> dict[str, np.ndarray]:
        made = []
        with Progress("layouts", total=len(graphs), unit="layout") as progress:
            for number, (graph, space) in enumerate(graphs):
                draw, x = 1000 * seed + number, laid_out.scaled(space)
                made.append(layout(graph, principal_start(x, draw), epochs, draw, x.device))
                progress.advance()
        return {"layouts": np.stack(made)}

    recipe: Recipe = {
        "spaces": " ".join(SPACES),
        "neighbors": " ".join(map(str, counts)),
        "epochs": epochs,
        "seed": seed,
    }
    layouts = laid_out.memo("layouts", {**recipe, "device": features.device.type}, make)["layouts"]
    return [(graph, y) for (graph, _), y in zip(graphs, layouts, strict=True)]


def _graphs(features: Features, counts: list[int]) -> Iterator[tuple[sp.csr_array, Kind]]:
    """For every space and count the fuzzy graph, and the space it was mined in."""
    for space in SPACES:
        index, similarity = features.neighbors(max(counts), space)
        for k in counts:
            yield fuzzy_graph(index[:, :k], 1 - similarity[:, :k].astype(np.float32)), space
