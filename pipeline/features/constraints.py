"""What a person said of images, as training takes it: the clusters as they were left, and pairs. No file is read."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from temi.pipeline.errors import UserError

NOWHERE = -1  # cluster of an image that is in none, or of which nothing is known

Pairs = Int64[np.ndarray, "m 2"]


@dataclass(frozen=True)
class Constraints:
    """Of n images, by name.

    Attributes
    ----------
    keys : their names
    cluster : (n,) where each was left; NOWHERE for one that was taken out of all clusters, and for one that is new
    said : (n,) True for one that a person put there, and for one that speaks for a cluster that was merged or split
    must, cannot : (m, 2) pairs that belong together, and pairs that do not; each once, the smaller position first
    """

    keys: Sequence[str]
    cluster: Int64[np.ndarray, " n"]
    said: Bool[np.ndarray, " n"]
    must: Pairs
    cannot: Pairs

    def on(self, keys: Sequence[str]) -> "Constraints":
        """The same for other images, which may be more; what is said of images that are not there is left out.

        Raises
        ------
        UserError
            None of the images is there.
        """
        there = {key: position for position, key in enumerate(keys)}
        place = np.array([there.get(key, -1) for key in self.keys], dtype=np.int64)
        if (place < 0).all():
            raise UserError(
                f"none of the images that corrections speak of is here ({self.keys[0]}, ...); train on their cache, "
                "or on one that holds them under the same names"
            )
        return self._moved(place, keys)

    def of_groups(self, first: Int64[np.ndarray, " M"], group: Int64[np.ndarray, " n"]) -> "Constraints":
        """The same where the first image of every group of copies stands for all of it.

        Raises
        ------
        UserError
            Two copies were marked as different, or put into different clusters.
        """
        for one, other in self.cannot:
            if group[one] == group[other]:
                raise UserError(
                    f"{self.keys[one]} and {self.keys[other]} were marked as different and have equal embeddings; "
                    "take that mark back"
                )
        for one, other in zip(*_chained(np.flatnonzero(self.said), group), strict=True):
            if self.cluster[one] != self.cluster[other]:
                raise UserError(
                    f"{self.keys[one]} and {self.keys[other]} were put into different clusters and have equal "
                    "embeddings; put both into one"
                )
        return self._moved(group, [self.keys[position] for position in first])

    def _moved(self, place: Int64[np.ndarray, " n"], keys: Sequence[str]) -> "Constraints":
        there = np.flatnonzero(place >= 0)
        there = there[np.argsort(self.said[there], kind="stable")]  # of copies, the one that a person placed counts
        cluster, said = np.full(len(keys), NOWHERE, dtype=np.int64), np.zeros(len(keys), dtype=bool)
        cluster[place[there]], said[place[there]] = self.cluster[there], self.said[there]
        return Constraints(keys, cluster, said, *(distinct_pairs(place[pairs]) for pairs in (self.must, self.cannot)))

    @property
    def digest(self) -> str:
        """Names what was said."""
        parts = self.cluster[self.said], np.flatnonzero(self.said), self.must, self.cannot, self.cluster
        text = "\n".join(self.keys).encode("utf-8", "surrogateescape")
        return hashlib.sha256(
            text + b"".join(np.ascontiguousarray(part, "<i8").tobytes() for part in parts)
        ).hexdigest()

    @property
    def clusters(self) -> int:
        """How many clusters the images were left in."""
        return len(np.unique(self.cluster[self.cluster != NOWHERE]))


def distinct_pairs(pairs: Int64[np.ndarray, "..."] | Iterable[tuple[int, int]]) -> Pairs:
    """Each pair once, the smaller position first; without those of one image, or of one that is not there (-1)."""
    both = np.sort(np.array(list(pairs), dtype=np.int64).reshape(-1, 2), axis=1)
    return np.unique(both[(both[:, 0] >= 0) & (both[:, 0] != both[:, 1])], axis=0)


def together(must: Pairs, count: int) -> Int64[np.ndarray, " count"]:
    """Number of the part that each of `count` images is in, where pairs that belong together make parts."""
    edges = coo_array((np.ones(len(must)), (must[:, 0], must[:, 1])), shape=(count, count))
    part: Int64[np.ndarray, " count"] = connected_components(edges, directed=False)[1].astype(np.int64)
    return part


def _chained(images: Int64[np.ndarray, " m"], group: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Every image and the next of its group, among `images`."""
    images = images[np.argsort(group[images], kind="stable")]
    same = group[images[:-1]] == group[images[1:]]
    return images[:-1][same], images[1:][same]
