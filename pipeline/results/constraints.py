"""What corrections teach a training: pairs of images that belong together or apart, and clusters of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float32, Int64

from temi.pipeline.results.corrections import (
    REMOVED,
    Correction,
    Different,
    Merge,
    Move,
    Remove,
    Same,
    Split,
    apply,
    in_force,
    positions,
    replay,
)

WITNESSES = 32  # images that speak for a cluster or a part: its most confident ones
UNKNOWN = -2  # seed of an image of which a person said nothing

Pairs = Int64[np.ndarray, "m 2"]
Keys = Sequence[str]


@dataclass(frozen=True)
class Constraints:
    """Positions of images in a table of assignments.

    Attributes
    ----------
    must, cannot : (m, 2) pairs that belong together, and pairs that do not; each once, the smaller position first
    seeds : (n,) the cluster that a person put an image into, REMOVED where none, UNKNOWN where nothing was said
    """

    must: Pairs
    cannot: Pairs
    seeds: Int64[np.ndarray, " n"]

    def located(self, keys: Keys, elsewhere: Keys) -> "Constraints":
        """The same for the images `elsewhere`, which may be more; what is said of images not there is left out."""
        place = {key: position for position, key in enumerate(elsewhere)}
        there = np.array([place.get(key, -1) for key in keys], dtype=np.int64)
        seeds = np.full(len(elsewhere), UNKNOWN, dtype=np.int64)
        seeds[there[there >= 0]] = self.seeds[there >= 0]
        must, cannot = there[self.must], there[self.cannot]
        return Constraints(_pairs(must[(must >= 0).all(1)]), _pairs(cannot[(cannot >= 0).all(1)]), seeds)


def constraints(
    keys: Keys,
    cluster: Int64[np.ndarray, " n"],
    confidence: Float32[np.ndarray, " n"],
    clusters: int,
    entries: Iterable[Correction],
) -> Constraints:
    """What `entries` say of images that a run assigned to `cluster`, before any of them.

    A merge joins the surest images of its clusters; a split parts the surest of each part from those of the others and
    joins those within; a move joins an image to the surest of where it went and parts it from the surest of where it
    was. Of pairs that a later entry contradicts, the later entry's stays.
    """
    place = {key: position for position, key in enumerate(keys)}
    said: dict[tuple[int, int], bool] = {}
    state = replay(keys, cluster, clusters, ())
    for entry in in_force(entries):
        for pair, together in _told(entry, state.cluster, confidence, place):
            one, other = sorted(map(int, pair))
            if one != other:
                said[one, other] = together
        apply(state, entry, place)
    seeds = np.where(state.by_hand, state.cluster, UNKNOWN)
    must = np.array([pair for pair, together in said.items() if together], dtype=np.int64)
    cannot = np.array([pair for pair, together in said.items() if not together], dtype=np.int64)
    return Constraints(_pairs(must), _pairs(cannot), seeds)


def _told(
    entry: Correction, cluster: Int64[np.ndarray, " n"], confidence: Float32[np.ndarray, " n"], place: dict[str, int]
) -> list[tuple[Sequence[int], bool]]:
    """Pairs and whether they belong together, by one entry on assignments as they were before it."""

    def surest(images: Int64[np.ndarray, " m"], count: int = WITNESSES) -> list[int]:
        return list(images[np.argsort(-confidence[images], kind="stable")[:count]])

    def witnesses(number: int, without: Int64[np.ndarray, " m"]) -> list[int]:
        return surest(np.setdiff1d(np.flatnonzero(cluster == number), without))

    none = np.zeros(0, dtype=np.int64)
    match entry:
        case Merge():
            return _joined([witnesses(number, none) for number in entry.clusters])
        case Split():
            parts = [surest(positions(images, place)) for images in entry.keys]
            within = [pair for part in parts for pair in _chain(part)]
            return within + _parted(parts)
        case Move():
            moved = positions(entry.keys, place)
            there = witnesses(entry.to, moved)
            told = _chain(list(moved))
            for image in moved:
                told += [((image, other), True) for other in there[:1]]
                told += [((image, other), False) for other in _left(image, cluster, moved, confidence)]
            return told
        case Remove():
            images = positions(entry.keys, place)
            return [((image, other), False) for image in images for other in _left(image, cluster, images, confidence)]
        case Same() | Different():
            return [(positions(entry.keys, place).tolist(), isinstance(entry, Same))]
    return []


def _left(
    image: int, cluster: Int64[np.ndarray, " n"], moved: Int64[np.ndarray, " m"], confidence: Float32[np.ndarray, " n"]
) -> list[int]:
    """The surest image that stays in the cluster that `image` leaves."""
    if cluster[image] == REMOVED:
        return []
    stay = np.setdiff1d(np.flatnonzero(cluster == cluster[image]), moved)
    return [int(stay[confidence[stay].argmax()])] if len(stay) else []


def _chain(images: list[int]) -> list[tuple[Sequence[int], bool]]:
    return [((one, other), True) for one, other in pairwise(images)]


def _joined(groups: list[list[int]]) -> list[tuple[Sequence[int], bool]]:
    first, *others = groups
    return [((one, other), True) for group in others for one, other in zip(first, group, strict=False)]


def _parted(groups: list[list[int]]) -> list[tuple[Sequence[int], bool]]:
    both = combinations(groups, 2)
    return [((one, other), False) for first, second in both for one, other in zip(first, second, strict=False)]


def _pairs(pairs: Int64[np.ndarray, "..."]) -> Pairs:
    return np.unique(np.sort(pairs.reshape(-1, 2), axis=1), axis=0)
