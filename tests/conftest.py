"""Shapes in annotations are checked while tests run, and only then."""

from jaxtyping import install_import_hook

HOOK = install_import_hook(
    ["pipeline.objectives", "pipeline.heads", "pipeline.optimizer", "pipeline.mine"], "beartype.beartype"
)
