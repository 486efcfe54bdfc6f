"""A cache in a bucket: shards are made here and go up as one object each, and come down whole when they are read.

What was read is kept in a folder of this machine, up to KEPT_GB gigabytes; the shards used longest ago go first. HDF5
is never read or written through the network, and no rename is relied on: a shard's sidecar goes up last.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import xxhash

from temi.cache.bucket import Bucket
from temi.cache.files import make_folder, write_atomic
from temi.cache.manifest import Manifest, listing_name
from temi.cache.schema import FAILURES, MANIFEST, CacheError, Shard
from temi.cache.shard import ShardFile, Sidecar
from temi.cache.store import EmbeddingCache
from temi.cache.writer import OWN_FILES, ShardWriter

KEPT_GB = "TEMI_BUCKET_CACHE_GB"  # environment variable
DEFAULT_GB = 50.0
IN_USE = 60.0  # seconds after which a shard that was read may be dropped


def kept_folder() -> Path:
    """Where shards of buckets are kept on this machine."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "temi" / "buckets"


def pull_index(bucket: Bucket, folder: Path) -> dict[str, int]:
    """Bring everything but the shards of the cache in `bucket` into `folder`; the sizes of all objects."""
    make_folder(folder)
    sizes = {name: size for name, size in bucket.sizes().items() if OWN_FILES.fullmatch(name)}
    for name, data in bucket.read(name for name in sizes if not name.endswith(".h5")).items():
        write_atomic(folder / name, data)
    return sizes


class RemoteCache(EmbeddingCache):
    """A finished cache in a bucket; shards are fetched when they are read, and checked against their digests."""

    def __init__(self, bucket: Bucket, folder: Path, manifest: Manifest, sidecars: tuple[Sidecar, ...]) -> None:
        super().__init__(folder, manifest, sidecars)
        self._bucket = bucket

    @classmethod
    def open_url(cls, url: str, generation: int | None = None) -> Self:
        """Open the cache at `url`; CacheError where there is none, or it is unfinished or damaged."""
        bucket = Bucket(url)
        folder = kept_folder() / xxhash.xxh3_64_hexdigest(url.encode())
        sizes = pull_index(bucket, folder)
        if MANIFEST not in sizes:
            raise CacheError(f"{url} is not an embedding cache (no {MANIFEST}); make one with `temi embed`")
        manifest = Manifest.read(folder, generation)
        missing = [s.name for s in manifest.shards if not {f"{s.name}.json", f"{s.name}.h5"} <= sizes.keys()]
        if missing:
            raise CacheError(
                f"{url} is unfinished: {len(missing)} of {len(manifest.shards)} shards are missing, from {missing[0]} "
                "on; rerun the same `temi embed` to finish it"
            )
        sidecars = tuple(Sidecar.read(folder / f"{s.name}.json", manifest, s) for s in manifest.shards)
        return cls(bucket, folder, manifest, sidecars)

    @property
    def place(self) -> str:
        return self._bucket.url

    def _file(self, shard: Shard) -> ShardFile:
        path, sidecar = self.folder / f"{shard.name}.h5", self._sidecars[shard.index]
        try:
            status = path.stat()
            here = status.st_size == sidecar.size
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # used now; another change would be checked anew
        except FileNotFoundError:
            here = False
        if not here:
            self._fetch(path, sidecar)
        return super()._file(shard)

    def _fetch(self, path: Path, sidecar: Sidecar) -> None:
        data = self._bucket.read([path.name])[path.name]
        if xxhash.xxh3_128_hexdigest(data) != sidecar.xxh3_128:
            raise CacheError(f"{self.place}/{path.name} is damaged: its digest is not that of its sidecar; embed again")
        drop_oldest(len(data))
        write_atomic(path, data)


def drop_oldest(coming: int) -> None:
    """Make room for `coming` bytes among the shards that are kept here."""
    room = float(os.environ.get(KEPT_GB, DEFAULT_GB)) * 1e9 - coming
    found = []
    for path in kept_folder().glob("*/shard-*.h5"):
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
        return RemoteCache.open_url(self.bucket.url)

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
