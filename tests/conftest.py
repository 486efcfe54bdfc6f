"""Shapes in annotations are checked while tests run, and only then."""

from jaxtyping import install_import_hook

STAGE_ONE = [
    "temi.pipeline.images",
    "temi.pipeline.encode.views",
    "temi.pipeline.encode.backbones",
    "temi.pipeline.encode.preprocessing",
    "temi.pipeline.encode.workers",
]
STAGE_TWO = [
    "temi.pipeline.heads.losses",
    "temi.pipeline.heads.objectives",
    "temi.pipeline.heads.stack",
    "temi.pipeline.heads.optimizer",
    "temi.pipeline.features.neighbors",
    "temi.pipeline.features.exact_search",
    "temi.pipeline.runs.joins",
]
HOOK = install_import_hook([*STAGE_ONE, "temi.pipeline.encode.embed", *STAGE_TWO], "beartype.beartype")
