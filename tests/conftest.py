"""Shapes in annotations are checked while tests run, and only then."""

from jaxtyping import install_import_hook

STAGE_ONE = ["pipeline.images", "pipeline.views", "pipeline.backbones", "pipeline.preprocess", "pipeline.decoding"]
STAGE_TWO = [
    "pipeline.objectives",
    "pipeline.heads",
    "pipeline.optimizer",
    "pipeline.mine",
    "pipeline.exact",
    "pipeline.tree",
]
HOOK = install_import_hook([*STAGE_ONE, "pipeline.embed", *STAGE_TWO], "beartype.beartype")
