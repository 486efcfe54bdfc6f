"""Caches of random embeddings, for benchmarks of what happens after stage one.

100 classes; within each, rows differ in 32 directions and a little in all others, as features of encoders do: what is
near is then a matter of more than one cell of an index.
"""

from pathlib import Path

import numpy as np

from temi.cache import EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards

SHARD_ROWS = 4096
CLASSES, DIRECTIONS, NOISE = 100, 32, 0.1


def make_manifest(rows: int, dim: int, views: int = 0) -> Manifest:
    """The plan of a cache of `rows` random embeddings."""
    fingerprint = Fingerprint(
        backbone="random numbers",
        revision="0",
        preprocessing={},
        pooling="none",
        precision="float16",
        view_policy={},
        view_seed=0,
        views=views,
        images=f"{rows:032x}",
    )
    return Manifest(fingerprint, rows, dim, plan_shards(rows, SHARD_ROWS), splits={}, classes=())


def write_cache(folder: Path, manifest: Manifest) -> EmbeddingCache:
    """Fill a cache as stage one does, shard by shard, another seed for every shard."""
    centers, directions = np.split(
        np.random.default_rng(0).standard_normal((CLASSES + DIRECTIONS, manifest.dim), np.float32), [CLASSES]
    )
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            shape = (shard.rows, manifest.views + 1, manifest.dim)
            random = np.random.default_rng([1, shard.index])
            values = NOISE * random.standard_normal(shape, np.float32)
            values += random.standard_normal((*shape[:2], DIRECTIONS), np.float32) @ directions / DIRECTIONS**0.5
            values += centers[np.arange(shard.start, shard.stop) % CLASSES, None]
            values = values.astype(np.float16)
            writer.write(
                shard,
                embedding=values[:, 0],
                views=values[:, 1:],
                keys=[f"train/class{row % 1000:03d}/image{row:09d}.jpg" for row in range(shard.start, shard.stop)],
                labels=np.full(shard.rows, -1, np.int32),
                failures={},
                seconds={},
            )
        cache = writer.finish()
    assert cache is not None
    return cache
