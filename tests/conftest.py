"""Shapes in annotations are checked while tests run, and only then; nothing is written to the user's own cache."""

from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

STAGE_ONE = [
    "temi.pipeline.images",
    "temi.pipeline.encode.views",
    "temi.pipeline.encode.backbone",
    "temi.pipeline.encode.hugging_face",
    "temi.pipeline.encode.openvino",
    "temi.pipeline.encode.preprocessing",
    "temi.pipeline.encode.workers",
    "temi.pipeline.encode.forward",
    "temi.pipeline.encode.shards",
    "temi.pipeline.encode.embed",
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
HOOK = install_import_hook([*STAGE_ONE, *STAGE_TWO], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user cache")))
        yield
