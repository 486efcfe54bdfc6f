"""How well clusters can be predicted: scikit-learn's discriminants and kappa as the reference, and what must hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import cohen_kappa_score

from temi.pipeline.start.reliance import FOLDS, Folds, reliance
from temi.pipeline.start.taught import SHRINKAGE


def regions(seed: int, clusters: int = 4, width: int = 6, rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Rows of mean zero, and which of some overlapping clouds each is of."""
    random = np.random.default_rng(seed)
    label = np.r_[np.arange(clusters), random.integers(clusters, size=rows - clusters)]
    x = 2 * random.normal(size=(clusters, width))[label] + random.normal(size=(rows, width))
    return (x - x.mean(0)).astype(np.float32), label


@pytest.mark.parametrize("seed", range(3))
def test_predicted_as_scikit_learn_does(seed: int) -> None:
    x, label = regions(seed)
    folds = Folds(x)
    expected = np.empty_like(label)
    for fold in range(FOLDS):
        asked = folds.part == fold
        learned = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(x[~asked], label[~asked])
        expected[asked] = learned.predict(x[asked])
    assert (folds.predicted(label) == expected).all()
    assert folds.predictability(label) == pytest.approx(cohen_kappa_score(label, expected))
    assert np.bincount(folds.part).tolist() == [30, 30, 30, 30]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000))
def test_ids_and_axes_and_the_unit_do_not_count(seed: int) -> None:
    x, label = regions(seed)
    random = np.random.default_rng(seed)
    turned = (3 * x @ np.linalg.qr(random.normal(size=(6, 6)))[0]).astype(np.float32)
    other = Folds(turned).predictability(3 * random.permutation(4)[label])
    assert other == pytest.approx(Folds(x).predictability(label), abs=0.03)  # a row on a border may fall either way


def test_regions_are_predicted_better_than_labels_by_chance() -> None:
    x, label = regions(0)
    random = np.random.default_rng(0)
    shuffled = random.permutation(label)
    assert abs(Folds(x).predictability(shuffled)) < 0.2 < 0.8 < Folds(x).predictability(label)


def test_the_better_clusters_are_predicted_the_more_they_count() -> None:
    x, label = regions(0)
    random = np.random.default_rng(0)
    some = np.where(random.random(len(label)) < 0.1, random.integers(4, size=len(label)), label)
    labelings = [label, some, random.permutation(label)]
    wrong = 1 - np.array([Folds(x).predictability(one) for one in labelings]) + 1 / len(x)
    found = reliance(x, labelings)
    np.testing.assert_allclose(found, 1 / wrong**2 / sum(1 / wrong**2))
    assert found[0] > found[1] > found[2] > 0
    assert reliance(x, [some]).tolist() == [1]
    apart = (x + 100 * np.eye(4, 6)[label]).astype(np.float32)
    clear, wild = reliance(apart - apart.mean(0), [label, random.permutation(label)])  # one without an error
    assert 0.99 < clear < 1
    assert clear + wild == pytest.approx(1)


def test_one_cluster_and_a_cluster_of_one_row_and_equal_rows() -> None:
    x, label = regions(1)
    assert Folds(x).predictability(np.zeros_like(label)) == 0
    alone = np.where(np.arange(len(label)) == 5, 4, label)
    assert Folds(x).predictability(alone) < Folds(x).predictability(label)
    assert np.isfinite(Folds(np.zeros_like(x)).predictability(label))


@pytest.mark.parametrize("rows", range(1, 2 * FOLDS))
def test_a_few_rows_are_as_many_parts(rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    x -= x.mean(0)
    folds = Folds(x)
    assert (np.bincount(folds.part) > 0).all()
    assert len(folds.moment) == len(np.bincount(folds.part)) == min(rows, FOLDS)
    for label in (np.arange(rows), np.arange(rows) % 2, np.zeros(rows, dtype=np.int64)):
        assert -1 <= folds.predictability(label) <= 1
    assert reliance(x, [np.arange(rows), np.arange(rows) % 2]).sum() == pytest.approx(1)
