"""A cache in formats that other programs read. Nothing is lost: `cache.convert.importing` makes the same cache of each.

The manifest travels along with its checksum. Half floats become float32 in Parquet, where few readers know halves;
every half is a float32, so that is exact, too.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from temi.cache.files import PART, make_folder, os_errors, write_atomic
from temi.cache.neighbors import load_neighbors, row_digests, selection_digest
from temi.cache.schema import (
    FAILURES,
    MANIFEST,
    NEIGHBOR_FOLDER,
    CacheError,
    Half,
    Progress,
    Shard,
    dataset_shapes,
    silent,
)
from temi.cache.store import EmbeddingCache

MANIFEST_KEY = "temi.manifest"
FAILURES_KEY = "temi.failures"
SUFFIXES = (".parquet", ".safetensors")
_FLOATS = ("embedding", "views")


def export_cache(cache: EmbeddingCache, out: Path, *, neighbors: str = "", progress: Progress = silent) -> None:
    """Write `cache` to `out`: a .parquet file, a .safetensors file, or else a folder of .npy files.

    `neighbors` names a neighbor graph of the cache to put into the Parquet file, in the form of Embedding Atlas.

    Raises
    ------
    CacheError
        `out` is there already, has an unknown suffix or cannot be written, or there are no such neighbors.
    """
    if out.exists():
        raise CacheError(f"{out} is there already; choose another name, or delete it")
    if not cache.rows:
        raise CacheError(f"{cache.folder} has no rows, so there is nothing to export")
    if out.suffix not in ("", *SUFFIXES):
        raise CacheError(f"cannot export to {out.suffix} files; end OUT in .parquet or .safetensors, or name a folder")
    if neighbors and out.suffix != ".parquet":
        raise CacheError(f"neighbors are exported to Parquet only; end {out} in .parquet")
    write = {".parquet": _write_parquet, ".safetensors": _write_safetensors, "": _write_npy}[out.suffix]
    part = out.with_name(out.name + PART)
    make_folder(out.parent)
    with os_errors(out, "write"):
        try:
            write(cache, part, neighbors, progress)
            part.rename(out)
        except BaseException:
            _remove(part)
            raise


def _remove(part: Path) -> None:
    if part.is_dir():
        for path in part.iterdir():
            path.unlink()
        part.rmdir()
    else:
        part.unlink(missing_ok=True)


def _write_npy(cache: EmbeddingCache, folder: Path, neighbors: str, progress: Progress) -> None:
    folder.mkdir(exist_ok=True)
    for name in _FLOATS:
        with open(folder / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f2", "fortran_order": False, "shape": _shape(cache, name)}
            )
            _write_floats(cache, name, file, progress)
    np.save(folder / "label.npy", cache.labels)
    np.save(folder / "ok.npy", cache.ok)
    (folder / "keys.txt").write_bytes("".join(f"{_line(key)}\n" for key in cache.keys).encode())
    write_atomic(folder / MANIFEST, _manifest_text(cache).encode())
    write_atomic(folder / FAILURES, (cache.folder / FAILURES).read_bytes())


def _shape(cache: EmbeddingCache, name: str) -> tuple[int, ...]:
    return dataset_shapes(cache.rows, cache.views, cache.dim)[name]


def _write_floats(cache: EmbeddingCache, name: str, file: BinaryIO, progress: Progress) -> None:
    """Append a whole dataset, a shard at a time. Not by mapping the file: a full disk would kill the process."""
    read = {"embedding": cache.embedding, "views": cache.view_embedding}[name]
    for shard in cache.manifest.shards:
        file.write(read(shard.start, shard.stop).reshape(-1).view(np.uint8).data)
        if name == _FLOATS[-1]:  # counted once, at the larger part
            progress(shard, cache.rows)


def _line(key: str) -> str:
    """`key` as one line of text; as a JSON string if it is not one by itself."""
    plain = key.isprintable() and not key.startswith('"') and key == key.strip()
    return key if plain else json.dumps(key)


def _write_safetensors(cache: EmbeddingCache, path: Path, neighbors: str, progress: Progress) -> None:
    encoded = [key.encode() for key in cache.keys]
    # Larger values first, so that each tensor starts at a multiple of its values' size.
    arrays: dict[str, tuple[str, Any]] = {
        "key_stops": ("I64", np.cumsum([len(key) for key in encoded], dtype=np.int64)),
        "label": ("I32", cache.labels),
        "embedding": ("F16", None),  # these two are read as they are written
        "views": ("F16", None),
        "ok": ("BOOL", cache.ok),
        "key_bytes": ("U8", np.frombuffer(b"".join(encoded), np.uint8)),
    }
    tensors = {
        name: (kind, _shape(cache, name), 2) if values is None else (kind, values.shape, values.itemsize)
        for name, (kind, values) in arrays.items()
    }
    metadata = {MANIFEST_KEY: _manifest_text(cache), FAILURES_KEY: json.dumps(cache.unusable)}
    with open(path, "wb") as file:
        file.write(_safetensors_header(tensors, metadata))
        for name, (_, values) in arrays.items():
            if values is None:
                _write_floats(cache, name, file, progress)
            else:
                file.write(values.tobytes())


def _safetensors_header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file; `tensors` are (type, shape, bytes per value), stored in this order."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, (kind, shape, itemsize) in tensors.items():
        stop = start + int(np.prod(shape, dtype=np.int64)) * itemsize
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _manifest_text(cache: EmbeddingCache) -> str:
    return (cache.folder / cache.manifest.file_name).read_text(encoding="utf-8")


def _write_parquet(cache: EmbeddingCache, path: Path, neighbors: str, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    graph = _neighbor_rows(cache, neighbors) if neighbors else None
    with open(path, "wb") as file:
        writer = None
        for shard, columns in _columns(cache):
            if graph is not None:
                columns["neighbors"] = _atlas_neighbors(*(part[shard.start : shard.stop] for part in graph))
            table = pa.table(columns).replace_schema_metadata({MANIFEST_KEY: _manifest_text(cache)})
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table, row_group_size=max(len(table), 1))  # one row group per shard
            progress(shard, cache.rows)
        if writer is not None:
            writer.close()


def _columns(cache: EmbeddingCache) -> Iterator[tuple[Shard, dict[str, Any]]]:
    import pyarrow as pa

    classes = np.array([*cache.classes, None], dtype=object)  # label -1 is the last one, None
    splits = np.full(cache.rows, None, dtype=object)
    for name, (start, stop) in cache.splits.items():
        splits[start:stop] = name
    for shard in cache.manifest.shards:
        rows = slice(shard.start, shard.stop)
        labels = cache.labels[rows]
        yield (
            shard,
            {
                "row": pa.array(np.arange(shard.start, shard.stop)),
                "key": pa.array(cache.keys[rows], pa.string()),
                "label": pa.array(labels),
                "class": pa.array(classes[labels], pa.string()),
                "split": pa.array(splits[rows], pa.string()),
                "ok": pa.array(cache.ok[rows]),
                "failure": pa.array([cache.unusable.get(row) for row in range(shard.start, shard.stop)], pa.string()),
                "embedding": _lists(cache.embedding(shard.start, shard.stop).astype(np.float32)),
                "views": _lists(cache.view_embedding(shard.start, shard.stop).astype(np.float32)),
            },
        )


def _lists(values: Any) -> Any:
    """An Arrow column of lists, one per row, of `values` (n, ...); the shape of a row is in the manifest."""
    import pyarrow as pa

    stops = np.arange(len(values) + 1) * int(np.prod(values.shape[1:]))
    return pa.LargeListArray.from_arrays(pa.array(stops), pa.array(values.reshape(-1)))


def _neighbor_rows(cache: EmbeddingCache, key: str) -> tuple[Any, Any]:
    """Neighbor graph `key` with a row for every row of the cache, and neighbors as rows of the cache.

    A graph is that of the rows that were trained on. Other rows have no neighbors: -1, of similarity 0.
    """
    found = load_neighbors(cache.folder / NEIGHBOR_FOLDER, key)
    if found is None:
        keys = sorted(path.stem for path in (cache.folder / NEIGHBOR_FOLDER).glob("*.h5"))
        raise CacheError(
            f"{cache.folder} has no neighbors {key!r}, only {keys}; train on it first, or name one of these"
        )
    index, similarity, attributes = found
    rows = _graph_rows(cache, key, len(index), attributes)
    aligned = np.full((cache.rows, index.shape[1]), -1, np.int32), np.zeros((cache.rows, index.shape[1]), np.float16)
    aligned[0][rows], aligned[1][rows] = rows[index], similarity
    return aligned


def _graph_rows(cache: EmbeddingCache, key: str, count: int, attributes: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """The rows of the cache that a graph of `count` rows is of.

    Those are the readable rows, of one split or of all, and maybe only the first of each set of equal ones; which, the
    attribute `embeddings` tells: digests of the cache, of the rows, and of the choice among these.
    """
    _, *chosen = str(attributes.get("embeddings", "")).split("-")
    ok = np.flatnonzero(cache.ok)
    for start, stop in [(0, cache.rows), *cache.splits.values()]:
        rows = ok[(ok >= start) & (ok < stop)]
        if chosen == [selection_digest(rows)]:
            return rows
        if chosen[:1] == [selection_digest(rows)]:
            first = _first_of_equals(cache.embedding()[rows])
            if chosen[1:] == [selection_digest(first)]:
                return rows[first]
    if not chosen and count == cache.rows:
        return np.arange(cache.rows)
    raise CacheError(f"{cache.folder} does not tell which rows the neighbors {key} are of; mine them again")


def _first_of_equals(values: Half) -> npt.NDArray[np.int64]:
    """Positions of the first of every distinct row, in order; -0 equals 0."""
    return np.sort(np.unique(row_digests(values), axis=0, return_index=True)[1]).astype(np.int64)


def _atlas_neighbors(index: Any, similarity: Any) -> Any:
    """Neighbors as Embedding Atlas documents them: {"ids": [...], "distances": [...]}, ids are row numbers from 0."""
    import pyarrow as pa

    distances = 1 - similarity.astype(np.float32)
    return pa.StructArray.from_arrays([_lists(index), _lists(distances)], ["ids", "distances"])
