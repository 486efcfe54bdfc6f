"""Two-stage clustering of images on frozen features.

Axis letters used in every shape comment of this package:

====  =======================================================
N     rows of the cache (images)
V     cached augmented views per image
D     width of an embedding
K     mined neighbors per row
T     trials trained in one pass
H     heads per trial
G     all heads of a pass, G = T * H
C     clusters of a head
B     pairs per training step
====  =======================================================
"""

from typing import Any

__all__ = ["TemiClusterer"]


def __getattr__(name: str) -> Any:
    """`TemiClusterer` on demand: the command line starts without torch and scikit-learn."""
    if name == "TemiClusterer":
        from temi.pipeline.clusterer import TemiClusterer

        return TemiClusterer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
