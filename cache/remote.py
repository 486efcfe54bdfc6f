"""A cache in a bucket: shards are made here and go up as one object each, and come down whole when they are read.

What was read is kept in a folder of this machine, up to KEPT_GB gigabytes; the shards used longest ago go first. HDF5
is never read or written through the network, and no rename is relied on: a shard's sidecar goes up last.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import xxhash

from temi.cache.bucket import Bucket
from temi.cache.files import LOCK, PART, Lock, make_folder, user_cache, write_atomic
from temi.cache.manifest import Manifest, listing_name
from temi.cache.schema import FAILURES, MANIFEST, CacheError, Progress, Shard, silent
from temi.cache.shard import ShardFile, Sidecar
from temi.cache.store import EmbeddingCache
from temi.cache.verify import verify
from temi.cache.writer import OWN_FILES, ShardWriter

KEPT_GB = "TEMI_BUCKET_CACHE_GB"  # environment variable
DEFAULT_GB = 50.0
SHARD = "shard-"  # what its files begin with
WHOLE = "whole"  # folder of objects that are no part of a cache
IN_USE = 60.0  # seconds after which a shard that was read may be dropped


def kept_folder() -> Path:
    """Where shards of buckets are kept on this machine."""
    return user_cache("buckets")


def folder_of(url: str) -> Path:
    """Where what was read below `url` is kept on this machine."""
    return kept_folder() / xxhash.xxh3_64_hexdigest(url.encode())


def pull_index(bucket: Bucket, folder: Path) -> dict[str, int]:
    """Bring everything but the shards of the cache in `bucket` into `folder`; the sizes of all objects."""
    make_folder(folder)
    sizes = {name: size for name, size in bucket.sizes().items() if OWN_FILES.fullmatch(name)}
    found = bucket.read(name for name in sizes if not name.endswith(".h5"))
    with one_at_a_time(folder / ".index"):
        for path in folder.glob("[lmsf]*.[jpc]*"):  # of a cache that was at this place before
            coming = path.suffix in (PART, LOCK)  # another reader is at it
            if OWN_FILES.fullmatch(path.name) and path.name not in sizes and not coming:
                path.unlink()
        for name, data in found.items():
            path = folder / name
            if path.name.startswith(SHARD) and not (path.exists() and path.read_bytes() == data):
                # Of a cache that was at this place before; its sidecar may have gone when that left the bucket.
                path.with_suffix(".h5").unlink(missing_ok=True)
            write_atomic(path, data)
    return sizes


def one_at_a_time(path: Path) -> Lock:
    """Held by one process, or thread, of this machine at a time, for `path`."""
    return Lock.wait_for(path.with_name(path.name + LOCK))


@dataclass(frozen=True)
class Index:
    """The manifests and sidecars of a cache in a bucket, brought into a folder, and the sizes of all its objects."""

    bucket: Bucket
    folder: Path
    sizes: dict[str, int]

    @classmethod
    def pull(cls, url: str) -> Self:
        """Ask the bucket; CacheError where no cache is at `url`."""
        bucket, folder = Bucket(url), folder_of(url)
        sizes = pull_index(bucket, folder)
        if MANIFEST not in sizes:
            raise CacheError(f"{url} is not an embedding cache (no {MANIFEST}); make one with `temi embed`")
        return cls(bucket, folder, sizes)

    def open(self, generation: int | None = None) -> "RemoteCache":
        """The cache at a generation; CacheError where it is unfinished or damaged."""
        manifest = Manifest.read(self.folder, generation)
        missing = [s.name for s in manifest.shards if not {f"{s.name}.json", f"{s.name}.h5"} <= self.sizes.keys()]
        if missing:
            raise CacheError(
                f"{self.bucket.url} is unfinished: {len(missing)} of {len(manifest.shards)} shards are missing, "
                f"from {missing[0]} on; rerun the command that made it, such as `temi embed`, to finish it"
            )
        sidecars = tuple(Sidecar.read(self.folder / f"{s.name}.json", manifest, s) for s in manifest.shards)
        return RemoteCache(self.bucket, self.folder, manifest, sidecars)


class RemoteCache(EmbeddingCache):
    """A finished cache in a bucket; shards are fetched when they are read, and checked against their digests."""

    def __init__(self, bucket: Bucket, folder: Path, manifest: Manifest, sidecars: tuple[Sidecar, ...]) -> None:
        super().__init__(folder, manifest, sidecars)
        self._bucket = bucket

    @property
    def place(self) -> str:
        return self._bucket.url

    def verify(self) -> list[str]:
        return verify_url(self.place)

    def _file(self, shard: Shard) -> ShardFile:
        sidecar = self._sidecars[shard.index]
        fetch_whole(self._bucket, f"{shard.name}.h5", self.folder, sidecar.size, sidecar.xxh3_128)
        return super()._file(shard)


def fetch_whole(bucket: Bucket, name: str, folder: Path, size: int, digest: str | None = None) -> Path:
    """The object `name` of so many bytes as a file of `folder`: there already, or fetched now, by one process for all
    of this machine.

    Raises
    ------
    CacheError
        It cannot be read, or its digest (xxh3_128) is another.
    """
    path = folder / name
    if _is_here(path, size):
        return path
    with one_at_a_time(path):
        if not _is_here(path, size):
            data = bucket.read([name])[name]
            if digest is not None and xxhash.xxh3_128_hexdigest(data) != digest:
                raise CacheError(
                    f"{bucket.url}/{name} is damaged: its digest is not that of its sidecar; "
                    f"delete {Path(name).with_suffix('.json')} there and rerun the command that made the cache"
                )
            drop_oldest(len(data))
            write_atomic(path, data)
    return path


def _is_here(path: Path, size: int) -> bool:
    """Whether the file is here whole; it counts as used now."""
    try:
        status = path.stat()
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # another change would have it checked anew
    except FileNotFoundError:
        return False
    return status.st_size == size


def verify_url(url: str, progress: Progress = silent) -> list[str]:
    """As `verify`, of a cache in a bucket: every object is fetched anew, one shard at a time."""
    bucket = Bucket(url)
    with tempfile.TemporaryDirectory(prefix="temi-") as name:
        folder = Path(name)
        sizes = pull_index(bucket, folder)

        @contextmanager
        def fetched(shard: Shard) -> Iterator[None]:
            path = folder / f"{shard.name}.h5"
            if path.name in sizes:
                path.write_bytes(bucket.read([path.name])[path.name])
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

        problems = verify(folder, progress, fetched)
        with suppress(CacheError):  # a damaged manifest was told of
            planned = {f"{shard.name}.h5" for shard in Manifest.read(folder).shards}
            strays = sorted(key for key in sizes if key.endswith(".h5") and key not in planned)
            problems += [f"{folder / key} is no part of this cache's plan; delete it" for key in strays]
        return [problem.replace(name, url) for problem in problems]


def _kept_bytes() -> float:
    try:
        return float(os.environ.get(KEPT_GB, DEFAULT_GB)) * 1e9
    except ValueError:
        raise CacheError(f"{KEPT_GB}={os.environ[KEPT_GB]} is no number; set it to gigabytes, such as 50") from None


def drop_oldest(coming: int) -> None:
    """Make room for `coming` bytes among the shards that are kept here."""
    room = _kept_bytes() - coming
    found = []
    for path in chain(kept_folder().glob(f"*/{SHARD}*.h5"), kept_folder().glob(f"*/{WHOLE}/*/*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_atime, status.st_size, path))
    excess = sum(size for _, size, _ in found) - room
    for used, size, path in sorted(found):
        if excess <= 0 or time.time() - used < IN_USE:
            return
        path.unlink(missing_ok=True)
        excess -= size


class RemoteWriter(ShardWriter):
    """Writes the shards of a cache in a bucket, each by way of `folder`, which the caller throws away.

    Nothing locks a bucket: two processes that make one shard make the same bytes. Give each its own by ``--shard I/N``.
    """

    bucket: Bucket
    _sizes: dict[str, int]

    @classmethod
    def open_in(
        cls, bucket: Bucket, folder: Path, manifest: Manifest, sizes: dict[str, int], listing: bytes | None
    ) -> Self:
        """Start the cache in `bucket`, or go on with it, where `pull_index` has brought its index into `folder`."""
        writer = cls.open(folder, manifest, listing=listing)
        assert isinstance(writer, cls)
        writer.bucket, writer._sizes = bucket, sizes
        for name in (listing_name(manifest.generation), manifest.file_name):
            if name not in sizes and (folder / name).exists():
                writer._send(name)
        return writer

    @classmethod
    def beside(cls, bucket: Bucket, folder: Path, manifest: Manifest) -> Self:
        """Make shards of the cache in `bucket`, which another process has begun, by way of the empty `folder`."""
        writer = cls(folder, manifest)
        writer.bucket, writer._sizes = bucket, {}
        return writer

    def write(self, shard: Shard, **content: Any) -> None:
        """Make the shard here, send it, then its sidecar."""
        super().write(shard, **content)
        for suffix in (".h5", ".json"):
            self._send(f"{shard.name}{suffix}")
        (self.folder / f"{shard.name}.h5").unlink()

    def finish(self) -> EmbeddingCache | None:
        """As `ShardWriter.finish`, by what is in the bucket: other processes may have made the rest."""
        self._sizes = pull_index(self.bucket, self.folder)
        if Manifest.read(self.folder, self.manifest.generation) != self.manifest:
            raise CacheError(
                f"{self.bucket.url} was begun by two commands with other settings at once; embed elsewhere"
            )
        if not all(self._is_done(shard) for shard in self.manifest.shards):
            return None
        write_atomic(self.folder / FAILURES, self._failures_csv())
        self._send(FAILURES)
        return Index.pull(self.bucket.url).open()

    def send(self, *names: str) -> None:
        """Send files of the folder that others wrote there, where they are."""
        for name in names:
            if (self.folder / name).exists():
                self._send(name)

    def _send(self, name: str) -> None:
        data = (self.folder / name).read_bytes()
        self.bucket.write(name, data)
        self._sizes[name] = len(data)

    def _is_done(self, shard: Shard) -> bool:
        try:
            sidecar = Sidecar.read(self.folder / f"{shard.name}.json", self.manifest, shard)
        except CacheError:
            return False
        return self._sizes.get(f"{shard.name}.h5") == sidecar.size and f"{shard.name}.json" in self._sizes
