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

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from temi.cache import CacheError, EmbeddingCache
from temi.pipeline.config import StartConfig
from temi.pipeline.features.blocks import CachedRows
from temi.pipeline.features.neighbors import mine_neighbors
from temi.pipeline.features.scaling import Kind, Scaling
from temi.pipeline.heads import objectives
from temi.pipeline.heads.optimizer import StackedAdamW
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.progress import Progress
from temi.pipeline.runs.model import load_tensors, save_tensors
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


def find_start(
    cache: EmbeddingCache, rows: Rows, clusters: int, config: StartConfig, device: torch.device, fallback: Path
) -> Start:
    """Lay out and cut. Layouts are kept in the cache (or `fallback`); labels are not read."""
    made = graph_layouts(cache, rows, clusters, config.seed, device, fallback)
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
    return Start(sample(len(rows)), clusters, aligned, chosen, level, steady, apart)


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
    cache: EmbeddingCache, rows: Rows, clusters: int, seed: int, device: torch.device, fallback: Path
) -> list[tuple[sp.csr_array, Float32[np.ndarray, "M 3"]]]:
    """A neighbor graph of the `sample` of rows, and its layout, for every space and number of neighbors.

    Layouts are made once per cache.
    """
    rows = rows[sample(len(rows))]
    most = max(FEWEST_NEIGHBORS, len(rows) // (2 * clusters))
    counts = [min(k, most, len(rows) - 1) for k in NEIGHBORS]
    recipe = f"{cache.digest} {SPACES} {counts} {EPOCHS} {seed} {device.type}"
    key = hashlib.sha256(recipe.encode() + np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()[:16]
    paths = [folder / f"layouts-{key}.safetensors" for folder in (cache.folder / "neighbors", fallback)]
    graphs = _graphs(cache, rows, counts, fallback)
    for path in paths:
        if path.exists():
            return list(zip((graph for graph, _ in graphs), load_tensors(path)[0]["layouts"].numpy(), strict=True))
    epochs = EPOCHS * (2 if len(rows) <= SMALL else 1)
    made = []
    with Progress("layouts", total=len(SPACES) * len(NEIGHBORS), unit="layout") as progress:
        for number, (graph, x) in enumerate(graphs):
            draw = 1000 * seed + number
            made.append((graph, layout(graph, principal_start(x.to(device), draw), epochs, draw, device)))
            progress.advance()
    _keep(paths, np.stack([y for _, y in made]))
    return made


def _graphs(
    cache: EmbeddingCache, rows: Rows, counts: list[int], fallback: Path
) -> Iterator[tuple[sp.csr_array, Float[Tensor, "N D"]]]:
    """For every space and count: the fuzzy graph, and the scaled embeddings it was mined from."""
    embedding = CachedRows(cache, rows)
    for space in SPACES:
        index, similarity = mine_neighbors(cache, rows, max(counts), space, fallback)
        x = Scaling.fit(space, embedding)(embedding)
        for k in counts:
            yield fuzzy_graph(index[:, :k], 1 - similarity[:, :k].astype(np.float32)), x


def _keep(paths: list[Path], layouts: Float32[np.ndarray, "L N 3"]) -> None:
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, {"layouts": torch.from_numpy(layouts)}, {})
        except (CacheError, OSError):
            continue  # a read-only cache: the fallback will do, and if not, they are made again next time
        return


def warm_start(trainer: HeadTrainer, starts: list[Start], config: StartConfig) -> None:
    """Teach every head its cuts by cross-entropy; teachers and marginals start where the students end.

    The cuts of a trial's start are dealt to its heads: head h of H learns the cuts h, h + H, ... in turn, or where
    heads are many, cut h modulo their number.
    """
    x, device, heads = trainer.data.originals, trainer.device, trainer.heads_per_trial
    known = torch.from_numpy(starts[0].rows).to(x.device)  # the same for every number of clusters
    cuts = {start.clusters: torch.from_numpy(start.cuts).to(device) for start in starts}
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = StackedAdamW(trainer.student.weights, [0.0] * len(trainer.blocks))
    with Progress("warm start", total=config.steps, unit="step") as progress:
        for step in range(config.steps):
            rows = torch.randint(len(known), (min(config.batch_size, len(known)),), generator=generator)
            batch = x[known[rows.to(x.device)]].to(device)
            rows, rate = rows.to(device), config.lr * (1 - step / config.steps)
            turn = torch.tensor(_dealt(heads, len(starts[0].cuts), step), device=device)[:, None]
            wanted = torch.cat([cuts[start.clusters][turn, rows] for start in starts])
            for number, block in enumerate(trainer.blocks):
                passed = block.student.forward(batch, trainer.student_temperature[block.heads], training=True)
                gradient, _ = objectives.softmax(passed.logits)
                gradient.scatter_add_(2, wanted[block.heads, :, None], -torch.ones_like(gradient[..., :1]))
                gradient /= len(rows)
                optimizer.step(number, block.student.gradients(passed, gradient), rate)
            progress.advance()
    trainer.begin_at_students([start.free for start in starts])


def _dealt(heads: int, cuts: int, step: int) -> list[int]:
    """The cut that each head of a trial learns at a step."""
    hands = [range(head % cuts, cuts, heads) for head in range(heads)]
    return [hand[step % len(hand)] for hand in hands]
