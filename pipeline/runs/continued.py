"""A run that goes on from another: clusters keep the numbers that people know, and what moved is said.

The new heads are trained as any are, on all rows. Then their clusters are matched one to one to those of the run
before, by the images that both know (Hungarian). A pair keeps the old number if more than half of one lies in the
other; every other cluster gets a number that no cluster had, and numbers that nobody keeps are given up for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from scipy.optimize import linear_sum_assignment

from temi.cache import EmbeddingCache
from temi.cache.words import counted
from temi.pipeline.features.blocks import CachedRows, blocks_of
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import Novelty
from temi.pipeline.runs.records import Record
from temi.pipeline.start.agreement import contingency

CONTINUED = "continued.json"
LISTED = 20  # numbers of clusters that a line names
UNKNOWN = -2  # cluster before of an image that the run before did not have; of one that a person removed it is -1


class Continued(Record):
    """How a run differs from the one that it continues; ``RUN/continued.json``.

    Attributes
    ----------
    before : folder of that run
    known, moved : images that both have, and those of them whose cluster has another number now, or that a person had
        removed, unless they stay removed
    new, unlike : images that only this run has, and those of them less like the images before than 99 % of those are
        like each other
    drift : chance that a new image lies farther from those before than one of these from the others; 0.5: no drift
    kept, begun, given_up : numbers of clusters
    """

    before: str
    known: int
    moved: int
    new: int
    unlike: int
    kept: tuple[int, ...]
    begun: tuple[int, ...]
    given_up: tuple[int, ...]
    drift: float = 0.5


@dataclass(frozen=True)
class Before:
    """What the run before leaves to one that continues it.

    Attributes
    ----------
    cluster : of each image, by key, as a person left them
    clusters : numbers that were given out
    removed : keys of images that a person took out of all clusters and that stay out
    """

    folder: Path
    cluster: dict[str, int]
    clusters: int
    model: ClusterModel
    novelty: Novelty
    removed: frozenset[str] = frozenset()

    def keep_numbers(self, model: ClusterModel, cache: EmbeddingCache) -> tuple[ClusterModel, Continued]:
        """`model` with the numbers of this run where its clusters are the same, and what became of the images."""
        rows = np.flatnonzero(cache.ok)
        before = np.array([self.cluster.get(cache.keys[row], UNKNOWN) for row in rows], np.int64)
        known, placed = before != UNKNOWN, before >= 0  # not what a person removed
        stays_out = np.array([cache.keys[row] in self.removed for row in rows], bool)
        now = model.assign(CachedRows(cache, rows))[0].cpu().numpy()
        numbers = match_numbers(now[placed], before[placed], model.clusters, self.clusters)
        total = max(self.clusters, int(numbers.max()) + 1)
        kept = numbers[numbers < self.clusters]
        likeness = self._likeness(cache, rows[~known])
        continued = Continued(
            before=str(self.folder),
            known=int(known.sum()),
            moved=int(((numbers[now] != before) & known & ~stays_out).sum()),
            new=int((~known).sum()),
            unlike=int(self.novelty.unlike(likeness).sum()),
            drift=self.novelty.drift(likeness) if len(likeness) else 0.5,
            kept=tuple(sorted(kept.tolist())),
            begun=tuple(sorted(numbers[numbers >= self.clusters].tolist())),
            given_up=tuple(sorted({number for number in self.cluster.values() if number >= 0} - set(kept.tolist()))),
        )
        return model.renumbered(torch.from_numpy(numbers), total), continued

    def _likeness(self, cache: EmbeddingCache, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Cosine of new images to the fifth nearest of those before."""
        blocks = (self.model.scaling(block).cpu().numpy() for block in blocks_of(CachedRows(cache, rows)))
        return np.concatenate([np.empty(0, np.float32), *map(self.novelty.similarity, blocks)])


def match_numbers(
    now: Int64[np.ndarray, " n"], before: Int64[np.ndarray, " n"], clusters: int, clusters_before: int
) -> Int64[np.ndarray, " C"]:
    """The number that each cluster of `now` gets, from the clusters of the same images in both."""
    shared = contingency(now, before, (clusters, clusters_before))
    own, other = linear_sum_assignment(shared, maximize=True)
    most = 2 * shared[own, other] > np.minimum(shared.sum(1)[own], shared.sum(0)[other])
    numbers = np.full(clusters, UNKNOWN, np.int64)
    numbers[own[most]] = other[most]
    fresh = numbers == UNKNOWN
    numbers[fresh] = clusters_before + np.arange(fresh.sum())
    return numbers


def describe(continued: Continued) -> list[str]:
    """Lines that tell a person what changed."""
    share = continued.moved / max(continued.known, 1)
    lines = [f"{continued.moved:,} of {continued.known:,} images that {continued.before} knew moved ({share:.1%})"]
    if continued.new:
        share = continued.unlike / continued.new
        lines.append(
            f"{counted(continued.new, 'image is', 'images are')} new: in {continued.drift:.0%} of comparisons one lies "
            f"farther from those before than one of these from the others (without drift: 50 %); {share:.1%} are less "
            "like those before than 99 % of these are like each other (without drift: 1 %)"
        )
    numbers = {*continued.kept, *continued.begun, *continued.given_up}
    gone = sorted(set(range(max(numbers, default=0))) - numbers)
    named = {"new clusters": continued.begun, "numbers given up": continued.given_up}
    named["numbers without a cluster, merged or given up before"] = tuple(gone)
    return lines + [f"{what}: {_listed(numbers)}" for what, numbers in named.items() if numbers]


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(map(str, numbers[:LISTED])) + more
