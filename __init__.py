"""Cluster images without labels: embed once with a frozen encoder, train clustering heads in seconds.

>>> import temi
>>> labels = temi.TemiClusterer(n_clusters=10).fit_predict(embeddings)
>>> cache = temi.embed("photos", "cache")
>>> run = temi.train_heads(cache, "run", clusters=10)
>>> run.assignments

``temi.cache`` is the embedding cache on disk, ``temi.pipeline`` the two stages, ``temi.cli`` the command line.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "TemiClusterer": "temi.pipeline.clusterer",
    "embed": "temi.pipeline.api",
    "train_heads": "temi.pipeline.api",
    "open_cache": "temi.pipeline.api",
    "open_run": "temi.pipeline.api",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names on demand: `import temi` is instant, torch comes with the first name that needs it."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
