"""What is in a cache, also in one that is not finished."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from temi.cache.files import os_errors
from temi.cache.manifest import Manifest
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
    with os_errors(folder, "read"):
        neighbors = sorted(path.stem for path in (folder / NEIGHBORS).glob("*.h5"))
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
        "neighbors": neighbors,
        "seconds": seconds,
        "fingerprint": asdict(manifest.fingerprint),
    }


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
