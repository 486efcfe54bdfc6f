"""What stage two works on: the embeddings of its rows, scaled as asked, their neighbors, and a memory of what was made.

Everything above this room takes `Features` where it needs embeddings, and knows neither caches nor folders.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float16, Int32, Int64
from torch import Tensor

from temi.cache import EmbeddingCache
from temi.cache.kept import Arrays, Recipe
from temi.cache.neighbors import Attribute, selection_digest
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.pipeline.features.blocks import CachedRows, Embeddings, blocks_of, collect
from temi.pipeline.features.copies import Groups, exact_copies
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.memory import Memory
from temi.pipeline.features.neighbors import check_count, find_neighbors
from temi.pipeline.features.scaling import Moments, Scaling
from temi.pipeline.features.unit_rows import UnitRows
from temi.pipeline.products import arithmetic

Neighbors = tuple[Int32[np.ndarray, "N K"], Float16[np.ndarray, "N K"]]
CPU = torch.device("cpu")


class Features:
    """Embeddings of N rows, and whatever is computed from them alone.

    Parameters
    ----------
    embedding : (N, D) float16 or float32, whole or read block by block
    views : (N, V, D) augmented views of the rows, if there are any
    memory : where results are kept
    """

    def __init__(self, embedding: Embeddings, views: Embeddings | None, memory: Memory) -> None:
        self.embedding, self.views, self.memory = embedding, views, memory
        self._moments, self._scalings = Moments(embedding, views), dict[Kind, Scaling]()

    @classmethod
    def of_cache(
        cls,
        cache: EmbeddingCache,
        rows: Int64[np.ndarray, " N"],
        scratch: Path | None = None,
        device: torch.device = CPU,
    ) -> Self:
        """These rows of a cache, read block by block. Results are kept beside it, else in `scratch`, else in memory."""
        views = CachedRows(cache, rows, device, views=True) if cache.views else None
        folders = cache.folder / NEIGHBOR_FOLDER, *([scratch] if scratch else [])
        memory = Memory(f"{cache.digest}-{selection_digest(rows)}", folders)
        return cls(CachedRows(cache, rows, device), views, memory)

    @classmethod
    def of_array(cls, embedding: Float[np.ndarray, "N D"], views: Float[np.ndarray, "N V D"] | None = None) -> Self:
        """Arrays in memory; nothing touches the disk."""
        return cls(_tensor(embedding), None if views is None else _tensor(views), Memory())

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def view_count(self) -> int:
        """V."""
        return 0 if self.views is None else int(self.views.shape[1])

    @property
    def device(self) -> torch.device:
        """Where blocks are handed out."""
        return self.embedding.device

    def blocks(self) -> Iterator[Float[Tensor, "n D"]]:
        """The embeddings in consecutive blocks, as stored."""
        return blocks_of(self.embedding)

    def sample(self, positions: Int64[np.ndarray, " M"]) -> "Features":
        """The features of some rows, ascending, with a memory of their own in the same place; of all rows: these."""
        if len(positions) == len(self):
            return self
        embedding = rows_at(self.embedding, positions)
        views = None if self.views is None else rows_at(self.views, positions)
        return Features(embedding, views, self.memory.of_rows(positions))

    def loaded(self) -> "Features":
        """The same with all rows in memory, as stored: for a sample that is gone through often."""
        views = None if self.views is None else _loaded(self.views)
        return Features(_loaded(self.embedding), views, self.memory)

    def distinct(self) -> "Features":
        """The first of every set of equal rows: copies would count for more than what they show."""
        return self.sample(self.copies[0])

    @cached_property
    def copies(self) -> Groups:
        """Positions of the first of every distinct row, and which of them each row equals; found once."""

        def find() -> Arrays:
            first, group = exact_copies(self.embedding)
            return {"first": first, "group": group}

        kept = self.memo("copies", {}, find)
        return kept["first"], kept["group"]

    def scaling(self, kind: Kind) -> Scaling:
        """The map of `kind`, fitted once to these rows."""
        if kind not in self._scalings:
            recipe = {"kind": kind, "views": self.view_count, "arithmetic": arithmetic(self.device)}
            kept = self.memo("scaling", recipe, lambda: Scaling.fit(kind, self._moments).to_arrays())
            self._scalings[kind] = Scaling.from_arrays(kept, self.device)
        return self._scalings[kind]

    def scaled(self, kind: Kind) -> Float[Tensor, "N P"]:
        """All rows after `scaling(kind)`, float32."""
        return self.scaling(kind)(self.embedding)

    def neighbors(self, k: int, kind: Kind) -> Neighbors:
        """The k nearest rows of each row by cosine of the scaled rows, nearest first, itself excluded; found once.

        Exact up to `EXACT_ROWS` rows; beyond, by an inverted file whose recall is measured and kept with the graph.

        Returns
        -------
        index, and cosine similarity

        Raises
        ------
        UserError
            k is not smaller than N, or faiss is missing.
        CacheError
            A graph that is kept is damaged.
        """
        check_count(k, len(self))

        def find() -> tuple[Arrays, dict[str, Attribute]]:
            index, similarity, how = find_neighbors(UnitRows(self.embedding, self.scaling(kind)), k)
            return {"index": index, "similarity": similarity}, how

        graph = self.memory.graph(k, kind, find)
        return graph["index"], graph["similarity"]

    def memo(self, name: str, recipe: Recipe, make: Callable[[], Arrays]) -> Arrays:
        """The arrays that `make` returns, made once for these embeddings and this recipe.

        Parameters
        ----------
        name : what they are, in lower case
        recipe : every setting that they depend on, besides the embeddings
        """
        return self.memory.arrays(name, recipe, make)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _loaded(embedding: Embeddings) -> Tensor:
    return collect(([block] for block in blocks_of(embedding)), [len(embedding)])[0]


def rows_at(embedding: Embeddings, positions: Int64[np.ndarray, " M"]) -> Embeddings:
    """Those at `positions`, ascending."""
    if isinstance(embedding, CachedRows):
        return embedding.at(positions)
    return embedding[torch.from_numpy(positions).to(embedding.device)]
