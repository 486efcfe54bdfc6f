"""The embedding cache: frozen features on disk, in HDF5 shards that cannot be silently wrong.

Knows HDF5, knows nothing of models: imports neither torch nor `pipeline`.
Axis letters: N rows (images), V augmented views, D embedding width.
"""

from temi.cache.fingerprint import Fingerprint
from temi.cache.manifest import Manifest
from temi.cache.neighbors import load_neighbors, save_neighbors
from temi.cache.schema import CacheError, Shard, plan_shards
from temi.cache.store import EmbeddingCache
from temi.cache.writer import ShardWriter

__all__ = [
    "CacheError",
    "EmbeddingCache",
    "Fingerprint",
    "Manifest",
    "Shard",
    "ShardWriter",
    "load_neighbors",
    "plan_shards",
    "save_neighbors",
]
