"""Small caches with known clusters, for the tests of stage two."""

from pathlib import Path

import numpy as np

from temi.cache import EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards


def mixture(
    rows: int = 600, dim: int = 16, clusters: int = 6, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (rows, dim) float16 around `clusters` unit centers, and their labels."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((clusters, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    label = np.arange(rows) % clusters
    embedding = centers[label] + noise * rng.standard_normal((rows, dim)) / np.sqrt(dim)
    return embedding.astype(np.float16), label.astype(np.int32)


def write_cache(
    folder: Path,
    embedding: np.ndarray,
    label: np.ndarray | None = None,
    views: np.ndarray | None = None,
    splits: dict[str, tuple[int, int]] | None = None,
    failures: dict[int, str] | None = None,
    backbone: str = "made-up",
    shard_rows: int = 256,
    classes: tuple[str, ...] = (),
) -> EmbeddingCache:
    """A finished cache of these embeddings in shards of `shard_rows`; without labels every label is -1."""
    rows, dim = embedding.shape
    views = np.zeros((rows, 0, dim), np.float16) if views is None else views
    label = np.full(rows, -1, np.int32) if label is None else label
    fingerprint = Fingerprint(
        backbone=backbone,
        revision="1",
        preprocessing={},
        pooling="cls",
        precision="fp32",
        view_policy={"flip": 0.5} if views.shape[1] else {},
        view_seed=0,
        views=views.shape[1],
        images="0" * 32,
    )
    classes = classes or tuple(f"class {c}" for c in range(label.max() + 1))
    manifest = Manifest(fingerprint, rows, dim, plan_shards(rows, shard_rows), splits or {}, classes)
    with ShardWriter.open(folder, manifest) as writer:
        for shard in writer.pending():
            part = slice(shard.start, shard.stop)
            writer.write(
                shard,
                embedding=embedding[part],
                views=views[part],
                keys=[f"{row:05d}.jpg" for row in range(shard.start, shard.stop)],
                labels=label[part],
                failures={row: why for row, why in (failures or {}).items() if shard.start <= row < shard.stop},
                seconds={},
            )
        cache = writer.finish()
    assert cache is not None
    return cache


SHORT_TRIALS = [
    "heads.clusters=4",
    "heads.count=2",
    "neighbors.k=8",
    "start.kind=random",
    "train.batch_size=60",
    "train.epochs=0",
    "train.min_steps=18",
]
"""Settings of trials that take a second."""
