"""The HDF5 of a shard: encoded in memory; parsed without following or reading anything that was not checked before.

A shard is an HDF5 header followed by the datasets, one after the other without gaps; nothing refers from the datasets
back. Its attributes are the same in all shards of a cache, so shards of one shape have one header, byte for byte.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from temi.cache.manifest import Manifest
from temi.cache.schema import DATASETS, MAX_KEY_BYTES, SCHEMA, CacheError, Shard, dataset_dtypes, dataset_shapes

_KEY_STEP = 32  # widths of keys are multiples of it, so that most shards have the same


@dataclass(frozen=True)
class Part:
    """Where a dataset lies in its file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def encode_shard(fingerprint: str, data: Mapping[str, npt.NDArray[Any]]) -> memoryview:
    """The bytes of a shard file: a function of `data` and `fingerprint`, a digest; no times, no names of machines."""
    buffer = io.BytesIO()
    # Format "v110": checksums in HDF5's own headers; the same version for low and high keeps the bytes fixed.
    with h5py.File(buffer, "w", libver=("v110", "v110"), track_order=False) as file:
        for name, value in _attributes(fingerprint).items():
            file.attrs[name] = value
        utf8 = data["key"].view(h5py.string_dtype("utf-8", data["key"].itemsize))
        arrays = {name: utf8 if name == "key" else data[name] for name in DATASETS}
        for name, values in arrays.items():
            file.create_dataset(name, shape=values.shape, dtype=values.dtype, track_times=False)
        for name, values in arrays.items():  # written after all are created, so that their bytes follow each other
            if values.size:
                file[name][...] = values
    return buffer.getbuffer()


def _attributes(fingerprint: str) -> dict[str, Any]:
    return {
        "schema": np.int64(SCHEMA),
        "fingerprint": np.bytes_(fingerprint),
    }


def encode_keys(keys: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """`keys` as UTF-8, padded to one width that holds the longest: nothing is cut off."""
    try:
        encoded = [key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise CacheError(f"the image name {error.object!r} is not valid Unicode; rename it") from None
    for key in encoded:
        if len(key) > MAX_KEY_BYTES or b"\0" in key:
            raise CacheError(f"the image name {key[:80]!r} is too long or holds a zero byte; rename it")
    steps = -(-max(map(len, encoded), default=0) // _KEY_STEP) or 1
    return np.array(encoded, dtype=f"S{steps * _KEY_STEP}")


def parse_structure(path: Path, manifest: Manifest, shard: Shard, header: int, size: int) -> dict[str, Part]:
    """Where the datasets of `shard` at `path` lie; it has `size` bytes, `header` of them before the datasets.

    Raises ValueError that names what breaks the layout. A link in the file opens no other file.
    """
    try:
        # Open through Python: HDF5 takes no lock, so other handles in this process stay valid.
        with open(path, "rb") as raw, h5py.File(raw, "r") as file:
            if problem := _structure_problem(file, manifest, shard):
                raise ValueError(problem)
            parts = {name: _part(file[name]) for name in DATASETS}
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"it is not valid HDF5 ({error})") from None
    stop = header
    for part in sorted((part for part in parts.values() if part.nbytes), key=lambda part: part.offset):
        if part.offset != stop:
            raise ValueError("its datasets do not follow each other")
        stop += part.nbytes
    if stop != size:
        raise ValueError("its datasets do not fill it")
    return parts


def _structure_problem(file: h5py.File, manifest: Manifest, shard: Shard) -> str | None:
    """What is not as the layout says; None if all is. Nothing is followed or read before it was checked."""
    if set(file) != set(DATASETS):
        return f"it holds {sorted(file)[:10]} instead of {sorted(DATASETS)}"
    shapes = dataset_shapes(shard.rows, manifest.views, manifest.dim)
    for name in DATASETS:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            return f"{name} is a link to another place"
        if not isinstance(file[name], h5py.Dataset):
            return f"{name} is not a dataset"
        if problem := _dataset_problem(file[name], shapes[name]):
            return f"{name} {problem}"
    return _attribute_problem(file, manifest.fingerprint_of(shard))


def _dataset_problem(dataset: h5py.Dataset, shape: tuple[int, ...]) -> str | None:
    if dataset.shape != shape:
        return f"has shape {dataset.shape} instead of {shape}"
    name = dataset.name.rpartition("/")[2]
    width = dataset.dtype.itemsize if name == "key" and dataset.dtype.kind == "S" else 1
    if dataset.dtype != dataset_dtypes(width)[name] or not 1 <= width <= MAX_KEY_BYTES:
        return f"has type {dataset.dtype}"
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count() or dataset.attrs:
        return "is not stored as one plain block"
    return None


def _attribute_problem(file: h5py.File, fingerprint: str) -> str | None:
    expected = _attributes(fingerprint)
    if set(file.attrs) != set(expected):
        return f"it has attributes {sorted(file.attrs)[:10]} instead of {sorted(expected)}"
    for name, value in expected.items():
        kind = file.attrs.get_id(name)
        if kind.dtype != np.asarray(value).dtype or kind.shape != ():
            return f"its attribute {name} has type {kind.dtype}"
        if file.attrs[name] != value:
            return f"it belongs to another cache ({name} is {file.attrs[name]} instead of {value})"
    return None


def _part(dataset: h5py.Dataset) -> Part:
    dtype = np.dtype(dataset.dtype.str)  # without h5py's note that keys are UTF-8
    return Part(dataset.id.get_offset() or 0, dataset.shape, dtype)
