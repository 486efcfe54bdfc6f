"""One cache of several, whose images are disjoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from temi.cache.convert.importing import fill
from temi.cache.convert.part import Part
from temi.cache.fingerprint import IMPORTED, Fingerprint
from temi.cache.labels import renumbered
from temi.cache.manifest import Manifest
from temi.cache.schema import CacheError, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache


@dataclass(frozen=True)
class Segment:
    """Rows of a cache, which become rows of the merged one from `place` on."""

    part: Part
    labels: npt.NDArray[np.int32]  # of the whole cache, numbered as in the merged one
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
    rows = sum(len(segment.part.rows) for segment in segments)
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
        for key in Part(cache, cache.present).keys:
            if key in seen:
                raise CacheError(
                    f"{key} is in {seen[key]} and in {cache.folder}; merge caches of different images only"
                )
            seen[key] = cache.folder


def _fingerprint(caches: Sequence[EmbeddingCache]) -> Fingerprint:
    made = [cache.manifest.fingerprint for cache in caches]
    images = "".join(one.images + "\n" for one in made)
    revisions = "\n".join(dict.fromkeys(one.revision for one in made))  # one, but of imported files
    revision = xxhash.xxh3_128_hexdigest(revisions.encode()) if "\n" in revisions else revisions
    return replace(made[0], images=xxhash.xxh3_128_hexdigest(images.encode()), revision=revision)


def _plan(caches: Sequence[EmbeddingCache], classes: Sequence[str]) -> tuple[list[Segment], dict[str, tuple[int, int]]]:
    """Where the rows of each cache go: grouped by split, rows of no split last."""
    pieces: dict[str, list[Segment]] = {}
    for cache in caches:
        labels = renumbered(cache.labels, cache.classes, classes)
        for name, start, stop in _pieces(cache):
            part = Part(cache, cache.present).cut(*np.searchsorted(cache.present, (start, stop)).tolist())
            pieces.setdefault(name, []).append(Segment(part, labels, 0))
    unnamed = pieces.pop("", [])
    segments: list[Segment] = []
    splits: dict[str, tuple[int, int]] = {}
    place = 0
    for name, group in [*pieces.items(), ("", unnamed)]:
        first = place
        for segment in group:
            segments.append(replace(segment, place=place))
            place += len(segment.part.rows)
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
        first = max(segment.place, shard.start)
        part = segment.part.cut(first - segment.place, max(0, shard.stop - segment.place))
        if not len(part.rows):
            continue
        parts["embedding"].append(part.embedding)
        parts["views"].append(part.views)
        parts["keys"] += part.keys
        parts["labels"].append(segment.labels[part.rows])
        failures |= {first + place: why for place, why in part.failures.items()}
    arrays = {name: np.concatenate(parts[name]) for name in ("embedding", "views", "labels")}
    return {**arrays, "keys": parts["keys"], "failures": failures, "seconds": {}}
