"""What is in a cache, also in one that is not finished, and what is kept beside its embeddings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from temi.cache.bucket import bucket_url
from temi.cache.files import os_errors
from temi.cache.fingerprint import Fingerprint
from temi.cache.kept import Kept, list_kept
from temi.cache.manifest import Manifest
from temi.cache.neighbors import list_neighbors
from temi.cache.remote import Index
from temi.cache.schema import NEIGHBOR_FOLDER, CacheError
from temi.cache.shard import Sidecar, unreadable


@dataclass(frozen=True)
class Summary:
    """Counts, sizes, settings and times of a cache, as `temi cache info` prints them."""

    folder: str
    rows: int
    dim: int
    views: int
    shards: int
    shards_done: int
    shards_damaged: list[str]
    bytes: int
    unreadable_images: int
    gone_images: int
    splits: dict[str, tuple[int, int]]
    classes: int
    kept: list[Kept]
    seconds: dict[str, float]
    fingerprint: Fingerprint

    def to_json(self) -> dict[str, Any]:
        """As `temi cache info --json` prints it."""
        kept = [{"file": k.path.name, "name": k.name, "bytes": k.nbytes, "made_from": k.recipe} for k in self.kept]
        return asdict(self) | {"kept": kept}


def summarize(folder: Path) -> Summary:
    """What is in the cache in `folder`, or in a bucket, also if it is unfinished; CacheError if it is none."""
    place, folder = folder, _here(folder)
    manifest = Manifest.read(folder)
    sidecars, damaged = _sidecars(folder, manifest)
    seconds: dict[str, float] = {}
    for sidecar in sidecars:
        for name, value in sidecar.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return Summary(
        folder=bucket_url(place) or str(place),
        rows=manifest.rows,
        dim=manifest.dim,
        views=manifest.views,
        shards=len(manifest.shards),
        shards_done=len(sidecars),
        shards_damaged=damaged,
        bytes=sum(sidecar.size for sidecar in sidecars),
        unreadable_images=len(unreadable(sidecars, manifest)),
        gone_images=len(manifest.gone),
        splits=dict(manifest.splits),
        classes=len(manifest.classes),
        kept=list_made(folder),
        seconds=seconds,
        fingerprint=manifest.fingerprint,
    )


def _here(place: Path) -> Path:
    """The folder of a cache; of one in a bucket that where it is kept on this machine."""
    url = bucket_url(place)
    return Index.pull(url).folder if url else place


def list_made(folder: Path) -> list[Kept]:
    """What was computed from the embeddings of the cache in `folder` and is kept in it, so that it is made once."""
    with os_errors(folder / NEIGHBOR_FOLDER, "read"):
        return [*list_neighbors(folder / NEIGHBOR_FOLDER), *list_kept(folder / NEIGHBOR_FOLDER)]


def prune(folder: Path, only: str = "") -> list[Kept]:
    """Drop what is kept, or `only` what has this name, and return what went; whoever needs it makes it again.

    Of a cache in a bucket it is kept on this machine.

    Raises
    ------
    CacheError
        `folder` is no cache, a file cannot be removed, or nothing has this name.
    """
    here = _here(folder)
    Manifest.read(here)
    made = list_made(here)
    doomed = [kept for kept in made if only in ("", kept.name)]
    if only and not doomed:
        names = ", ".join(sorted({kept.name for kept in made})) or "nothing"
        raise CacheError(f"{bucket_url(folder) or folder} keeps no {only!r}; it keeps {names}")
    for kept in doomed:
        with os_errors(kept.path, "remove"):
            kept.path.unlink(missing_ok=True)
    return doomed


def _sidecars(folder: Path, manifest: Manifest) -> tuple[list[Sidecar], list[str]]:
    sidecars: list[Sidecar] = []
    damaged: list[str] = []
    for shard in manifest.shards:
        path = folder / f"{shard.name}.json"
        if path.exists():
            try:
                sidecars.append(Sidecar.read(path, manifest, shard))
            except CacheError:
                damaged.append(shard.name)
    return sidecars, damaged
