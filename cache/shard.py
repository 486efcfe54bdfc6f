"""The bytes of one shard: HDF5 out, and back in without trusting the file.

A shard is its HDF5 header followed by the datasets, one after the other without gaps. So a dataset is read with one
`readinto` straight to where its values are wanted, and its digest is taken from the same bytes on the way.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import ConfigDict, Field

from cache.files import os_errors, parse, read_sealed, write_sealed
from cache.layout import DATASETS, MAX_KEY_BYTES, SCHEMA, CacheError, Rows, Shard, dataset_dtypes, dataset_shapes
from cache.manifest import Manifest, check_schema

HEADER = "header"
_MAX_HEADER_BYTES = 2**20
_READ_BYTES = 1 << 21  # hashed while still in the processor's cache

Digest = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True)
class Failure:
    """An image that could not be read; it keeps its row, with zeros."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    row: Rows
    key: str
    reason: str


@dataclass(frozen=True)
class Sidecar:
    """``shard-XXXXX.json``, written last: its presence means that the shard is done."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    shard: Shard
    fingerprint: Digest
    size: Annotated[int, Field(ge=0, le=2**62)]  # bytes of the .h5 file
    header: Annotated[int, Field(ge=0, le=_MAX_HEADER_BYTES)]  # bytes before the first dataset
    xxh3_128: Digest  # of the whole .h5 file, as `xxhsum -H2` prints it
    digests: dict[str, Digest]  # of the header and of each dataset, so that one of them can be read and trusted alone
    failures: tuple[Failure, ...]
    seconds: dict[str, float]  # where the time went; no part of any digest

    def write(self, path: Path) -> None:
        write_sealed(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, path: Path, manifest: Manifest, shard: Shard) -> "Sidecar":
        """The sidecar at `path`; CacheError if it is damaged or not that of `shard` of this cache."""
        table = read_sealed(path)
        check_schema(table, path)
        sidecar = parse(cls, table, path)
        if sidecar.shard != shard or sidecar.fingerprint != manifest.fingerprint.digest:
            raise CacheError(f"{path} belongs to another shard or cache; {repair(path)}")
        if sidecar.digests.keys() != {HEADER, *DATASETS}:
            raise CacheError(f"{path} does not hold the digest of every dataset; {repair(path)}")
        return sidecar


def failures_csv(failures: Iterable[Failure]) -> bytes:
    """The text of ``failures.csv``: row, key, reason."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("row", "key", "reason"))
    table.writerows((failure.row, failure.key, failure.reason) for failure in failures)
    return text.getvalue().encode()


def repair(path: Path) -> str:
    """What to do about a damaged shard."""
    return f"delete {path.with_suffix('.json').name} and rerun the same `temi embed` to make this shard anew"


@dataclass(frozen=True)
class Part:
    """Where a dataset lies in its file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def encode_shard(manifest: Manifest, shard: Shard, data: Mapping[str, npt.NDArray[Any]]) -> memoryview:
    """The bytes of a shard file: a function of `data` and the manifest alone, no times and no names of machines."""
    buffer = io.BytesIO()
    # Format "v110": checksums in HDF5's own headers; the same version for low and high keeps the bytes fixed.
    with h5py.File(buffer, "w", libver=("v110", "v110"), track_order=False) as file:
        for name, value in _attributes(manifest, shard).items():
            file.attrs[name] = value
        utf8 = data["key"].view(h5py.string_dtype("utf-8", data["key"].itemsize))
        arrays = {name: utf8 if name == "key" else data[name] for name in DATASETS}
        for name, values in arrays.items():
            file.create_dataset(name, shape=values.shape, dtype=values.dtype, track_times=False)
        for name, values in arrays.items():  # written after all are created, so that their bytes follow each other
            if values.size:
                file[name][...] = values
    return buffer.getbuffer()


def _attributes(manifest: Manifest, shard: Shard) -> dict[str, Any]:
    return {
        "schema": np.int64(SCHEMA),
        "shard": np.int64(shard.index),
        "start": np.int64(shard.start),
        "fingerprint": np.bytes_(manifest.fingerprint.digest),
    }


def digest_parts(image: memoryview, header: int, data: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """Digest of the header and of each dataset in `image`, a shard's bytes."""
    digests, offset = {HEADER: xxhash.xxh3_128_hexdigest(image[:header])}, header
    for name in DATASETS:
        digests[name] = xxhash.xxh3_128_hexdigest(image[offset : offset + data[name].nbytes])
        offset += data[name].nbytes
    return digests


def encode_keys(keys: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """`keys` as UTF-8 of one width, which is the longest's: nothing is cut off."""
    try:
        encoded = [key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise CacheError(f"the image name {error.object!r} is not valid Unicode; rename it") from None
    for key in encoded:
        if len(key) > MAX_KEY_BYTES or b"\0" in key:
            raise CacheError(f"the image name {key[:80]!r} is too long or holds a zero byte; rename it")
    return np.array(encoded, dtype=f"S{max(map(len, encoded), default=0) or 1}")


class ShardFile:
    """One finished shard: its header is checked against the sidecar, its structure against the manifest."""

    def __init__(self, path: Path, manifest: Manifest, shard: Shard, sidecar: Sidecar) -> None:
        self.path = path
        self._sidecar = sidecar
        self._verified: set[str] = set()
        with os_errors(path, "read"):
            self._check_header()
            self._parts = self._check_structure(manifest, shard)

    def decoded_keys(self) -> list[str]:
        """The names of the images, digest-checked."""
        try:
            return [key.decode() for key in self.array("key").tolist()]
        except UnicodeDecodeError:
            raise self._damaged("it holds a key that is not UTF-8") from None

    def array(self, name: str) -> npt.NDArray[Any]:
        """The values of dataset `name`, digest-checked."""
        part = self._parts[name]
        values = np.empty(part.shape, part.dtype)
        self.read_into(name, values)
        return values

    def read_into(self, name: str, out: npt.NDArray[Any], start: int = 0) -> None:
        """Fill `out` with rows of dataset `name` from row `start` of the shard on.

        A dataset's digest is checked when it is first read, which reads all of it.
        """
        assert out.flags.c_contiguous
        part = self._parts[name]
        if out.shape == part.shape:
            self._read(name, part.offset, out)
            return
        if name not in self._verified:
            out[...] = self.array(name)[start : start + len(out)]
            return
        row_bytes = part.nbytes // part.shape[0]
        with os_errors(self.path, "read"), open(self.path, "rb", buffering=0) as file:
            file.seek(part.offset + start * row_bytes)
            self._fill(file, out, None)

    def _read(self, name: str, offset: int, out: npt.NDArray[Any]) -> None:
        digest = xxhash.xxh3_128()
        with os_errors(self.path, "read"), open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            self._fill(file, out, digest)
        if digest.hexdigest() != self._sidecar.digests[name]:
            raise self._damaged(f"the bytes of {name} are not those that were written")
        self._verified.add(name)

    def _fill(self, file: BinaryIO | io.RawIOBase, out: npt.NDArray[Any], digest: "xxhash.xxh3_128 | None") -> None:
        rest = out.reshape(-1).view(np.uint8).data
        while rest:
            count = file.readinto(rest[:_READ_BYTES])  # type: ignore[union-attr]
            if not count:
                raise self._damaged("the file is shorter than it was written")
            if digest is not None:
                digest.update(rest[:count])
            rest = rest[count:]

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"{self.path} is damaged: {what}; {repair(self.path)}")

    def _check_header(self) -> None:
        # Before the HDF5 library sees them, so that it is not given accidentally damaged bytes to interpret.
        size = self.path.stat().st_size
        if size != self._sidecar.size:
            raise self._damaged(f"it has {size} bytes instead of {self._sidecar.size}")
        self._read(HEADER, 0, np.empty(self._sidecar.header, np.uint8))

    def _check_structure(self, manifest: Manifest, shard: Shard) -> dict[str, Part]:
        try:
            # HDF5's own cache is of no use here: every byte is read once, past it.
            with h5py.File(self.path, "r", locking=False, rdcc_nbytes=0) as file:
                problem = _structure_problem(file, manifest, shard)
                parts = {} if problem else {name: _part(file[name]) for name in DATASETS}
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise self._damaged(f"it is not valid HDF5 ({error})") from None
        if problem:
            raise self._damaged(problem)
        self._check_tiling(parts)
        return parts

    def _check_tiling(self, parts: dict[str, Part]) -> None:
        stop = self._sidecar.header
        for part in parts.values():
            if part.nbytes and part.offset != stop:
                raise self._damaged("its datasets do not follow each other")
            stop += part.nbytes
        if stop != self._sidecar.size:
            raise self._damaged("its datasets do not fill it")


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
    return _attribute_problem(file, manifest, shard)


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


def _attribute_problem(file: h5py.File, manifest: Manifest, shard: Shard) -> str | None:
    expected = _attributes(manifest, shard)
    if set(file.attrs) != set(expected):
        return f"it has attributes {sorted(file.attrs)[:10]} instead of {sorted(expected)}"
    for name, value in expected.items():
        kind = file.attrs.get_id(name)
        if kind.dtype != np.asarray(value).dtype or kind.shape != ():
            return f"its attribute {name} has type {kind.dtype}"
        if file.attrs[name] != value:
            return f"it belongs to another cache or place ({name} is {file.attrs[name]} instead of {value})"
    return None


def _part(dataset: h5py.Dataset) -> Part:
    dtype = np.dtype(dataset.dtype.str)  # without h5py's note that keys are UTF-8
    return Part(dataset.id.get_offset() or 0, dataset.shape, dtype)
