"""What was said of images is found again among others, and copies that contradict each other are named."""

import numpy as np
import pytest

from temi.pipeline.errors import UserError
from temi.pipeline.features.constraints import NOWHERE, Constraints, distinct_pairs, together

NONE = np.zeros((0, 2), dtype=np.int64)


def told(cluster: list[int], said: list[bool], must: object = NONE, cannot: object = NONE) -> Constraints:
    keys = [f"{number}.jpg" for number in range(len(cluster))]
    return Constraints(keys, np.array(cluster), np.array(said), distinct_pairs(must), distinct_pairs(cannot))


def test_more_images_in_another_order() -> None:
    known = told([4, 4, NOWHERE], [True, False, False], must=[(1, 0)], cannot=[(1, 2), (2, 0)])
    there = known.on(["new.jpg", "2.jpg", "0.jpg"])  # 1.jpg is gone
    assert there.cluster.tolist() == [NOWHERE, NOWHERE, 4]
    assert there.said.tolist() == [False, False, True]
    assert (there.must.tolist(), there.cannot.tolist()) == ([], [[1, 2]])
    assert (there.clusters, known.clusters) == (1, 1)
    assert (
        there.digest != known.digest == told([4, 4, NOWHERE], [True, False, False], [(0, 1)], [(0, 2), (1, 2)]).digest
    )


def test_images_of_another_folder_are_a_sentence() -> None:
    with pytest.raises(UserError, match=r"none of the images that corrections speak of is here \(0.jpg, ...\)"):
        told([1, 2], [True, True]).on(["a.png"])


def test_of_copies_the_one_that_a_person_placed_counts() -> None:
    first, group = np.array([0, 1]), np.array([0, 1, 0, 0])
    merged = told([7, 1, 2, 5], [False, False, True, False], must=[(0, 2), (1, 3)]).of_groups(first, group)
    assert merged.cluster.tolist() == [2, 1]
    assert merged.said.tolist() == [True, False]
    assert merged.must.tolist() == [[0, 1]]


def test_copies_that_contradict_each_other_are_named() -> None:
    first, group = np.array([0, 1]), np.array([0, 1, 0])
    with pytest.raises(UserError, match=r"0.jpg and 2.jpg were marked as different and have equal embeddings"):
        told([0, 1, 0], 3 * [False], cannot=[(0, 2)]).of_groups(first, group)
    with pytest.raises(UserError, match=r"0.jpg and 2.jpg were put into different clusters and have equal"):
        told([0, 1, 1], [True, False, True]).of_groups(first, group)


def test_pairs_that_belong_together_make_parts() -> None:
    assert together(distinct_pairs([(0, 3), (3, 1), (2, 2)]), 4).tolist() == [0, 0, 1, 0]
