"""One finished shard: its sidecar, and reading it without trusting it.

Datasets lie in a shard as plain blocks, so they are read straight to where their values are wanted, and their digest is
taken from the same bytes on the way.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import xxhash
from pydantic import ConfigDict, Field

from temi.cache.files import csv_bytes, os_errors, parse, read_sealed, write_sealed
from temi.cache.hdf5 import Part, parse_structure
from temi.cache.manifest import Manifest, check_schema
from temi.cache.schema import (
    BLOCK_BYTES,
    DATASETS,
    SCHEMA,
    CacheError,
    Rows,
    Shard,
    bits_finite,
)

HEADER = "header"
_MAX_HEADER_BYTES = 2**20

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
        if sidecar.shard != shard or sidecar.fingerprint != manifest.fingerprint_of(shard):
            raise CacheError(f"{path} belongs to another shard or cache; {repair(path)}")
        if sidecar.digests.keys() != {HEADER, *DATASETS}:
            raise CacheError(f"{path} does not hold the digest of every dataset; {repair(path)}")
        return sidecar


def unreadable(sidecars: Iterable[Sidecar], manifest: Manifest) -> list[Failure]:
    """Images that could not be read, without those that have left the source since: they are gone instead."""
    gone = manifest.gone
    return [failure for sidecar in sidecars for failure in sidecar.failures if failure.row not in gone]


def failures_csv(failures: Iterable[Failure]) -> bytes:
    """The text of ``failures.csv``: row, key, reason."""
    return csv_bytes([("row", "key", "reason"), *((failure.row, failure.key, failure.reason) for failure in failures)])


def repair(path: Path) -> str:
    """What to do about a damaged shard."""
    return f"delete {path.with_suffix('.json').name} and rerun the command that made the cache to make this shard anew"


def digest_parts(image: memoryview, header: int, data: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """Digest of the header and of each dataset in `image`, a shard's bytes."""
    digests, offset = {HEADER: xxhash.xxh3_128_hexdigest(image[:header])}, header
    for name in DATASETS:
        digests[name] = xxhash.xxh3_128_hexdigest(image[offset : offset + data[name].nbytes])
        offset += data[name].nbytes
    return digests


Structures = dict[tuple[str, int], dict[str, Part]]
"""Digest of a header, size of the file -> its datasets. Equal headers are parsed once per cache, not once per shard."""


class ShardFile:
    """One finished shard. Before anything else of it is read, its header and structure are checked."""

    def __init__(self, path: Path, manifest: Manifest, sidecar: Sidecar, structures: Structures) -> None:
        self.path = path
        self._manifest = manifest
        self._sidecar = sidecar
        self._structures = structures
        self._parts: dict[str, Part] = {}
        self._verified: set[str] = set()
        self._checked: tuple[int, ...] = ()  # identity of the file that `_parts` and `_verified` speak of

    def decoded_keys(self) -> list[str]:
        """The names of the images, digest-checked."""
        try:
            return [key.decode() for key in self.array("key").tolist()]
        except UnicodeDecodeError:
            raise self._damaged("it holds a key that is not UTF-8") from None

    def array(self, name: str) -> npt.NDArray[Any]:
        """The values of dataset `name`, digest-checked."""
        with self._opened() as file:
            return self._whole(file, name)

    def read_into(self, name: str, out: npt.NDArray[Any], start: int = 0) -> None:
        """Fill `out` with rows of dataset `name` from row `start` of the shard on.

        A dataset's digest is checked whenever all of it is read; for a part of it, which needs all of it, once, and
        again when the file has changed.
        """
        assert out.flags.c_contiguous
        with self._opened() as file:
            part = self._parts[name]
            if out.shape == part.shape:
                self._read(file, name, part.offset, out)
            elif name not in self._verified:
                out[...] = self._whole(file, name)[start : start + len(out)]
            else:
                row_bytes = part.nbytes // part.shape[0]
                for _ in self._fill(file, part.offset + start * row_bytes, out):
                    pass

    @contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        # One file for header and data: read from its start on, it is read ahead by the system.
        with os_errors(self.path, "read"), open(self.path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            found = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if found != self._checked:
                self._checked = ()
                self._verified.clear()
                self._parts = self._checked_parts(file)
                self._checked = found
            yield file

    def _checked_parts(self, file: io.FileIO) -> dict[str, Part]:
        sidecar = self._sidecar
        size = os.fstat(file.fileno()).st_size
        if size != sidecar.size:
            raise self._damaged(f"it has {size} bytes instead of {sidecar.size}")
        # The HDF5 library is not given bytes that were damaged by accident.
        self._read(file, HEADER, 0, np.empty(sidecar.header, np.uint8))
        key = (sidecar.digests[HEADER], size)
        if key not in self._structures:
            try:
                parts = parse_structure(self.path, self._manifest, sidecar.shard, sidecar.header, size)
            except ValueError as error:
                raise self._damaged(str(error)) from None
            self._structures[key] = parts
        return self._structures[key]

    def _whole(self, file: io.FileIO, name: str) -> npt.NDArray[Any]:
        part = self._parts[name]
        values = np.empty(part.shape, part.dtype)
        self._read(file, name, part.offset, values)
        return values

    def _read(self, file: io.FileIO, name: str, offset: int, out: npt.NDArray[Any]) -> None:
        digest = xxhash.xxh3_128()
        halves, finite = out.dtype == np.float16, True
        for block in self._fill(file, offset, out):
            digest.update(block.data)
            if halves:
                finite &= bits_finite(block.view(np.uint16))
        if digest.hexdigest() != self._sidecar.digests[name]:
            raise self._damaged(f"the bytes of {name} are not those that were written")
        if not finite:
            raise CacheError(f"{self.path} holds values of {name} that are not finite; embed again")
        self._verified.add(name)

    def _fill(self, file: io.FileIO, offset: int, out: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.uint8]]:
        """Read `file` from `offset` on into `out`, block by block; each block is given out as soon as it is there."""
        values = out.reshape(-1).view(np.uint8)
        file.seek(offset)
        for start in range(0, values.size, BLOCK_BYTES):
            block = values[start : start + BLOCK_BYTES]
            rest = block.data
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise self._damaged("the file is shorter than it was written")
                rest = rest[count:]
            yield block

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"{self.path} is damaged: {what}; {repair(self.path)}")
