"""Some rows of a cache: what is taken of it into another, without rows whose image is gone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from temi.cache.schema import Half
from temi.cache.store import EmbeddingCache


@dataclass(frozen=True)
class Part:
    """Rows of a cache, rising and mostly neighbors."""

    cache: EmbeddingCache
    rows: npt.NDArray[np.int64]

    def cut(self, start: int, stop: int) -> "Part":
        """The rows from place `start` to before `stop` among these."""
        return Part(self.cache, self.rows[start:stop])

    @cached_property
    def keys(self) -> list[str]:
        """Names of the images."""
        keys = self.cache.keys
        return [keys[row] for row in self.rows]

    @property
    def failures(self) -> dict[int, str]:
        """Why an image could not be read, by its place among these rows."""
        unread = self.cache.failures
        return {place: unread[row] for place, row in enumerate(self.rows.tolist()) if row in unread}

    @property
    def embedding(self) -> Half:
        """Embeddings, float16 (n, D)."""
        return self._read(self.cache.embedding)

    @property
    def views(self) -> Half:
        """Embeddings of the views, float16 (n, V, D)."""
        return self._read(self.cache.view_embedding)

    def _read(self, read: Callable[[int, int], Half]) -> Half:
        first = int(self.rows[0])
        return read(first, int(self.rows[-1]) + 1)[self.rows - first]
