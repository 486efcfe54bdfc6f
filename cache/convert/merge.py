"""One cache of several, whose images are disjoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from temi.cache.convert.importing import fill
from temi.cache.fingerprint import Fingerprint
from temi.cache.manifest import Manifest
from temi.cache.schema import CacheError, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a cache, which become rows of the merged one from `place` on."""

    cache: EmbeddingCache
    labels: np.ndarray[Any, np.dtype[np.int32]]  # of the whole cache, numbered as in the merged one
    start: int
    stop: int
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
    second, and so on. Classes of one name become one class.

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
    rows = sum(cache.rows for cache in caches)
    manifest = Manifest(_fingerprint(caches), rows, caches[0].dim, plan_shards(rows, shard_rows), splits, classes)
    return fill(out, manifest, lambda shard: _content(segments, shard), folders, overwrite=overwrite, progress=progress)


def _refuse_differences(caches: Sequence[EmbeddingCache]) -> None:
    first = caches[0]
    for cache in caches[1:]:
        same_images = replace(cache.manifest.fingerprint, images=first.manifest.fingerprint.images)
        found = first.manifest.fingerprint.differences(same_images)
        if cache.dim != first.dim:
            found.append(f"dim: here {first.dim}, asked {cache.dim}")
        if found:
            raise CacheError(
                f"{cache.folder} does not match {first.folder} ({'; '.join(found)}); embed it with its settings"
            )


def _refuse_shared_images(caches: Sequence[EmbeddingCache]) -> None:
    seen: dict[str, Path] = {}
    for cache in caches:
        for key in dict.fromkeys(cache.keys):
            if key in seen:
                raise CacheError(
                    f"{key} is in {seen[key]} and in {cache.folder}; merge caches of different images only"
                )
            seen[key] = cache.folder


def _fingerprint(caches: Sequence[EmbeddingCache]) -> Fingerprint:
    images = "".join(cache.manifest.fingerprint.images + "\n" for cache in caches)
    return replace(caches[0].manifest.fingerprint, images=xxhash.xxh3_128_hexdigest(images.encode()))


def _plan(caches: Sequence[EmbeddingCache], classes: Sequence[str]) -> tuple[list[Segment], dict[str, tuple[int, int]]]:
    """Where the rows of each cache go: grouped by split, rows of no split last."""
    numbers = {name: number for number, name in enumerate(classes)}
    pieces: dict[str, list[Segment]] = {}
    for cache in caches:
        table = np.array([*(numbers[name] for name in cache.classes), -1], dtype=np.int32)  # label -1 stays -1
        labels = table[cache.labels]
        for name, start, stop in _pieces(cache):
            pieces.setdefault(name, []).append(Segment(cache, labels, start, stop, 0))
    unnamed = pieces.pop("", [])
    segments: list[Segment] = []
    splits: dict[str, tuple[int, int]] = {}
    place = 0
    for name, group in [*pieces.items(), ("", unnamed)]:
        first = place
        for segment in group:
            segments.append(replace(segment, place=place))
            place += segment.stop - segment.start
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
        offset = segment.place - segment.start  # row of the cache -> row of the merged one
        start, stop = max(segment.start, shard.start - offset), min(segment.stop, shard.stop - offset)
        if start >= stop:
            continue
        parts["embedding"].append(segment.cache.embedding(start, stop))
        parts["views"].append(segment.cache.view_embedding(start, stop))
        parts["keys"] += segment.cache.keys[start:stop]
        parts["labels"].append(segment.labels[start:stop])
        failures |= {row + offset: why for row, why in segment.cache.unusable.items() if start <= row < stop}
    arrays = {name: np.concatenate(parts[name]) for name in ("embedding", "views", "labels")}
    return {**arrays, "keys": parts["keys"], "failures": failures, "seconds": {}}
