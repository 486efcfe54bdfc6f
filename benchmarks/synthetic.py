"""Caches of random embeddings, for benchmarks of what happens after stage one."""

from pathlib import Path

import numpy as np

from cache import EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards

SHARD_ROWS = 4096


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
    """Fill a cache as stage one does, shard by shard; normal values, another seed for every shard."""
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            shape = (shard.rows, manifest.views + 1, manifest.dim)
            values = np.random.default_rng(shard.index).standard_normal(shape, np.float32).astype(np.float16)
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
