"""A nearest-neighbor graph saved beside the shards, under the key of the settings that made it."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from temi.cache.files import LOCK, Lock, make_folder, os_errors, write_atomic
from temi.cache.kept import Kept
from temi.cache.schema import MAX_ROWS, CacheError, Half

_DIGEST = "xxh3_128"
_UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError)  # what h5py raises of a damaged file
_DTYPES = {"index": np.dtype("<i4"), "similarity": np.dtype("<f2")}

Attribute = str | int | float


def selection_digest(rows: npt.NDArray[np.int64]) -> str:
    """16 hexadecimal digits that identify an ordered choice of rows."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def row_digests(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """xxh3 of the bits of every row, (n, 2), by which equal rows are found; -0 counts as 0."""
    plain = np.ascontiguousarray(rows + 0)
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, plain)), np.uint64).reshape(-1, 2)


def save_neighbors(
    folder: Path, key: str, index: npt.NDArray[np.int32], similarity: Half, attributes: Mapping[str, Attribute]
) -> Path:
    """Save a neighbor graph as ``folder/KEY.h5``, atomically, and return that path.

    Parameters
    ----------
    index, similarity
        Int32 and float16, (N, K): the K nearest rows of each row, and how similar they are.
    attributes
        What the graph was made with: metric, K, backend, digest of the embeddings.

    Raises
    ------
    CacheError
        `folder` cannot be written to.
    """
    path = _path(folder, key)
    if index.dtype != np.int32 or similarity.dtype != np.float16 or index.shape != similarity.shape or index.ndim != 2:
        raise ValueError(f"neighbors {index.dtype} {index.shape}, {similarity.dtype} {similarity.shape}")
    arrays: dict[str, npt.NDArray[Any]] = {"index": index, "similarity": similarity}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
        for name, value in {**attributes, _DIGEST: _digest(arrays, attributes)}.items():
            file.attrs[name] = _stored(value)
        for name, values in arrays.items():
            file.create_dataset(name, data=np.ascontiguousarray(values), track_times=False)
    make_folder(folder)
    with Lock.wait_for(folder / f"{path.name}{LOCK}"):
        write_atomic(path, buffer.getbuffer())
    return path


def load_neighbors(folder: Path, key: str) -> tuple[npt.NDArray[np.int32], Half, dict[str, Attribute]] | None:
    """The (index, similarity, attributes) saved under `key` in `folder`; None if there are none.

    Raises
    ------
    CacheError
        The file is damaged, or is not a neighbor graph.
    """
    path = _path(folder, key)
    if not path.exists():
        return None
    with os_errors(path, "read"), open(path, "rb") as raw:
        arrays, attributes = _read(path, raw)
    if attributes.pop(_DIGEST, None) != _digest(arrays, attributes):
        raise _damaged(path, "its bytes are not those that were written")
    return arrays["index"], arrays["similarity"], attributes


def list_neighbors(folder: Path) -> Iterator[Kept]:
    """Every neighbor graph in `folder`, by name; one that cannot be read has an empty recipe."""
    for path in sorted(folder.glob("*.h5")) if folder.is_dir() else ():
        recipe: dict[str, Attribute] = {}
        with suppress(*_UNREADABLE, CacheError), h5py.File(path, "r") as file:
            if not _problem(file, path.stat().st_size):
                recipe = {name: _loaded(file.attrs[name]) for name in file.attrs if name != _DIGEST}
        yield Kept(path, "neighbors", recipe, path.stat().st_size)


def _read(path: Path, raw: BinaryIO) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Attribute]]:
    try:
        with h5py.File(raw, "r") as file:
            if problem := _problem(file, path.stat().st_size):
                raise _damaged(path, problem)
            attributes = {name: _loaded(file.attrs[name]) for name in file.attrs}
            return {name: file[name][...] for name in _DTYPES}, attributes
    except _UNREADABLE as error:
        raise _damaged(path, str(error)) from None


def _path(folder: Path, key: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", key):
        raise ValueError(f"{key!r} cannot name a neighbor graph")
    return folder / f"{key}.h5"


def _damaged(path: Path, what: str) -> CacheError:
    return CacheError(f"{path} is damaged: {what}; delete it, the next run mines the neighbors again")


def _digest(arrays: Mapping[str, npt.NDArray[Any]], attributes: Mapping[str, Attribute]) -> str:
    digest = xxhash.xxh3_128(repr(sorted(attributes.items())).encode())
    for name in _DTYPES:
        digest.update(repr(arrays[name].shape).encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _stored(value: Attribute) -> Any:
    if isinstance(value, str):
        encoded = value.encode()
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(len(encoded), 1)))
    return np.int64(value) if isinstance(value, int) else np.float64(value)


def _loaded(value: Any) -> Attribute:
    if isinstance(value, bytes):
        return value.decode()
    return int(value) if isinstance(value, np.integer) else float(value)


def _problem(file: h5py.File, size: int) -> str | None:
    """What is not as written; nothing is followed or read before it was checked."""
    if set(file) != set(_DTYPES):
        return f"it holds {sorted(file)[:10]}"
    for name, dtype in _DTYPES.items():
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            return f"{name} is not a dataset of its own"
        dataset = file[name]
        if dataset.dtype != dtype or len(dataset.shape) != 2 or dataset.shape[0] > MAX_ROWS or dataset.nbytes > size:
            return f"{name} has type {dataset.dtype} and shape {dataset.shape}"
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
            return f"{name} is not stored as one plain block"
    if any(file.attrs.get_id(name).dtype.kind not in "Sif" or file.attrs.get_id(name).shape for name in file.attrs):
        return "it has attributes of another type"
    return "its two parts differ in shape" if file["index"].shape != file["similarity"].shape else None
