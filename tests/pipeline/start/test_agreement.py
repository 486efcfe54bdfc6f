"""The one contingency table, and the agreement read from it, against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from temi.pipeline.start.agreement import contingency, mutual_information

ROWS = 200


def labelings() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    few, many, gaps = (draw.integers(0, count, ROWS) for count in (2, 60, 4))
    return [few, many, 3 * gaps + 5, np.zeros(ROWS, np.int64), np.arange(ROWS), few.astype(np.int32)]


def test_the_table_counts_rows_of_both() -> None:
    for one in labelings():
        for other in labelings():
            assert (contingency(one, other) == contingency_matrix(one, other)).all()


def test_ids_without_rows_have_a_place_where_the_shape_says_so() -> None:
    table = contingency(np.array([0, 0, 2]), np.array([1, 1, 0]), (3, 4))
    assert table.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_mutual_information_is_the_normalized_one() -> None:
    named = labelings()
    expected = [[normalized_mutual_info_score(one, other) for other in named] for one in named]
    assert mutual_information(named) == pytest.approx(np.array(expected), abs=1e-12)
