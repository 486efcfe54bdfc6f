"""What stage two works on: the embeddings of its rows, scaled as asked, their neighbors, and a memory of what was made.

Everything above this room takes `Features` where it needs embeddings, and knows neither caches nor folders.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float16, Int32, Int64
from torch import Tensor

from temi.cache import CacheError, EmbeddingCache, load_neighbors, save_neighbors
from temi.cache.kept import Arrays, Recipe, keep_first, load_kept
from temi.pipeline.features.blocks import CachedRows, Embeddings, blocks_of
from temi.pipeline.features.copies import exact_copies
from temi.pipeline.features.neighbors import check_count, find_neighbors
from temi.pipeline.features.scaling import Kind, Scaling

Neighbors = tuple[Int32[np.ndarray, "N K"], Float16[np.ndarray, "N K"]]
CPU = torch.device("cpu")


class Features:
    """Embeddings of N rows, and whatever is computed from them alone.

    Parameters
    ----------
    embedding : (N, D) float16 or float32, whole or read block by block
    views : (N, V, D) augmented views of the rows, if there are any
    digest : names the embeddings in what is kept on disk; empty: nothing is
    folders : where results are kept, the first that can be written to; none: in memory alone
    """

    def __init__(
        self, embedding: Embeddings, views: Embeddings | None = None, *, digest: str = "", folders: list[Path] | None
    ) -> None:
        self.embedding, self.views, self.digest = embedding, views, digest
        self._folders = folders if folders is not None and digest else []
        self._scalings: dict[Kind, Scaling] = {}
        self._memory: dict[tuple[str, str], Arrays] = {}

    @classmethod
    def of_cache(
        cls,
        cache: EmbeddingCache,
        rows: Int64[np.ndarray, " N"],
        scratch: Path | None = None,
        device: torch.device = CPU,
    ) -> Self:
        """These rows of a cache, read from disk block by block. Results are kept beside it, else in `scratch`."""
        chosen = hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()[:16]
        views = CachedRows(cache, rows, device, views=True) if cache.views else None
        folders = [cache.folder / "neighbors", *([scratch] if scratch else [])]
        return cls(CachedRows(cache, rows, device), views, digest=f"{cache.digest}-{chosen}", folders=folders)

    @classmethod
    def of_array(
        cls,
        embedding: Float[np.ndarray, "N D"],
        views: Float[np.ndarray, "N V D"] | None = None,
        device: torch.device = CPU,
    ) -> Self:
        """Arrays in memory; nothing touches the disk."""
        whole = torch.from_numpy(np.ascontiguousarray(embedding)).to(device)
        seen = None if views is None else torch.from_numpy(np.ascontiguousarray(views)).to(device)
        return cls(whole, seen, folders=None)

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def width(self) -> int:
        """D."""
        return int(self.embedding.shape[-1])

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
        chosen = hashlib.sha256(np.ascontiguousarray(positions, "<i8").tobytes()).hexdigest()[:16]
        embedding = _rows(self.embedding, positions)
        views = None if self.views is None else _rows(self.views, positions)
        digest = f"{self.digest}-{chosen}" if self.digest else ""
        return Features(embedding, views, digest=digest, folders=self._folders)

    def distinct(self) -> "Features":
        """The first of every set of equal rows: copies would count for more than what they show."""
        return self.sample(exact_copies(self.embedding)[0])

    def scaling(self, kind: Kind) -> Scaling:
        """The map of `kind`, fitted once to these rows."""
        if kind not in self._scalings:
            self._scalings[kind] = Scaling.fit(kind, self.embedding, self.views)
        return self._scalings[kind]

    def scaled(self, kind: Kind) -> Float[Tensor, "N P"]:
        """All rows after `scaling(kind)`, float32."""
        return self.scaling(kind)(self.embedding)

    def neighbors(self, k: int, kind: Kind) -> Neighbors:
        """The k nearest rows of each row by cosine of the scaled rows, nearest first, itself excluded.

        Exact up to `EXACT_ROWS` rows; beyond, by an inverted file whose recall is measured and kept with the graph.

        Returns
        -------
        index, and cosine similarity

        Raises
        ------
        UserError
            k is not smaller than N, or faiss is missing.
        CacheError
            No folder can be written to, or a graph that is kept is damaged.
        """
        check_count(k, len(self))
        key = hashlib.sha256(f"{self.digest} cosine {kind} {k}".encode()).hexdigest()[:16]
        for folder in self._folders:
            if stored := load_neighbors(folder, key):
                return stored[0], stored[1]
        name = f"neighbors {kind} {k}"
        if (name, "") in self._memory:
            kept = self._memory[name, ""]
            return kept["index"], kept["similarity"]
        index, similarity, found_by = find_neighbors(self.scaled(kind).numpy(force=True), k)
        made: dict[str, str | int | float] = {"metric": "cosine", "k": k, "scale": kind, "embeddings": self.digest}
        if not self._folders:
            self._memory[name, ""] = {"index": index, "similarity": similarity}
        for folder in self._folders:
            try:
                save_neighbors(folder, key, index, similarity, made | found_by)
                break
            except CacheError:
                if folder is self._folders[-1]:
                    raise
        return index, similarity

    def memo(self, name: str, recipe: Recipe, make: Callable[[], Arrays]) -> Arrays:
        """The arrays that `make` returns, made once for these embeddings and this recipe.

        Parameters
        ----------
        name : what they are, in lower case
        recipe : every setting that they depend on, besides the embeddings
        """
        full = {**recipe, "embeddings": self.digest}
        memory = (name, repr(sorted(full.items())))
        if memory in self._memory:
            return self._memory[memory]
        for folder in self._folders:
            if (arrays := load_kept(folder, name, full)) is not None:
                return arrays
        arrays = make()
        if self._folders:
            keep_first(self._folders, name, full, arrays)
        else:
            self._memory[memory] = arrays
        return arrays


def _rows(embedding: Embeddings, positions: Int64[np.ndarray, " M"]) -> Embeddings:
    if isinstance(embedding, CachedRows):
        return embedding.at(positions)
    return embedding[torch.from_numpy(positions).to(embedding.device)]
