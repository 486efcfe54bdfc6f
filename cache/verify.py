"""Finding everything that is wrong with a cache."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from temi.cache.files import LOCK, file_digest
from temi.cache.manifest import Manifest
from temi.cache.neighbors import load_neighbors
from temi.cache.schema import FAILURES, NEIGHBOR_FOLDER, CacheError, Progress, Shard, silent
from temi.cache.shard import Failure, ShardFile, Sidecar, failures_csv, unreadable


def verify(
    folder: Path,
    progress: Progress = silent,
    fetched: Callable[[Shard], AbstractContextManager[None]] = lambda shard: nullcontext(),
) -> list[str]:
    """Every problem of the cache in `folder`, one sentence each; re-reads every byte. Empty: nothing is wrong.

    Unlike opening, this goes on after a problem, so that one run names them all. `progress` is called after each shard,
    `fetched` brings the file of a shard for as long as it is checked.
    """
    try:
        manifest = Manifest.read(folder)
    except CacheError as error:
        return [str(error)]
    problems: list[str] = []
    sidecars: list[Sidecar] = []
    for shard in manifest.shards:
        try:
            with fetched(shard):
                sidecars.append(_check_shard(folder, manifest, shard))
        except CacheError as error:
            problems.append(str(error))
        progress(shard, manifest.rows)
    problems += list(_generation_problems(folder, manifest))
    problems += list(_stray_files(folder, manifest))
    if not problems:
        problems += list(_failures_problem(folder, unreadable(sidecars, manifest)))
    return problems + list(_neighbor_problems(folder))


def _check_shard(folder: Path, manifest: Manifest, shard: Shard) -> Sidecar:
    path = folder / f"{shard.name}.h5"
    if not path.with_suffix(".json").exists():
        raise CacheError(f"{path} is not done (it has no sidecar); rerun the command that made the cache")
    sidecar = Sidecar.read(path.with_suffix(".json"), manifest, shard)
    file = ShardFile(path, manifest, sidecar, structures={})
    if not np.array_equal(file.array("row"), np.arange(shard.start, shard.stop)):
        raise CacheError(f"{path} does not hold rows {shard.start} to {shard.stop} in order; embed again")
    keys = file.decoded_keys()
    labels = file.array("label")
    if labels.min() < -1 or labels.max() >= len(manifest.classes):
        raise CacheError(f"{path} holds a label that names no class; embed again")
    failed = [failure.row - shard.start for failure in sidecar.failures]
    if failed != np.flatnonzero(~file.array("ok")).tolist() or any(
        keys[row] != failure.key for row, failure in zip(failed, sidecar.failures, strict=True)
    ):
        raise CacheError(f"{path} and its sidecar name different unreadable images; embed again")
    for name in ("embedding", "views"):
        values = file.array(name)
        if values[failed].any():
            raise CacheError(f"{path} holds values of {name} for an image that could not be read; embed again")
    if file_digest(path) != sidecar.xxh3_128:
        raise CacheError(f"{path} is damaged: its digest is not that of its sidecar; embed again")
    return sidecar


def _generation_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What does not fit in the manifests of the generations before `manifest`."""
    for generation, expected in enumerate(manifest.earlier):
        try:
            before = Manifest.read(folder, generation)
        except CacheError as error:
            yield str(error)
            continue
        if (before.rows, before.fingerprint.digest) != (expected.rows, expected.fingerprint):
            yield f"{folder / before.file_name} is not what this cache grew from; restore it, or embed again"


def _stray_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    planned = {f"{shard.name}{suffix}" for shard in manifest.shards for suffix in (".h5", ".json", LOCK)}
    for path in sorted(folder.glob("shard-*")):
        if path.name not in planned:
            yield f"{path} is no part of this cache's plan; delete it, or move it to where it belongs"


def _failures_problem(folder: Path, failures: list[Failure]) -> Iterator[str]:
    path = folder / FAILURES
    if not path.exists():
        yield f"{path} is missing; rerun the command that made the cache"
    elif path.read_bytes() != failures_csv(failures):
        yield (
            f"{path} does not list the images that could not be read; delete it and rerun the command that made the "
            "cache"
        )


def _neighbor_problems(folder: Path) -> Iterator[str]:
    for path in sorted((folder / NEIGHBOR_FOLDER).glob("*.h5")):
        try:
            load_neighbors(path.parent, path.stem)
        except (CacheError, ValueError) as error:
            yield str(error)
