"""One cache of several, whose images are disjoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from temi.cache.convert.importing import fill, picked
from temi.cache.fingerprint import IMPORTED, Fingerprint
from temi.cache.manifest import Manifest
from temi.cache.schema import CacheError, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache


@dataclass(frozen=True)
class Segment:
    """Rows of a cache, which become rows of the merged one from `place` on."""

    cache: EmbeddingCache
    labels: npt.NDArray[np.int32]  # of the whole cache, numbered as in the merged one
    rows: npt.NDArray[np.int64]  # rising
    place: int


def merge_caches(
    folders: Sequence[Path],
    out: Path,
    *,
    shard_rows: int = 4096,
    overwrite: bool = False,
    progress: Progress = silent,
) -> EmbeddingCache:
    """Merge the caches in `folders` into a new one in `out`.

    Rows of one split become neighbors: the split `train` of the result is the `train` of the first cache, then of the
    second, and so on. Classes of one name become one class. Rows whose image is gone from the source are left out.

    Raises
    ------
    CacheError
        The caches were made with different settings (named), share an image, their splits overlap, or `out` is one of
        them.
    """
    if len(folders) < 2:
        raise CacheError("merging takes two caches or more; name them all")
    caches = [EmbeddingCache.open(folder) for folder in folders]
    _refuse_differences(caches)
    _refuse_shared_images(caches)
    classes = tuple(dict.fromkeys(name for cache in caches for name in cache.classes))
    segments, splits = _plan(caches, classes)
    rows = sum(len(segment.rows) for segment in segments)
    manifest = Manifest(_fingerprint(caches), rows, caches[0].dim, plan_shards(rows, shard_rows), splits, classes)
    return fill(out, manifest, lambda shard: _content(segments, shard), folders, overwrite=overwrite, progress=progress)


def _refuse_differences(caches: Sequence[EmbeddingCache]) -> None:
    first = caches[0]
    for cache in caches[1:]:
        here, there = first.manifest.fingerprint, cache.manifest.fingerprint
        own = {"images", "revision"} if here.pooling == there.pooling == IMPORTED else {"images"}  # of every file
        found = here.differences(replace(there, **{name: getattr(here, name) for name in own}))
        if cache.dim != first.dim:
            found.append(f"dim: here {first.dim}, asked {cache.dim}")
        if found:
            raise CacheError(
                f"{cache.folder} does not match {first.folder} ({'; '.join(found)}); make both with the same settings"
            )


def _refuse_shared_images(caches: Sequence[EmbeddingCache]) -> None:
    seen: dict[str, Path] = {}
    for cache in caches:
        for key in _keys(cache, cache.present):
            if key in seen:
                raise CacheError(
                    f"{key} is in {seen[key]} and in {cache.folder}; merge caches of different images only"
                )
            seen[key] = cache.folder


def _keys(cache: EmbeddingCache, rows: npt.NDArray[np.int64]) -> list[str]:
    keys = cache.keys
    return [keys[row] for row in rows]


def _fingerprint(caches: Sequence[EmbeddingCache]) -> Fingerprint:
    made = [cache.manifest.fingerprint for cache in caches]
    images = "".join(one.images + "\n" for one in made)
    revisions = "\n".join(dict.fromkeys(one.revision for one in made))  # one, but of imported files
    revision = xxhash.xxh3_128_hexdigest(revisions.encode()) if "\n" in revisions else revisions
    return replace(made[0], images=xxhash.xxh3_128_hexdigest(images.encode()), revision=revision)


def _plan(caches: Sequence[EmbeddingCache], classes: Sequence[str]) -> tuple[list[Segment], dict[str, tuple[int, int]]]:
    """Where the rows of each cache go: grouped by split, rows of no split last."""
    numbers = {name: number for number, name in enumerate(classes)}
    pieces: dict[str, list[Segment]] = {}
    for cache in caches:
        table = np.array([*(numbers[name] for name in cache.classes), -1], dtype=np.int32)  # label -1 stays -1
        labels = table[cache.labels]
        for name, start, stop in _pieces(cache):
            rows = cache.present[np.searchsorted(cache.present, start) : np.searchsorted(cache.present, stop)]
            pieces.setdefault(name, []).append(Segment(cache, labels, rows, 0))
    unnamed = pieces.pop("", [])
    segments: list[Segment] = []
    splits: dict[str, tuple[int, int]] = {}
    place = 0
    for name, group in [*pieces.items(), ("", unnamed)]:
        first = place
        for segment in group:
            segments.append(replace(segment, place=place))
            place += len(segment.rows)
        if name:
            splits[name] = (first, place)
    return segments, splits


def _pieces(cache: EmbeddingCache) -> list[tuple[str, int, int]]:
    """(split, start, stop) that cut the rows of `cache`; the split of rows that are in none is empty."""
    pieces: list[tuple[str, int, int]] = []
    place = 0
    for name, (start, stop) in sorted(cache.splits.items(), key=lambda split: split[1]):
        if start < place:
            raise CacheError(f"the splits of {cache.folder} overlap at row {start}; merge caches without such splits")
        pieces += [("", place, start), (name, start, stop)]
        place = stop
    pieces.append(("", place, cache.rows))
    return [(name, start, stop) for name, start, stop in pieces if name or start < stop]


def _content(segments: Sequence[Segment], shard: Shard) -> Mapping[str, Any]:
    parts: dict[str, list[Any]] = {"embedding": [], "views": [], "keys": [], "labels": []}
    failures: dict[int, str] = {}
    for segment in segments:
        cache, first = segment.cache, max(segment.place, shard.start)
        rows = segment.rows[first - segment.place : max(0, shard.stop - segment.place)]
        if not len(rows):
            continue
        parts["embedding"].append(picked(cache.embedding, rows))
        parts["views"].append(picked(cache.view_embedding, rows))
        parts["keys"] += _keys(cache, rows)
        parts["labels"].append(segment.labels[rows])
        unread = cache.failures
        failures |= {place: unread[row] for place, row in enumerate(rows.tolist(), first) if row in unread}
    arrays = {name: np.concatenate(parts[name]) for name in ("embedding", "views", "labels")}
    return {**arrays, "keys": parts["keys"], "failures": failures, "seconds": {}}
