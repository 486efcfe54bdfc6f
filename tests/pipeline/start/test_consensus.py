"""The consensus of labelings: SciPy's average linkage of every row as the reference, and what must hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.start import consensus as module
from temi.pipeline.start.consensus import average_linkage, common_parts, consensus


def labelings_of(seed: int, count: int = 5, rows: int = 90) -> list[np.ndarray]:
    """Of rows in six clusters: each moves a fifth of them elsewhere, and merges or divides clusters."""
    random = np.random.default_rng(seed)
    truth = random.integers(6, size=rows)
    noisy = [np.where(random.random(rows) < 0.2, random.integers(6, size=rows), truth) for _ in range(count)]
    return [label // 2 if i % 2 else 2 * label + random.integers(2, size=rows) for i, label in enumerate(noisy)]


def of_every_row(labelings: list[np.ndarray], weight: np.ndarray, clusters: int) -> np.ndarray:
    share = weight / weight.sum()
    apart = sum(counts * (label[:, None] != label) for label, counts in zip(labelings, share, strict=True))
    return cut_tree(linkage(squareform(np.asarray(apart), checks=False), "average"), clusters)[:, 0]


@pytest.mark.parametrize("seed", range(6))
def test_as_average_linkage_of_every_row(seed: int) -> None:
    labelings, weight = labelings_of(seed), np.random.default_rng(seed).uniform(0.5, 2, 5)  # so that nothing is tied
    for clusters in (2, 4, 6, 9):
        found = consensus(labelings, weight, clusters)
        assert len(np.unique(found)) == clusters
        assert hungarian_accuracy(of_every_row(labelings, weight, clusters), found) == 1


def test_parts_are_merged_by_the_number_of_their_rows() -> None:
    # Of 0 and 1 together the mean to 2 is (9 * 0.6 + 1 * 0.1) / 10 = 0.55, above that of 2 and 3; 0.35 were they alike.
    similarity = np.array([[1, 0.9, 0.6, 0.0], [0.9, 1, 0.1, 0.0], [0.6, 0.1, 1, 0.5], [0.0, 0.0, 0.5, 1]])
    assert average_linkage(similarity, np.array([9, 1, 1, 1]), 2).tolist() == [0, 0, 0, 1]
    assert average_linkage(similarity, np.array([1, 1, 1, 1]), 2).tolist() == [0, 0, 1, 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), clusters=st.integers(1, 12), power=st.integers(-20, 20))
def test_ids_and_the_unit_of_weights_do_not_count(seed: int, clusters: int, power: int) -> None:
    labelings, random = labelings_of(seed), np.random.default_rng(seed)
    weight = random.uniform(0.5, 2, 5)
    found = consensus(labelings, weight, clusters)
    renamed = [3 * random.permutation(label.max() + 1)[label] for label in labelings]
    assert hungarian_accuracy(found, consensus(renamed, 2.0**power * weight, clusters)) == 1
    assert len(np.unique(found)) == clusters


def test_one_labeling_and_equal_ones_stay_and_too_few_parts_are_told() -> None:
    label = np.array([0, 2, 2, 1, 0])
    for labelings in ([label], [label, label, 5 - label]):
        found = consensus(labelings, np.ones(len(labelings)), 3)
        assert hungarian_accuracy(label, found) == 1
        assert len(np.unique(consensus(labelings, np.ones(len(labelings)), 4))) == 3
    assert common_parts([label, np.array([0, 0, 0, 0, 1])]).tolist() == [0, 1, 1, 2, 3]


def test_what_most_of_the_weight_keeps_together_is_one_cluster() -> None:
    truth = np.repeat([0, 1, 2], (60, 20, 20))
    even = np.repeat([0, 1, 2], (30, 30, 40))
    for weight, expected in ((1.2, truth), (0.8, even)):
        found = consensus([even, even, truth, truth], np.array([1, 1, weight, weight]), 3)
        assert hungarian_accuracy(expected, found) == 1


def test_of_many_parts_the_largest_are_merged_and_the_rest_go_where_they_share_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labelings, weight = labelings_of(3, rows=400), np.array([1, 1.5, 0.7, 1.2, 0.9])
    part = common_parts(labelings)
    size = np.bincount(part)
    monkeypatch.setattr(module, "MOST", 40)
    found = consensus(labelings, weight, 6)
    largest = np.isin(part, np.sort(np.argsort(-size, kind="stable")[:40]))
    expected = of_every_row([label[largest] for label in labelings], weight, 6)
    assert hungarian_accuracy(expected, found[largest]) == 1
    for row in np.flatnonzero(~largest)[:50]:
        shared = sum(w * (label[largest] == label[row]) for label, w in zip(labelings, weight, strict=True))
        mean = [np.asarray(shared)[found[largest] == cluster].mean() for cluster in range(6)]
        assert mean[found[row]] == pytest.approx(max(mean))


def test_as_many_clusters_as_asked_are_found_also_beyond_the_parts_that_are_merged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labelings = labelings_of(4, rows=400)
    monkeypatch.setattr(module, "MOST", 40)
    found = consensus(labelings, np.ones(5), 60)
    assert common_parts(labelings).max() >= 60
    assert np.unique(found).tolist() == list(range(60))
