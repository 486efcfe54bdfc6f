"""Which rows of a cache stage two trains on, and whether they can give what the settings ask for."""

import numpy as np
from jaxtyping import Int64

from temi.cache import EmbeddingCache
from temi.cache.words import counted
from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.neighbors import check_count
from temi.pipeline.heads.schedule import total_steps


def training_rows(cache: EmbeddingCache, split: str = "") -> Int64[np.ndarray, " n"]:
    """Rows that stage two may train on: readable, and of `split` (empty: of ``train`` if there is one, else all)."""
    if split and split not in cache.splits:
        raise UserError(f"{cache.folder} has no split {split!r}; it has {', '.join(cache.splits) or 'none'}")
    start, stop = cache.splits.get(split or "train", (0, cache.rows))
    return start + np.flatnonzero(cache.ok[start:stop])


def rows_since(before: EmbeddingCache, now: EmbeddingCache) -> Int64[np.ndarray, " n"]:
    """Rows of `now` that `before` had not, where it is the same cache, grown; all of them where it is another.

    An image that was gone in `before` and came back has its row of old, before those that were added.
    """
    grown = before.manifest.fingerprint.digest in [generation.fingerprint for generation in now.manifest.earlier]
    if not grown and before.digest != now.digest:
        return np.arange(now.rows)
    returned = np.array(sorted(before.manifest.gone - now.manifest.gone), np.int64)
    return np.concatenate([returned, np.arange(before.rows, now.rows)])


def check_settings(
    config: Config, n: int, views: int, where: str, *, rows: int | None = None, unreadable: bool = False
) -> None:
    """Raise a UserError where `config` asks for more than `n` images with `views` views each, of `where`, can give.

    `n` are those that differ, of `rows`, where copies are known; `unreadable`: whether `where` has others, too.
    """
    if n < 2 <= (rows or n):
        raise UserError(f"only {n} of the {rows} images of {where} differ, and copies count once; add others")
    if n < 2:
        listed = " (see failures.csv there)" if unreadable else ""
        raise UserError(f"{where} has {counted(n, 'readable image')} to train on; embed more{listed}")
    if config.heads.clusters > n:
        copies = f" ({rows} with their copies)" if rows not in (None, n) else ""
        raise UserError(
            f"heads.clusters = {config.heads.clusters} is more than the {n} images to train on{copies}; "
            f"ask for at most {counted(n, 'cluster')}"
        )
    total_steps(config, n)  # refuses what would never end
    if "neighbors" in config.pairs.source:
        check_count(config.neighbors.k, n)
    if "views" in config.pairs.source and not views:
        raise UserError(
            f"pairs.source = {config.pairs.source} needs augmented views, and {where} has none; "
            "embed with --set embed.views=2 or use --set pairs.source=neighbors"
        )
