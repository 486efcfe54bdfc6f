"""Settings against what there is to train on."""

import pytest

from temi.pipeline.config import load_config
from temi.pipeline.errors import UserError
from temi.pipeline.runs.checks import check_settings


@pytest.mark.parametrize(
    ("n", "rows", "unreadable", "sentence"),
    [
        (1, 10, True, "only 1 of the 10 images of CACHE differ, and copies count once; add others"),
        (1, 1, False, "CACHE has 1 readable image to train on; embed more"),
        (0, 0, True, "CACHE has 0 readable images to train on; embed more (see failures.csv there)"),
    ],
)
def test_too_few_images_are_told_from_equal_and_from_unreadable_ones(
    n: int, rows: int, unreadable: bool, sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_settings(load_config(), n, 0, "CACHE", rows=rows, unreadable=unreadable)
    assert str(refused.value) == sentence
