"""What is in a cache, also in one that is not finished, and what is kept beside its embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from temi.cache.files import os_errors
from temi.cache.kept import Kept, list_kept
from temi.cache.manifest import Manifest
from temi.cache.neighbors import list_neighbors
from temi.cache.schema import NEIGHBORS, CacheError
from temi.cache.shard import Sidecar


def summarize(folder: Path) -> dict[str, Any]:
    """Counts, sizes, settings and times of the cache in `folder`, ready for JSON; CacheError if it is none."""
    manifest = Manifest.read(folder)
    sidecars, damaged = _sidecars(folder, manifest)
    seconds: dict[str, float] = {}
    for sidecar in sidecars:
        for name, value in sidecar.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return {
        "folder": str(folder),
        "rows": manifest.rows,
        "dim": manifest.dim,
        "views": manifest.views,
        "shards": len(manifest.shards),
        "shards_done": len(sidecars),
        "shards_damaged": damaged,
        "bytes": sum(sidecar.size for sidecar in sidecars),
        "unreadable_images": sum(len(sidecar.failures) for sidecar in sidecars),
        "splits": {name: list(bounds) for name, bounds in manifest.splits.items()},
        "classes": len(manifest.classes),
        "kept": [
            {"file": kept.path.name, "name": kept.name, "bytes": kept.nbytes, "made_from": kept.recipe}
            for kept in list_made(folder)
        ],
        "seconds": seconds,
        "fingerprint": asdict(manifest.fingerprint),
    }


def list_made(folder: Path) -> list[Kept]:
    """What was computed from the embeddings of the cache in `folder` and is kept in it, so that it is made once."""
    with os_errors(folder / NEIGHBORS, "read"):
        return [*list_neighbors(folder / NEIGHBORS), *list_kept(folder / NEIGHBORS)]


def prune(folder: Path, only: str = "") -> list[Kept]:
    """Drop what is kept, or `only` what has this name, and return what went; whoever needs it makes it again.

    Raises
    ------
    CacheError
        `folder` is no cache, a file cannot be removed, or nothing has this name.
    """
    Manifest.read(folder)
    made = list_made(folder)
    doomed = [kept for kept in made if only in ("", kept.name)]
    if only and not doomed:
        names = ", ".join(sorted({kept.name for kept in made})) or "nothing"
        raise CacheError(f"{folder} keeps no {only!r}; it keeps {names}")
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
