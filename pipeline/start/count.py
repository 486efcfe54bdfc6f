"""How many clusters: an estimate without labels, from the layouts that the warm start makes anyway.

Every layout is cut by k-means into k parts for a range of k. Two scores of the cuts, averaged over the layouts, peak
where k suits the data, and both err towards few clusters: silhouette where groups of classes lie together, modularity
where there are many classes (its resolution limit). So the larger of the two peaks is the estimate. It is a suggestion,
not a measurement: ``benchmarks/baselines.md`` has it against the truth.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32
from scipy.spatial import KDTree
from sklearn.cluster import KMeans

from temi.pipeline.config import StartConfig
from temi.pipeline.errors import UserError
from temi.pipeline.features.features import Features
from temi.pipeline.progress import Progress
from temi.pipeline.start.pool import layouts, neighbor_counts, space_graphs, spaces_of

LOWEST, HIGHEST = 2, 200  # number of clusters, where no range is given,
ROWS_PER_CLUSTER = 10  # and no more than one for so many rows
EVERY = 12  # up to here every number is tried,
STEP = 1.12  # from there on a geometric grid
SAMPLE = 20_000  # rows that centers are fitted to

Layout = Float32[np.ndarray, "N 3"]


@dataclass(frozen=True)
class Score:
    """One point of the curve: means over the layouts."""

    clusters: int
    silhouette: float
    modularity: float


@dataclass(frozen=True)
class ClusterCount:
    """The estimate, why, and the curve behind it."""

    clusters: int
    reason: str
    curve: tuple[Score, ...]

    def summary(self) -> dict[str, Any]:
        """As ``clusters.json`` in the run folder."""
        return asdict(self)


def parse_clusters(text: str) -> list[int] | tuple[int, int | None]:
    """Numbers of clusters; for ``auto[:LOW-HIGH]`` the range to search, None where the rows decide its end."""
    numbers = text.split(",")
    if all(number.isdecimal() and int(number) > 0 for number in numbers):
        return [int(number) for number in numbers]
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

    Layouts are kept by `features`, where the warm start finds them again.

    Raises
    ------
    UserError
        The rows are too few for the range.
    """
    rows = len(features)
    most = rows // 2
    highest = min(HIGHEST, rows // ROWS_PER_CLUSTER) if highest is None else highest
    if not lowest < highest <= most:
        raise UserError(
            f"{rows} images are too few to search {lowest} to {highest} clusters; "
            f"give a range that ends at {most} or below, or a number"
        )
    laid_out, k = layouts(features, lowest, config.seed), neighbor_counts(rows, lowest)[-1]
    numbers = candidates(lowest, highest)
    scores = np.zeros((len(laid_out), len(numbers), 2))
    with Progress("numbers of clusters", total=scores[..., 0].size, unit="cut") as progress:
        for number, space in enumerate(spaces_of(features)):
            ((_, graph),) = space_graphs(features, space, [k])
            for position, clusters in enumerate(numbers):
                scores[number, position] = cut_scores(laid_out[space], sp.coo_array(graph), clusters, config.seed)
                progress.advance()
    return choose(tuple(Score(k, *pair) for k, pair in zip(numbers, scores.mean(0).tolist(), strict=True)))


def candidates(lowest: int, highest: int) -> list[int]:
    """Numbers to try: each up to 12, then in steps of 12 percent; both ends are among them."""
    numbers, number = [], float(lowest)
    while round(number) < highest:
        numbers.append(round(number))
        number = max(numbers[-1] + 1, number * STEP) if numbers[-1] >= EVERY else numbers[-1] + 1
    return [*numbers, highest]


def cut_scores(y: Layout, edges: sp.coo_array, clusters: int, seed: int) -> tuple[float, float]:
    """Silhouette in a layout of its k-means cut, and modularity of the cut on the layout's graph.

    The silhouette is the simplified one (Hruschka et al. 2004), by distances to centers instead of all rows; modularity
    is Newman's, of the weighted graph.
    """
    sample = y[:: -(-len(y) // SAMPLE)]
    part = KMeans(clusters, n_init=1, max_iter=50, random_state=seed).fit_predict(sample)
    size = np.bincount(part, minlength=clusters)
    center = np.stack([np.bincount(part, weights=axis, minlength=clusters) for axis in sample.T], axis=1)
    used = size > 0
    distance, nearest = KDTree(center[used] / size[used, None]).query(y, k=2)
    label = nearest[:, 0]
    silhouette = 1 - (distance[:, 0] / np.maximum(distance[:, 1], 1e-12)).mean()
    share = edges.data / edges.data.sum()
    inside = share[label[edges.row] == label[edges.col]].sum()
    degree = np.bincount(label[edges.row], weights=share)
    return float(silhouette), float(inside - (degree * degree).sum())


def choose(curve: tuple[Score, ...]) -> ClusterCount:
    """The larger of the numbers at which silhouette and modularity are highest."""
    by_silhouette = max(curve, key=lambda score: score.silhouette).clusters
    by_modularity = max(curve, key=lambda score: score.modularity).clusters
    chosen = max(by_silhouette, by_modularity)
    reason = (
        f"silhouette is highest at {by_silhouette} clusters, modularity at {by_modularity}; "
        "both miss classes that are alike rather than invent some, so the larger counts"
    )
    if chosen == curve[-1].clusters:
        reason += f"; the range ends at {chosen}, so the best number may be above: widen it with auto:LOW-HIGH"
    return ClusterCount(chosen, reason, curve)
