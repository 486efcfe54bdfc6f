"""Caches made of what `cache.convert.export` wrote, or of embeddings made elsewhere."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from temi.cache.convert.formats import Rows, Source, open_source
from temi.cache.files import file_digest, os_errors
from temi.cache.fingerprint import IMPORTED, Fingerprint
from temi.cache.halves import to_halves
from temi.cache.manifest import Manifest
from temi.cache.schema import MAX_DIM, CacheError, Half, Progress, Shard, plan_shards, silent
from temi.cache.store import EmbeddingCache
from temi.cache.words import counted
from temi.cache.writer import ShardWriter

Content = Callable[[Shard], Mapping[str, Any]]


def fill(
    folder: Path, manifest: Manifest, content: Content, made_of: Sequence[Path], *, overwrite: bool, progress: Progress
) -> EmbeddingCache:
    """Write a cache whose shards' values come from `content`; resumes one that was interrupted.

    Raises
    ------
    CacheError
        `folder` is, or holds, what the cache is `made_of`, as overwriting would delete it first; or lies in it.
    """
    for place in made_of:
        if place.resolve().is_relative_to(folder.resolve()):
            raise CacheError(f"{folder} is, or holds, {place}, which the new cache is made of; give another --out")
        if folder.resolve().is_relative_to(place.resolve()):
            raise CacheError(f"{folder} lies in {place}, which the new cache is made of; give another --out")
    with ShardWriter.open(folder, manifest, overwrite=overwrite) as writer:
        for shard in writer.pending():
            writer.write(shard, **content(shard))
            progress(shard, manifest.rows)
        cache = writer.finish()
    assert cache is not None  # this is the only worker
    return cache


def import_embeddings(
    source: Path,
    folder: Path,
    *,
    keys: Path | None = None,
    labels: Path | None = None,
    backbone: str = "",
    shard_rows: int = 4096,
    overwrite: bool = False,
    progress: Progress = silent,
) -> EmbeddingCache:
    """Make a cache in `folder` of `source`.

    An exported cache (.parquet, .safetensors, or a folder of .npy files) gives the same cache again, byte for byte.
    Embeddings made elsewhere may be

    - a .npy file (N, D) with `keys`, a text file of one image name per line, and maybe `labels`, a .npy file (N,);
    - a Parquet file with columns ``embedding`` (lists) and ``key``, and maybe ``label``;
    - a safetensors file with tensor ``embedding`` (N, D), and `keys`; maybe ``views`` (N, V, D) and ``label`` (N,).

    They are stored as float16 (see `to_halves`), labels are those of `number_labels`; `backbone` says where the
    embeddings come from. Nothing is unpickled.

    Raises
    ------
    CacheError
        `source` is none of these or empty or in `folder`, its parts differ in length, a key is empty, two keys are
        equal, or float16 does not hold a row.
    """
    with os_errors(source, "read"):
        opened = open_source(source, keys, labels)
    if opened.manifest is None:
        _refuse_empty(opened)
    elif given := [name for name, value in (("keys", keys), ("labels", labels), ("backbone", backbone)) if value]:
        raise CacheError(
            f"{source} is an exported cache, which has names, labels and a backbone of its own; leave out "
            + " and ".join(f"--{name}" for name in given)
        )
    manifest = opened.manifest or _manifest(opened, backbone, shard_rows)
    _check_lengths(opened, manifest)
    _refuse_twins(opened)
    made_of = [place for place in (source, keys, labels) if place is not None]
    return fill(folder, manifest, _content(opened, manifest), made_of, overwrite=overwrite, progress=progress)


def _refuse_empty(source: Source) -> None:
    """Embeddings without rows or numbers, and images without a name, are mistakes of whoever made them."""
    rows, dim = source.embedding.shape
    if not (rows and 1 <= dim <= MAX_DIM):
        raise CacheError(
            f"{source.path} holds {counted(rows, 'embedding')} of {counted(dim, 'number')}; "
            f"give at least one embedding, each of 1 to {MAX_DIM} numbers"
        )
    if "" in source.keys:
        raise CacheError(
            f"{source.path}: image name {list(source.keys).index('') + 1} is empty; give every image a name"
        )


def _manifest(source: Source, backbone: str, shard_rows: int) -> Manifest:
    views = source.views.shape[1] if source.views is not None else 0
    fingerprint = Fingerprint(
        backbone=backbone or "imported",
        revision=file_digest(source.path),
        preprocessing={},
        pooling=IMPORTED,
        precision=source.precision,
        view_policy={},
        view_seed=0,
        views=views,
        images=xxhash.xxh3_128_hexdigest("\0".join(source.keys).encode(errors="replace")),
    )
    rows, dim = source.embedding.shape
    return Manifest(fingerprint, rows, dim, plan_shards(rows, shard_rows), splits={}, classes=source.classes)


def _check_lengths(source: Source, manifest: Manifest) -> None:
    lengths = {"embedding": source.embedding.shape[0], "keys": len(source.keys), "labels": len(source.labels)}
    if source.views is not None:
        lengths["views"] = source.views.shape[0]
    if set(lengths.values()) != {manifest.rows}:
        found = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise CacheError(f"{source.path} does not fit together: {found}; give one of each for every image")


def _refuse_twins(source: Source) -> None:
    """Keys tell the rows of every table apart."""
    counts = Counter(source.keys)
    if len(counts) < len(source.keys):
        key, count = counts.most_common(1)[0]
        raise CacheError(f"{source.path} holds {count} rows with the key {key!r}; give every row a key of its own")


def _content(source: Source, manifest: Manifest) -> Content:
    def content(shard: Shard) -> Mapping[str, Any]:
        rows = slice(shard.start, shard.stop)
        views: Half = np.empty((shard.rows, 0, manifest.dim), np.float16)
        if manifest.views and source.views is not None:
            views = _halves(source, source.views, shard).reshape(shard.rows, manifest.views, manifest.dim)
        return {
            "embedding": _halves(source, source.embedding, shard),
            "views": views,
            "keys": source.keys[rows],
            "labels": source.labels[rows],
            "failures": {row: why for row, why in source.failures.items() if shard.start <= row < shard.stop},
            "seconds": {},
        }

    return content


def _halves(source: Source, values: Rows, shard: Shard) -> Half:
    def name(row: int) -> str:
        row += shard.start
        return f"{source.path}: the embedding of {source.keys[row]} (row {row})"

    return to_halves(np.asarray(values[shard.start : shard.stop]), name)
