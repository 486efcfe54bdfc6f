"""The names, types and limits of a cache on disk; docs/cache-format.md describes them for readers.

Axis letters: N rows (images), V views per row, D embedding width, n rows of one shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

SCHEMA = 1
"""Version of everything below; a cache of another version is refused, never guessed at."""

MANIFEST = "manifest.json"
FAILURES = "failures.csv"
ORIGIN = "source.json"  # a note of where the images were, kept by whoever fills a cache and not read here
SKIPPED = "skipped.csv"  # what stage one found beside the images and left out; optional, and not read here
LISTING = "listing"  # listing-00000.parquet: names and sizes of the images, kept by whoever fills a cache; optional
NEIGHBOR_FOLDER = "neighbors"

# In the order of their bytes in a shard. Embeddings come right after the header: systems read ahead best from the start
# of a file, which makes loading them from disk about 30 % faster than from its middle.
DATASETS = ("embedding", "row", "key", "label", "ok", "views")

MAX_ROWS = 2**40
MAX_DIM = 2**20
MAX_VIEWS = 2**12
MAX_KEY_BYTES = 2**16
BLOCK_BYTES = 2**20  # read, hashed and tested at a time: small enough to stay in the processor's cache meanwhile

Half = npt.NDArray[np.float16]
Rows = Annotated[int, Field(ge=0, le=MAX_ROWS)]


class CacheError(ValueError):
    """A cache that cannot be used as asked: one sentence saying what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` (exclusive) of a cache: the unit of resume, ownership and verification."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    index: Annotated[int, Field(ge=0, lt=10**8)]
    start: Rows
    stop: Rows

    @property
    def name(self) -> str:
        """File name without suffix; a function of the index alone, so no text on disk can lead out of the folder."""
        return f"shard-{self.index:05d}"

    @property
    def rows(self) -> int:
        return self.stop - self.start


Progress = Callable[[Shard, int], None]
"""Called with each shard that is done, and the number of rows in all."""


def silent(shard: Shard, rows: int) -> None:
    """A `Progress` that shows nothing."""


def plan_shards(rows: int, shard_rows: int) -> tuple[Shard, ...]:
    """Cut `rows` rows into shards of `shard_rows`, the last one shorter; every row in exactly one, in order."""
    if rows < 0 or shard_rows < 1:
        raise ValueError(f"cannot plan {rows} rows in shards of {shard_rows}")
    starts = range(0, rows, shard_rows)
    return tuple(Shard(index, start, min(start + shard_rows, rows)) for index, start in enumerate(starts))


def dataset_shapes(rows: int, views: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Shape of each dataset of a shard of `rows` rows."""
    return {
        "row": (rows,),
        "key": (rows,),
        "label": (rows,),
        "ok": (rows,),
        "embedding": (rows, dim),
        "views": (rows, views, dim),
    }


def dataset_dtypes(key_bytes: int) -> dict[str, np.dtype[Any]]:
    """Type of each dataset; keys are UTF-8, padded with zero bytes to the longest of the shard."""
    return {
        "row": np.dtype("<i8"),
        "key": np.dtype(f"S{key_bytes}"),
        "label": np.dtype("<i4"),
        "ok": np.dtype(bool),
        "embedding": np.dtype("<f2"),
        "views": np.dtype("<f2"),
    }


def all_finite(values: Half) -> bool:
    """Whether no value is NaN or infinite.

    Halves are ordered like their bits: read as signed integers the largest is an infinity (0x7C00) or a NaN (above) if
    any positive one is, read as unsigned the largest is -infinity (0xFC00) or a NaN (above) if any negative one is. Two
    maxima of integers are about 30 times faster than ``numpy.isfinite``, which converts every value.
    """
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint16)
    return all(bits_finite(bits[start : start + BLOCK_BYTES // 2]) for start in range(0, bits.size, BLOCK_BYTES // 2))


def bits_finite(bits: npt.NDArray[np.uint16]) -> bool:
    """Whether no half of these bits is NaN or infinite; `bits` is not empty."""
    return bool(np.maximum.reduce(bits.view(np.int16)) < 0x7C00 and np.maximum.reduce(bits) < 0xFC00)
