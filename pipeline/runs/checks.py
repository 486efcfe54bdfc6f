"""Which rows of a cache stage two trains on, and whether they can give what the settings ask for."""

import numpy as np
from jaxtyping import Int64

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config
from temi.pipeline.errors import UserError
from temi.pipeline.features.neighbors import check_count


def training_rows(cache: EmbeddingCache, split: str = "") -> Int64[np.ndarray, " n"]:
    """Rows that stage two may train on: readable, and of `split` (empty: of ``train`` if there is one, else all)."""
    if split and split not in cache.splits:
        raise UserError(f"{cache.folder} has no split {split!r}; it has {', '.join(cache.splits) or 'none'}")
    start, stop = cache.splits.get(split or "train", (0, cache.rows))
    return start + np.flatnonzero(cache.ok[start:stop])


def rows_since(before: EmbeddingCache, now: EmbeddingCache) -> range:
    """Rows of `now` that came after `before`, where it is the same cache, grown; all of them where it is another."""
    grown = before.manifest.fingerprint.digest in [generation.fingerprint for generation in now.manifest.earlier]
    return range(before.rows if grown or before.digest == now.digest else 0, now.rows)


def check_settings(config: Config, n: int, views: int, where: str) -> None:
    """Raise a UserError where `config` asks for more than `n` images with `views` views each, of `where`, can give."""
    if n < 2:
        raise UserError(f"{where} has {n} readable images to train on; embed more (see failures.csv there)")
    if config.heads.clusters > n:
        raise UserError(
            f"heads.clusters = {config.heads.clusters} is more than the {n} images to train on; "
            f"ask for at most {n} clusters"
        )
    if "neighbors" in config.pairs.source:
        check_count(config.neighbors.k, n)
    if "views" in config.pairs.source and not views:
        raise UserError(
            f"pairs.source = {config.pairs.source} needs augmented views, and {where} has none; "
            "embed with --set embed.views=2 or use --set pairs.source=neighbors"
        )
