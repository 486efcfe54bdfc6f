"""How many clusters: an estimate without labels, from the communities of several graphs of the same rows.

A number of clusters suits the rows where the rows decide the clusters, and not the space that they are compared in. So
the graph of every space (spaces.py) is cut into k communities for a range of k, and two scores of these cuts are
multiplied. Agreement is the mutual information of two spaces' cuts, adjusted for chance (Vinh, Epps, Bailey, JMLR
2010), mean over their pairs: stability (von Luxburg, "Clustering stability", 2010), which a few coarse clusters reach
easily. Modularity (Newman 2006) is low for these, and for very many clusters. The estimate is the k of the highest
product. Rows may have several scales, such as makes and models of cars: numbers at which the spaces agree even more are
named beside the estimate. It is a suggestion: ``benchmarks/count.py`` has it against the truth.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

from temi.cache.words import counted
from temi.pipeline.config import StartConfig
from temi.pipeline.errors import UserError
from temi.pipeline.features.features import Features
from temi.pipeline.progress import Progress
from temi.pipeline.start.agreement import AGREEMENT_ROWS
from temi.pipeline.start.communities import find_communities, merge_parts
from temi.pipeline.start.find import distinct_sample
from temi.pipeline.start.graph import edge_counts
from temi.pipeline.start.spaces import largest_graphs
from temi.pipeline.threads import in_threads

LOWEST, HIGHEST = 2, 200  # number of clusters, where no range is given,
ROWS_PER_CLUSTER = 10  # and no more than one for so many rows
EVERY = 12  # up to here every number is tried,
STEP = 1.12  # from there on a geometric grid
FINEST, FINER = 0.02, 1.35  # resolutions: the first, and the ratio of two that follow

Labeling = Int64[np.ndarray, " N"]


@dataclass(frozen=True)
class Score:
    """One point of the curve: agreement of two spaces and modularity, means over pairs and over spaces."""

    clusters: int
    agreement: float
    modularity: float

    @property
    def product(self) -> float:
        """What is highest at the estimate."""
        return self.agreement * self.modularity


@dataclass(frozen=True)
class ClusterCount:
    """The estimate, why, and the curve behind it; ``clusters.json`` in the run folder."""

    clusters: int
    reason: str
    curve: tuple[Score, ...]


def parse_clusters(text: str) -> list[int] | tuple[int, int | None]:
    """Numbers of clusters; for ``auto[:LOW-HIGH]`` the range to search, None where the rows decide its end."""
    given_numbers = text.split(",")
    if all(number.isdecimal() and int(number) > 0 for number in given_numbers):
        numbers = [int(number) for number in given_numbers]
        if twice := next((number for number in numbers if numbers.count(number) > 1), None):
            raise UserError(f"--clusters names {twice} twice; name each once")
        return numbers
    if text == "auto":
        return LOWEST, None
    given = re.fullmatch(r"auto:(\d+)-(\d+)", text)
    if given is None or not LOWEST <= int(given[1]) < int(given[2]):
        raise UserError(
            f"--clusters {text!r} is neither a number, nor several such as 20,50,100, "
            "nor auto, nor auto:LOW-HIGH such as auto:5-200"
        )
    return int(given[1]), int(given[2])


def estimate_clusters(
    features: Features, config: StartConfig, lowest: int = LOWEST, highest: int | None = None
) -> ClusterCount:
    """The number of clusters that fits the rows, between `lowest` and `highest`; no label is read.

    Raises
    ------
    UserError
        The rows are too few for the range.
    """
    rows = len(features)
    most = rows // 2
    advice = f"a range that ends at {most} or below, or a number" if most > LOWEST else "a number"
    if highest is None:
        highest = min(HIGHEST, rows // ROWS_PER_CLUSTER)
        if not lowest < highest:
            needed = ROWS_PER_CLUSTER * (lowest + 1)
            raise UserError(
                f"{counted(rows, 'image is', 'images are')} too few for auto, which needs {needed}; give {advice}"
            )
    if not lowest < highest <= most:
        raise UserError(
            f"{counted(rows, 'image is', 'images are')} too few to search {lowest} to {highest} clusters; give {advice}"
        )
    distinct = distinct_sample(features, highest).features
    graphs, numbers = largest_graphs(distinct, lowest), candidates(lowest, highest)
    cuts = []
    with Progress("numbers of clusters", total=len(graphs), unit="space") as progress:
        for of_space in in_threads(lambda graph: list(cuts_into(graph, numbers, config.seed)), graphs):
            cuts.append(of_space)
            progress.advance()
    return choose(tuple(score(k, graphs, labels) for k, *labels in zip(numbers, *cuts, strict=True)))


def candidates(lowest: int, highest: int) -> list[int]:
    """Numbers to try: each up to 12, then in steps of 12 percent; both ends are among them."""
    numbers, number = [], float(lowest)
    while round(number) < highest:
        numbers.append(round(number))
        number = max(numbers[-1] + 1, number * STEP) if numbers[-1] >= EVERY else numbers[-1] + 1
    return [*numbers, highest]


def cuts_into(graph: sp.csr_array, numbers: list[int], seed: int) -> Iterator[Labeling]:
    """Communities of a graph, merged to each of the rising `numbers`.

    The resolution rises until there are enough, so that one search serves all numbers.
    """
    resolution, finer = FINEST, np.zeros(graph.shape[0], np.int64)
    for clusters in numbers:
        while finer.max() + 1 < clusters and resolution < graph.shape[0]:
            finer = find_communities(graph, resolution, seed=seed)
            resolution *= FINER
        yield merge_parts(finer, graph, clusters)


def score(clusters: int, graphs: list[sp.csr_array], labels: list[Labeling]) -> Score:
    """Agreement and modularity of one cut of each graph."""
    from sklearn.metrics import adjusted_mutual_info_score  # here: who gives a number does not wait for it

    some = slice(None, None, -(-len(labels[0]) // AGREEMENT_ROWS))
    agreement = [adjusted_mutual_info_score(a[some], b[some]) for a, b in combinations(labels, 2)]
    quality = [modularity(graph, label) for graph, label in zip(graphs, labels, strict=True)]
    return Score(clusters, float(np.mean(agreement)), float(np.mean(quality)))


def modularity(graph: sp.csr_array, label: Labeling) -> float:
    """Newman's, of a weighted graph: the share of edge weight inside clusters less what degrees alone would give."""
    share = edge_counts(graph, label)
    share /= share.sum()
    return float(share.trace() - (share.sum(0) ** 2).sum())


def choose(curve: tuple[Score, ...]) -> ClusterCount:
    """The number of the highest product; where agreement peaks above that number's, the peaks are named."""
    best = max(curve, key=lambda score: score.product)
    reason = f"agreement of the spaces ({best.agreement:.2f}) times modularity ({best.modularity:.2f}) is highest there"
    clearer = [str(peak.clusters) for peak in peaks(curve) if peak.agreement > best.agreement]
    if clearer:
        reason += f"; the spaces agree even more on {', '.join(clearer)}: the images may have more than one scale"
    if best is curve[-1]:
        reason += f"; the range ends at {best.clusters}, so the best number may be above: widen it with auto:LOW-HIGH"
    return ClusterCount(best.clusters, reason, curve)


def peaks(curve: tuple[Score, ...]) -> list[Score]:
    """Where agreement is higher than at both neighbors on the curve, its ends left out; the highest three, rising."""
    inner = zip(curve, curve[1:], curve[2:], strict=False)
    found = [b for a, b, c in inner if b.agreement > max(a.agreement, c.agreement)]
    return sorted(sorted(found, key=lambda score: -score.agreement)[:3], key=lambda score: score.clusters)
