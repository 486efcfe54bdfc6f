"""One cache of several encoders' caches over the same images: their embeddings side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from temi.cache.convert.importing import fill
from temi.cache.convert.part import Part
from temi.cache.fingerprint import IMPORTED, JOINED, SPACES, Fingerprint
from temi.cache.manifest import Manifest
from temi.cache.schema import CacheError, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache
from temi.cache.words import counted


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
    parts = _parts(caches)
    for part in parts[1:]:
        _refuse_differences(parts[0], part)
    count, dim = len(parts[0].rows), sum(cache.dim for cache in caches)
    manifest = Manifest(
        _fingerprint(caches), count, dim, plan_shards(count, shard_rows), _splits(parts[0]), caches[0].classes
    )
    return fill(out, manifest, lambda shard: _content(parts, shard), folders, overwrite=overwrite, progress=progress)


def _parts(caches: Sequence[EmbeddingCache]) -> list[Part]:
    """What of each cache is joined: the images that are gone from the source of none."""
    parts = [Part(cache, cache.present) for cache in caches]
    gone: set[str] = set()
    for part in parts:
        if lost := part.cache.gone:  # a changed image has a later row
            gone |= {part.cache.keys[row] for row in lost} - set(part.keys)
    if not gone:
        return parts
    return [Part(part.cache, part.rows[[key not in gone for key in part.keys]]) for part in parts]


def _splits(part: Part) -> dict[str, tuple[int, int]]:
    """Splits of the cache as ranges of the rows of `part`."""
    ends = {name: np.searchsorted(part.rows, split).tolist() for name, split in part.cache.splits.items()}
    return {name: (start, stop) for name, (start, stop) in ends.items()}


def spaces_of(cache: EmbeddingCache) -> list[int]:
    """The width of each space of a joined cache, in order; of any other cache, its one width."""
    return [space["dim"] for space in cache.manifest.fingerprint.preprocessing.get(SPACES, [{"dim": cache.dim}])]


def _refuse_differences(one: Part, two: Part) -> None:
    first, other = one.cache, two.cache
    if len(one.rows) != len(two.rows):
        raise CacheError(
            f"{other.folder} has {counted(len(two.rows), 'image')} and {first.folder} has {len(one.rows)}; "
            "join caches of the same images"
        )
    for place, (here, there) in enumerate(zip(one.keys, two.keys, strict=True)):
        if here != there:
            raise CacheError(
                f"row {one.rows[place]} is {here} in {first.folder} and {there} in {other.folder}; "
                "join caches of the same images in the same order"
            )
    for name, differ in (
        ("splits", _splits(one) != _splits(two)),
        ("views", first.views != other.views),
        ("classes", first.classes != other.classes),
    ):
        if differ:
            raise CacheError(f"{other.folder} does not match {first.folder} in its {name}; embed both alike")
    _refuse_other_pictures(first, other)


def _refuse_other_pictures(first: EmbeddingCache, other: EmbeddingCache) -> None:
    """Raise a CacheError where images of the same names are known to be others, or their views."""
    one, two = first.manifest.fingerprint, other.manifest.fingerprint
    if IMPORTED in f"{one.pooling} {two.pooling}":  # made elsewhere: only the names of the images are known
        return
    if one.images != two.images and not (first.manifest.earlier or other.manifest.earlier):
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
        backbone=JOINED.join(one.backbone for one in made),
        revision=JOINED.join(one.revision for one in made),
        pooling=JOINED.join(one.pooling for one in made),
        precision=JOINED.join(one.precision for one in made),
        preprocessing={SPACES: spaces},
    )


def _content(parts: Sequence[Part], shard: Shard) -> Mapping[str, Any]:
    shown = [part.cut(shard.start, shard.stop) for part in parts]
    failures = {place: why for part in shown for place, why in part.failures.items()}
    arrays = {
        "embedding": np.concatenate([_unit(part.embedding) for part in shown], axis=-1),
        "views": np.concatenate([_unit(part.views) for part in shown], axis=-1),
    }
    for array in arrays.values():
        array[list(failures)] = 0
    return {
        **arrays,
        "keys": shown[0].keys,
        "labels": shown[0].cache.labels[shown[0].rows],
        "failures": {shard.start + place: why for place, why in failures.items()},
        "seconds": {},
    }


def _unit(rows: Float16[np.ndarray, "... D"]) -> Float16[np.ndarray, "... D"]:
    """Rows of norm 1; rows of zeros stay."""
    wide = rows.astype(np.float32)
    norm = np.linalg.norm(wide, axis=-1, keepdims=True)
    unit: Float16[np.ndarray, "... D"] = (wide / np.where(norm > 0, norm, 1)).astype(np.float16)
    return unit
