"""Filling a cache, one shard at a time."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from temi.cache.files import LOCK, PART, Lock, make_folder, os_errors, write_atomic
from temi.cache.hdf5 import encode_keys, encode_shard
from temi.cache.manifest import Manifest, listing_name, newest_generation
from temi.cache.schema import (
    FAILURES,
    LISTING,
    MANIFEST,
    NEIGHBOR_FOLDER,
    ORIGIN,
    SKIPPED,
    CacheError,
    Half,
    Shard,
    all_finite,
)
from temi.cache.shard import Failure, Sidecar, digest_parts, failures_csv, unreadable
from temi.cache.store import EmbeddingCache

OWN_FILES = re.compile(
    rf"(shard-\d{{5,8}}(\.h5|\.json)?|manifest(-\d{{5}})?(\.json)?|{LISTING}-\d{{5}}\.parquet|"
    rf"{FAILURES}|{ORIGIN}|{SKIPPED})({PART}|{LOCK})?"
)


class ShardWriter:
    """Writes the shards of one cache. Several processes may each write their own shards of the same cache.

    A shard is claimed by a lock while one process makes it; a process that dies gives its claim up.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._claims: dict[int, Lock] = {}
        self._owed: list[Shard] = []

    @classmethod
    def open(
        cls, folder: Path, manifest: Manifest, *, overwrite: bool = False, listing: bytes | None = None
    ) -> "ShardWriter":
        """Start a cache in `folder`, or go on with the one that is there; a later generation lets it grow.

        `listing` is what its maker keeps of the images that this generation adds, for the next.
        `overwrite` deletes the cache that is there first; with several workers, let one of them do that alone.

        Raises
        ------
        CacheError
            The cache there was made with other settings (named), is being written, or `folder` holds other files.
        """
        make_folder(folder)
        _refuse_foreign_files(folder)
        with os_errors(folder, "write to"), Lock.wait_for(folder / f"manifest{LOCK}"):
            if overwrite:
                _delete_cache(folder)
            begun = (folder / MANIFEST).exists()
            if begun:
                _refuse_differences(folder, manifest)
            if not begun or newest_generation(folder) < manifest.generation:
                if listing is not None:
                    write_atomic(folder / listing_name(manifest.generation), listing)
                manifest.write(folder)
        return cls(folder, manifest)

    def pending(self, worker: int = 0, workers: int = 1) -> list[Shard]:
        """Shards of `worker` (index modulo `workers`) that are not done, in order; the first of them is claimed.

        Raises
        ------
        CacheError
            Another process is making the first of them.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers} does not exist; workers count from 0")
        self._owed = [shard for shard in self.manifest.shards[worker::workers] if not self._is_done(shard)]
        for shard in self._owed[:1]:
            self._claim(shard)
        return list(self._owed)

    def write(
        self,
        shard: Shard,
        *,
        embedding: Half,
        views: Half,
        keys: Sequence[str],
        labels: npt.NDArray[np.int32],
        failures: Mapping[int, str],
        seconds: Mapping[str, float],
    ) -> None:
        """Write one shard, then the sidecar that says it is done.

        Parameters
        ----------
        embedding, views
            Float16, (n, D) and (n, V, D). The rows in `failures` are stored as zeros, whatever they hold.
        labels
            Int32 (n,); -1 where unknown.
        failures
            Row of the cache (not of the shard) -> why that image could not be read.
        seconds
            Where the time of this shard went, by name.

        Raises
        ------
        CacheError
            A value is not finite, the disk is full, or another process makes this shard.
        ValueError
            The arrays do not fit the shard: a mistake of the caller.
        """
        self._claim(shard)
        data = self._arrays(shard, embedding, views, keys, labels, failures)
        image = encode_shard(self.manifest.fingerprint_of(shard), data)
        header = len(image) - sum(values.nbytes for values in data.values())
        sidecar = Sidecar(
            shard=shard,
            fingerprint=self.manifest.fingerprint_of(shard),
            size=len(image),
            header=header,
            xxh3_128=xxhash.xxh3_128_hexdigest(image),
            digests=digest_parts(image, header, data),
            failures=tuple(Failure(row, keys[row - shard.start], _text(failures[row])) for row in sorted(failures)),
            seconds={name: float(value) for name, value in seconds.items()},
        )
        write_atomic(self.folder / f"{shard.name}.h5", image)
        sidecar.write(self.folder / f"{shard.name}.json")
        self._claims.pop(shard.index).release()
        self._owed = [owed for owed in self._owed if owed != shard]
        for owed in self._owed[:1]:  # the next one is claimed while it is being made, not only when it is written
            self._claim(owed)

    def finish(self) -> EmbeddingCache | None:
        """Write ``failures.csv`` and open the cache; None while other workers still owe shards."""
        if not all(self._is_done(shard) for shard in self.manifest.shards):
            return None
        with Lock.wait_for(self.folder / f"manifest{LOCK}"):
            write_atomic(self.folder / FAILURES, self._failures_csv())
            self._sweep()
        return EmbeddingCache.open(self.folder)

    def close(self) -> None:
        """Give up all claims; what was not written stays owed."""
        while self._claims:
            self._claims.popitem()[1].release()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_done(self, shard: Shard) -> bool:
        path = self.folder / f"{shard.name}.json"
        try:
            return Sidecar.read(path, self.manifest, shard).size == path.with_suffix(".h5").stat().st_size
        except (OSError, CacheError):
            return False

    def _claim(self, shard: Shard) -> None:
        if shard.index in self._claims:
            return
        lock = _lock(self.folder / f"{shard.name}{LOCK}")
        if self._is_done(shard):
            lock.release()
            raise CacheError(f"{self.folder}/{shard.name}.h5 was just written by another process; rerun to go on")
        self._claims[shard.index] = lock

    def _sweep(self) -> None:
        """Remove the lock files of processes that died between a shard's last byte and giving up its claim."""
        for path in self.folder.glob(f"shard-*{LOCK}"):
            if lock := Lock.acquire(path):
                lock.release()

    def _failures_csv(self) -> bytes:
        read = (Sidecar.read(self.folder / f"{s.name}.json", self.manifest, s) for s in self.manifest.shards)
        return failures_csv(unreadable(read, self.manifest))

    def _arrays(
        self,
        shard: Shard,
        embedding: Half,
        views: Half,
        keys: Sequence[str],
        labels: npt.NDArray[np.int32],
        failures: Mapping[int, str],
    ) -> dict[str, npt.NDArray[Any]]:
        rows, width = shard.rows, (self.manifest.views, self.manifest.dim)
        if self.manifest.shards[shard.index] != shard or not all(shard.start <= row < shard.stop for row in failures):
            raise ValueError(f"{shard.name}: the shard or a row of its failures is not in the plan")
        if embedding.shape != (rows, width[1]) or views.shape != (rows, *width):
            raise ValueError(f"{shard.name}: shapes {embedding.shape}, {views.shape} for {rows} rows of {width}")
        if embedding.dtype != np.float16 or views.dtype != np.float16 or labels.dtype != np.int32:
            raise ValueError(f"{shard.name}: types {embedding.dtype}, {views.dtype}, labels {labels.dtype}")
        if len(keys) != rows or labels.shape != (rows,):
            raise ValueError(f"{shard.name}: {len(keys)} keys and labels {labels.shape} for {rows} rows")
        if labels.min() < -1 or labels.max() >= len(self.manifest.classes):
            raise ValueError(
                f"{shard.name}: labels {labels.min()} to {labels.max()} of {len(self.manifest.classes)} classes"
            )
        ok = np.ones(rows, dtype=bool)
        ok[[row - shard.start for row in failures]] = False
        if failures:
            embedding, views = embedding.copy(), views.copy()
            embedding[~ok], views[~ok] = 0, 0
        self._refuse_non_finite(shard, embedding, views, keys)
        return {
            "row": np.arange(shard.start, shard.stop, dtype=np.int64),
            "key": encode_keys(keys),
            "label": labels,
            "ok": ok,
            "embedding": np.ascontiguousarray(embedding),
            "views": np.ascontiguousarray(views),
        }

    def _refuse_non_finite(self, shard: Shard, embedding: Half, views: Half, keys: Sequence[str]) -> None:
        if all_finite(embedding) and all_finite(views):
            return
        finite = np.isfinite(embedding).all(axis=1) & np.isfinite(views).all(axis=(1, 2))
        row = int(np.argmin(finite))
        raise CacheError(
            f"the embedding of {keys[row]} (row {shard.start + row}) is not finite, or above 65504, "
            "the largest float16; use precision fp32, or another backbone"
        )


def _text(reason: str) -> str:
    """`reason` without what UTF-8 cannot hold: messages of decoders may quote any bytes."""
    return reason.encode(errors="replace").decode()


def _lock(path: Path) -> Lock:
    lock = Lock.acquire(path)
    if lock is None:
        raise CacheError(f"another process is writing {path.with_suffix('')}; wait for it, or stop it and rerun")
    return lock


def _refuse_foreign_files(folder: Path) -> None:
    with os_errors(folder, "read"):
        names = sorted(path.name for path in folder.iterdir())
    for name in names:
        if not (OWN_FILES.fullmatch(name) or name == NEIGHBOR_FOLDER or name.startswith(".")):
            raise CacheError(f"{folder} holds {name}, which is no part of a cache; choose a new folder")


def _refuse_differences(folder: Path, manifest: Manifest) -> None:
    found = Manifest.read(folder).differences(manifest)
    if found:
        raise CacheError(
            f"{folder} was made with other settings ({'; '.join(found)}); choose another folder, "
            "ask for the same settings, or give --overwrite to delete it"
        )


def _delete_cache(folder: Path) -> None:
    """Delete the cache in `folder`, and nothing else that may be there."""
    for path in folder.glob(f"shard-*{LOCK}"):
        _lock(path).release()  # held: somebody is writing, so refuse
    # Without a manifest the rest is no cache any more, so an interruption here leaves nothing half valid.
    doomed = [folder / MANIFEST, *(path for path in folder.iterdir() if OWN_FILES.fullmatch(path.name))]
    doomed += (path for ending in ("h5", "safetensors") for path in (folder / NEIGHBOR_FOLDER).glob(f"*.{ending}"))
    for path in doomed:
        if path.name != f"manifest{LOCK}":
            path.unlink(missing_ok=True)
