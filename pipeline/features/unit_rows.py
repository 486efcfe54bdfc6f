"""Rows at unit norm, as a search by cosine compares them: gone through block by block, so that all need not fit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from temi.pipeline.extras import import_extra
from temi.pipeline.features.blocks import Embeddings, enumerate_blocks
from temi.pipeline.features.scaling import Scaling

BLOCK_ROWS = 4096  # rows at a time: queries of a search, and its results


def import_faiss() -> Any:
    """The faiss module, which one of two extras brings."""
    return import_extra("faiss", "gpu" if torch.cuda.is_available() else "cpu", "the search for neighbors")


def unit_rows(embedding: Float[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """A copy in float32 whose rows have norm 1; rows of zeros stay as they are."""
    unit = np.array(embedding, dtype=np.float32, order="C")
    import_faiss().normalize_L2(unit)
    return unit


class UnitRows:
    """N rows of width P at unit norm, made anew on every pass from `embedding` by `scaling`, if there is one."""

    def __init__(self, embedding: Embeddings, scaling: Scaling | None = None) -> None:
        self._embedding, self._scaling = embedding, scaling
        self.width = int(embedding.shape[-1]) if scaling is None else scaling.width

    def __len__(self) -> int:
        return len(self._embedding)

    def __iter__(self) -> Iterator[tuple[int, Float32[np.ndarray, "n P"]]]:
        """Consecutive blocks of at most BLOCK_ROWS rows, each with the position of its first."""
        for first, block in enumerate_blocks(self._embedding, BLOCK_ROWS):
            scaled = block if self._scaling is None else self._scaling.of_block(block)
            yield first, unit_rows(scaled.numpy(force=True))

    def at(self, positions: Int64[np.ndarray, " M"]) -> Float32[np.ndarray, "M P"]:
        """Those at `positions`, ascending; one pass."""
        found = np.empty((len(positions), self.width), np.float32)
        for first, block in self:
            start, stop = np.searchsorted(positions, (first, first + len(block)))
            found[start:stop] = block[positions[start:stop] - first]
        return found

    def whole(self) -> Float32[np.ndarray, "N P"]:
        """All of them in memory."""
        found = np.empty((len(self), self.width), np.float32)
        for first, block in self:
            found[first : first + len(block)] = block
        return found
