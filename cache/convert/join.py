"""One cache of several encoders' caches over the same images: their embeddings side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float16

from temi.cache.convert.importing import fill, picked
from temi.cache.fingerprint import IMPORTED, Fingerprint
from temi.cache.manifest import Manifest
from temi.cache.schema import CacheError, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache

SPACES = "spaces"  # entry of a joined cache's preprocessing: what each space is, in order


def join_caches(
    folders: Sequence[Path],
    out: Path,
    *,
    shard_rows: int = 4096,
    overwrite: bool = False,
    progress: Progress = silent,
) -> EmbeddingCache:
    """Join the caches in `folders`, of one list of images, into a new one in `out`.

    A row of the result is the rows of all caches, each of unit norm, one after another: the cosine of two images is
    then the mean of their cosines in the spaces, and everything that reads a cache sees all spaces at once. Views are
    joined in order. An image that failed in one cache has failed; rows whose image is gone from the source are left
    out.

    Raises
    ------
    CacheError
        The caches are not of the same images in the same order, differ in splits or in the number of views, or `out`
        is one of them.
    """
    if len(folders) < 2:
        raise CacheError("joining takes two caches or more; name them all")
    caches = [EmbeddingCache.open(folder) for folder in folders]
    for cache in caches[1:]:
        _refuse_differences(caches[0], cache)
    rows = reduce(np.intersect1d, [cache.present for cache in caches])
    dim, shards = sum(cache.dim for cache in caches), plan_shards(len(rows), shard_rows)
    splits = {name: tuple(np.searchsorted(rows, ends).tolist()) for name, ends in caches[0].splits.items()}
    manifest = Manifest(_fingerprint(caches), len(rows), dim, shards, splits, caches[0].classes)

    def content(shard: Shard) -> Mapping[str, Any]:
        return _content(caches, rows[shard.start : shard.stop], shard.start)

    return fill(out, manifest, content, folders, overwrite=overwrite, progress=progress)


def spaces_of(cache: EmbeddingCache) -> list[int]:
    """The width of each space of a joined cache, in order; of any other cache, its one width."""
    return [space["dim"] for space in cache.manifest.fingerprint.preprocessing.get(SPACES, [{"dim": cache.dim}])]


def _refuse_differences(first: EmbeddingCache, other: EmbeddingCache) -> None:
    if other.rows != first.rows:
        raise CacheError(
            f"{other.folder} has {other.rows} images and {first.folder} has {first.rows}; "
            "join caches of the same images"
        )
    for row, (here, there) in enumerate(zip(first.keys, other.keys, strict=True)):
        if here != there:
            raise CacheError(
                f"row {row} is {here} in {first.folder} and {there} in {other.folder}; "
                "join caches of the same images in the same order"
            )
    for name in ("splits", "views", "classes"):
        if getattr(first, name) != getattr(other, name):
            raise CacheError(f"{other.folder} does not match {first.folder} in its {name}; embed both alike")
    one, two = first.manifest.fingerprint, other.manifest.fingerprint
    if IMPORTED in f"{one.pooling} {two.pooling}":  # made elsewhere: only the names of the images are known
        return
    if one.images != two.images:
        raise CacheError(
            f"{other.folder} was made from other images than {first.folder}, of the same names; embed both from the "
            "same images, with the same --digest"
        )
    if first.views and (one.view_policy, one.view_seed) != (two.view_policy, two.view_seed):
        raise CacheError(
            f"the views of {other.folder} are other crops than those of {first.folder}; embed both with the same "
            "embed.seed and view settings"
        )


def _fingerprint(caches: Sequence[EmbeddingCache]) -> Fingerprint:
    made = [cache.manifest.fingerprint for cache in caches]
    spaces = [
        {"backbone": one.backbone, "revision": one.revision, "dim": cache.dim, "preprocessing": one.preprocessing}
        for one, cache in zip(made, caches, strict=True)
    ]

    return replace(
        made[0],
        backbone=" + ".join(one.backbone for one in made),
        revision=" + ".join(one.revision for one in made),
        pooling=" + ".join(one.pooling for one in made),
        precision=" + ".join(one.precision for one in made),
        preprocessing={SPACES: spaces},
    )


def _content(caches: Sequence[EmbeddingCache], rows: npt.NDArray[np.int64], first: int) -> Mapping[str, Any]:
    """Of these rows of the caches, which become rows `first` and on."""
    unread = {row: why for cache in caches for row, why in cache.failures.items()}
    failures = {place: unread[row] for place, row in enumerate(rows.tolist()) if row in unread}
    arrays = {
        "embedding": np.concatenate([_unit(picked(cache.embedding, rows)) for cache in caches], axis=-1),
        "views": np.concatenate([_unit(picked(cache.view_embedding, rows)) for cache in caches], axis=-1),
    }
    for array in arrays.values():
        array[list(failures)] = 0
    keys = caches[0].keys
    return {
        **arrays,
        "keys": [keys[row] for row in rows],
        "labels": caches[0].labels[rows],
        "failures": {first + place: why for place, why in failures.items()},
        "seconds": {},
    }


def _unit(rows: Float16[np.ndarray, "... D"]) -> Float16[np.ndarray, "... D"]:
    """Rows of norm 1; rows of zeros stay."""
    wide = rows.astype(np.float32)
    norm = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: Float16[np.ndarray, "... D"] = (wide / np.where(norm > 0, norm, 1)).astype(np.float16)
    return unit
