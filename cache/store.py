"""A finished cache, read-only: many readers at once, every byte checked before it is used."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from temi.cache.bucket import bucket_url
from temi.cache.files import os_errors
from temi.cache.manifest import Manifest, newest_generation
from temi.cache.schema import CacheError, Half, Shard
from temi.cache.shard import ShardFile, Sidecar, Structures, repair, unreadable
from temi.cache.verify import verify
from temi.cache.words import counted

_THREADS = 4  # that read and check shards at a time


class EmbeddingCache:
    """Embeddings of N images: `rows` = N, `dim` = D, `views` = V.

    Opening reads the manifest and the sidecars; bytes of shards are read, and checked against their digests, when they
    are asked for.
    """

    def __init__(self, folder: Path, manifest: Manifest, sidecars: tuple[Sidecar, ...]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._sidecars = sidecars
        self._files: dict[int, ShardFile] = {}
        self._structures: Structures = {}

    @classmethod
    def open(cls, folder: Path | str, generation: int | None = None) -> "EmbeddingCache":
        """Open the cache in `folder`, as it is now or, of one that grew, as it was at an earlier generation.

        Raises
        ------
        CacheError
            `folder` is no cache, an unfinished, a damaged one, or one of another schema version.
        """
        if url := bucket_url(folder):
            from temi.cache.remote import Index  # what it opens is one of these

            return Index.pull(url).open(generation)
        folder = Path(folder)
        with os_errors(folder, "read"):
            manifest = Manifest.read(folder, generation)
            _refuse_unfinished(folder, manifest)
            sidecars = tuple(_read_sidecar(folder, manifest, shard) for shard in manifest.shards)
        return cls(folder, manifest, sidecars)

    def __repr__(self) -> str:
        made_by = self.manifest.fingerprint.backbone
        size = f"{counted(self.rows, 'image')} x {self.dim}, {counted(self.views, 'view')}"
        return f"EmbeddingCache({str(self.folder)!r}: {size}, {made_by})"

    @property
    def place(self) -> str:
        """Where it is, for another process to open it: a whole path, or the URL of one in a bucket."""
        return str(self.folder.resolve())

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def views(self) -> int:
        return self.manifest.views

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each label; empty when labels are unknown."""
        return self.manifest.classes

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        """Name -> rows start to stop (exclusive)."""
        return self.manifest.splits

    @cached_property
    def keys(self) -> list[str]:
        """Name of each of the N images."""
        return [key for keys in self.keys_by_shard() for key in keys]

    def keys_by_shard(self) -> Iterator[list[str]]:
        """The same for one shard after another, so that all names need not be in memory."""
        return (self._file(shard).decoded_keys() for shard in self.manifest.shards)

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """(N,) int32; -1 where unknown."""
        return self._column("label", np.dtype(np.int32))

    @cached_property
    def ok(self) -> npt.NDArray[np.bool_]:
        """(N,) bool; False where the image could not be read, and its embedding is zeros, or where it is gone."""
        ok = self._column("ok", np.dtype(bool))
        ok[list(self.gone)] = False
        return ok

    @cached_property
    def failures(self) -> dict[int, str]:
        """Row -> why its image, which is in the source, could not be read; as ``failures.csv`` lists them."""
        return {failure.row: failure.reason for failure in unreadable(self._sidecars, self.manifest)}

    @cached_property
    def unusable(self) -> dict[int, str]:
        """Row -> why it counts for nothing: its image could not be read, or is gone."""
        return self.failures | self.gone

    @property
    def gone(self) -> dict[int, str]:
        """Row -> what became of its image since it was embedded, where it is not in the source any more."""
        removed = dict.fromkeys(self.manifest.removed, "removed from the source since")
        return removed | dict.fromkeys(self.manifest.changed, "changed since; a later row shows it")

    @cached_property
    def present(self) -> npt.NDArray[np.int64]:
        """Rows whose image is in the source, in order: all but those that are gone."""
        return np.setdiff1d(np.arange(self.rows), sorted(self.gone))

    def embedding(self, start: int = 0, stop: int | None = None) -> Half:
        """Embeddings of rows `start` to `stop`, float16 (n, D), digest-checked and finite."""
        return self._gather("embedding", start, stop, (self.dim,))

    def view_embedding(self, start: int = 0, stop: int | None = None) -> Half:
        """Embeddings of the augmented views of rows `start` to `stop`, float16 (n, V, D), digest-checked and finite."""
        return self._gather("views", start, stop, (self.views, self.dim))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that identify these embeddings: a digest of the shards' digests and of what is gone."""
        parts = [sidecar.xxh3_128 for sidecar in self._sidecars]
        return xxhash.xxh3_128_hexdigest("".join([*parts, *(f" {row}" for row in sorted(self.gone))]).encode())

    @classmethod
    def open_as(cls, folder: Path | str, digest: str) -> "EmbeddingCache | None":
        """The cache in `folder` at the generation with this digest; None where it never was that."""
        newest, opener = _generations(folder)
        for generation in range(newest, 0, -1):
            with suppress(CacheError):  # one that is being embedded says nothing about those before it
                if (opened := opener(generation)).digest == digest:
                    return opened
        opened = opener(0)
        known = [opened.digest, *(before.digest for before in opened.manifest.viewed)]  # added views change no row
        return opened if digest in known else None

    def verify(self) -> list[str]:
        """Every problem of the cache, each named; re-reads every byte on the disk. Empty: nothing is wrong."""
        return verify(self.folder)

    def _file(self, shard: Shard) -> ShardFile:
        if shard.index not in self._files:
            path = self.folder / f"{shard.name}.h5"
            self._files[shard.index] = ShardFile(path, self.manifest, self._sidecars[shard.index], self._structures)
        return self._files[shard.index]

    def _column(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        out = np.empty(self.rows, dtype)
        for shard in self.manifest.shards:
            self._file(shard).read_into(name, out[shard.start : shard.stop])
        return out

    def _gather(self, name: str, start: int, stop: int | None, width: tuple[int, ...]) -> Half:
        stop = self.rows if stop is None else stop
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(f"rows {start} to {stop} of {self.rows}")
        with os_errors(self.folder, "load the embeddings of"):
            out = np.empty((stop - start, *width), np.float16)
        touched = [shard for shard in self.manifest.shards if shard.start < stop and shard.stop > start]

        def read(shard: Shard) -> None:
            first, last = max(start, shard.start), min(stop, shard.stop)
            rows = out[first - start : last - start]
            self._file(shard).read_into(name, rows, first - shard.start)

        _each(read, touched)
        return out


def _generations(folder: Path | str) -> tuple[int, Callable[[int], EmbeddingCache]]:
    """The newest generation of the cache in `folder`, and what opens each; a bucket is asked once for all."""
    if url := bucket_url(folder):
        from temi.cache.remote import Index

        index = Index.pull(url)
        return newest_generation(index.folder), index.open
    return newest_generation(Path(folder)), partial(EmbeddingCache.open, folder)


def _each(read: Callable[[Shard], None], shards: list[Shard]) -> None:
    """Call `read` on each shard; several at once, as both the disk and the digest leave room for it."""
    if len(shards) < 2:
        for shard in shards:
            read(shard)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(read, shards):
            pass


def _refuse_unfinished(folder: Path, manifest: Manifest) -> None:
    names = {entry.name for entry in os.scandir(folder)}
    missing = [shard.name for shard in manifest.shards if f"{shard.name}.json" not in names]
    if missing:
        raise CacheError(
            f"{folder} is unfinished: {len(missing)} of {len(manifest.shards)} shards are missing, "
            f"from {missing[0]} on; rerun the command that made it, such as `temi embed`, to finish it"
        )


def _read_sidecar(folder: Path, manifest: Manifest, shard: Shard) -> Sidecar:
    path = folder / f"{shard.name}.json"
    sidecar = Sidecar.read(path, manifest, shard)
    data = path.with_suffix(".h5")
    if not data.exists():
        raise CacheError(f"{data} is missing; {repair(path)}")
    if (size := data.stat().st_size) != sidecar.size:
        raise CacheError(f"{data} is damaged: it has {size} bytes instead of {sidecar.size}; {repair(path)}")
    return sidecar
