"""Embeddings of some rows of a cache, read anew whenever they are gone through: a shard at a time is in memory."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from temi.cache import EmbeddingCache

BLOCK_ROWS = 8_192  # rows of a tensor that are gone through at a time: scaling one makes five copies of it


class CachedRows:
    """What stage two reads instead of a tensor of all embeddings, so that its memory does not grow with the cache.

    Parameters
    ----------
    rows : rows of the cache, ascending
    device : where blocks are wanted
    views : read their views, (n, V, D), instead of the images themselves, (n, D)
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        rows: Int64[np.ndarray, " N"],
        device: torch.device = torch.device("cpu"),  # noqa: B008
        *,
        views: bool = False,
    ) -> None:
        self.device = device
        self.shape = (len(rows), *((cache.views,) if views else ()), cache.dim)
        self._cache, self._rows, self._views = cache, rows, views

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, positions: Int64[np.ndarray, " M"]) -> "CachedRows":
        """Those at `positions`, ascending, among these rows."""
        return CachedRows(self._cache, self._rows[positions], self.device, views=self._views)

    def __iter__(self) -> Iterator[Tensor]:
        """float16 blocks in the order of the rows; their digests are checked on every pass."""
        read = self._cache.view_embedding if self._views else self._cache.embedding
        for shard in self._cache.manifest.shards:
            first, last = np.searchsorted(self._rows, (shard.start, shard.stop))
            if first < last:
                values = read(shard.start, shard.stop)
                chosen = values if last - first == shard.rows else values[self._rows[first:last] - shard.start]
                yield torch.from_numpy(chosen).to(self.device)


Embeddings = Tensor | CachedRows
"""float16 or float32 embeddings, (N, D)."""


def blocks_of(embedding: Embeddings, rows: int | None = None) -> Iterator[Tensor]:
    """Consecutive blocks of at most `rows` rows, or BLOCK_ROWS."""
    for block in [embedding] if isinstance(embedding, Tensor) else embedding:
        yield from torch.split(block, rows or BLOCK_ROWS)


def enumerate_blocks(embedding: Embeddings, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """The same, each with the position of its first row."""
    first = 0
    for block in blocks_of(embedding, rows):
        yield first, block
        first += len(block)


def collect(blocks: Iterable[Sequence[Tensor]], lengths: Sequence[int]) -> list[Tensor]:
    """Whole columns of these lengths, from consecutive parts of every column.

    Parts are written where they will stay: in a list they would lie between the large tensors that each block frees,
    and keep the C library from using that memory again.
    """
    columns: list[Tensor] = []
    done = [0] * len(lengths)
    for parts in blocks:
        columns = columns or [part.new_empty(n, *part.shape[1:]) for n, part in zip(lengths, parts, strict=True)]
        for i, part in enumerate(parts):
            columns[i][done[i] : done[i] + len(part)] = part
            done[i] += len(part)
    return columns
