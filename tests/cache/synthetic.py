"""Small caches with known content, for the tests of `cache`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from temi.cache import EmbeddingCache, Fingerprint, Manifest, Shard, ShardWriter, plan_shards

FINGERPRINT: dict[str, Any] = {
    "backbone": "facebook/dinov2-base",
    "revision": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    "preprocessing": {"size": [224, 224], "mean": [0.485, 0.456, 0.406], "resample": "bicubic"},
    "pooling": "cls",
    "precision": "fp32",
    "view_policy": {"crop_scale": [0.25, 1.0], "flip": 0.5},
    "view_seed": 0,
    "views": 2,
    "images": "0123456789abcdef0123456789abcdef",
}
FAILURES = {3: "truncated file", 8: 'not an image, "really"\nat all'}


def make_manifest(rows: int = 20, dim: int = 6, shard_rows: int = 7, **changes: Any) -> Manifest:
    """A plan of 3 shards; `changes` are fields of the fingerprint."""
    return Manifest(
        fingerprint=Fingerprint(**{**FINGERPRINT, **changes}),
        rows=rows,
        dim=dim,
        shards=plan_shards(rows, shard_rows),
        splits={"train": (0, rows // 2), "test": (rows // 2, rows)},
        classes=("cat", "dog", "Äffchen"),
    )


def shard_content(manifest: Manifest, shard: Shard, failures: Mapping[int, str] = FAILURES) -> dict[str, Any]:
    """Arguments of `ShardWriter.write`, a function of the row numbers."""
    rows = np.arange(shard.start, shard.stop)
    shape = (shard.rows, manifest.views + 1, manifest.dim)
    values = np.random.default_rng(shard.start).standard_normal(shape).astype(np.float16)
    return {
        "embedding": values[:, 0],
        "views": values[:, 1:],
        "keys": [f"bilder/größe {'x' * int(row % 5)}{row}.jpg" for row in rows],
        "labels": (rows % 4 - 1).astype(np.int32),
        "failures": {row: reason for row, reason in failures.items() if row in rows},
        "seconds": {"decode": 0.25, "forward": 1.5},
    }


def write_cache(
    folder: Path, manifest: Manifest | None = None, failures: Mapping[int, str] = FAILURES
) -> EmbeddingCache:
    """A finished cache in `folder`."""
    manifest = manifest or make_manifest()
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            writer.write(shard, **shard_content(manifest, shard, failures))
        cache = writer.finish()
    assert cache is not None
    return cache


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes that must not depend on how a cache came about; sidecars hold times and are left out."""
    paths = [*folder.glob("*.h5"), folder / "manifest.json", folder / "failures.csv"]
    return {path.name: path.read_bytes() for path in paths}
