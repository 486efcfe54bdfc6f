"""Cuts keep what a person said: placed rows stay, others like them follow, and clusters keep their numbers."""

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from mixtures import mixture

from temi.pipeline.features.constraints import NOWHERE, Constraints
from temi.pipeline.features.features import Features
from temi.pipeline.start.find import Start
from temi.pipeline.start.honor import honored, matched, spread_placed


def test_earlier_clusters_are_matched_by_the_rows_they_share() -> None:
    cut = np.array([2, 2, 2, 0, 0, 1, 1])
    assert matched([cut], np.array([0, 0, 0, 1, 1, NOWHERE, 1]), 3).tolist() == [2, 0]
    assert matched([cut], np.array([0, 0, 1, 2, 2, 3, 3]), 3)[[0, 2, 3]].tolist() == [2, 0, 1]  # four into three


def test_spreading_equals_a_dense_reference() -> None:
    random = np.random.default_rng(0)
    walk = random.random((12, 12))
    walk /= walk.sum(1, keepdims=True)
    cut, placed = random.integers(0, 3, 12), np.full(12, NOWHERE)
    placed[[2, 5]] = 1, 2
    cut[7] = NOWHERE
    own = (cut[:, None] == np.arange(3)).astype(float)
    f = own.copy()
    for _ in range(20):
        f[[2, 5]] = np.eye(3)[[1, 2]]
        f = (walk @ f + own) / 2
    expected = f.argmax(1)
    expected[[2, 5]] = 1, 2
    found = spread_placed(cut, placed, sp.csr_array(walk.astype(np.float32)), 3)
    np.testing.assert_array_equal(found, expected)


def test_what_no_placed_row_reaches_lies_with_the_nearest_center() -> None:
    """New images of an unknown kind, in a part of the graph of their own: cluster 0 is one like any other."""
    random, label = np.random.default_rng(0), np.repeat(np.arange(5), 60)
    centers = np.eye(5, 8) + 0.5 * (np.arange(5) == 4)[:, None] * np.eye(5, 8)[2]  # the new kind is like the third
    embedding = centers[label] + 0.02 * random.normal(size=(300, 8))
    left = np.where(label == 4, NOWHERE, label + 10)
    none = np.zeros((0, 2), dtype=np.int64)
    told = Constraints([str(row) for row in range(300)], left, label == 4, none, none)
    start = Start(np.arange(300), 4, ("communities",), (label % 4)[None])
    changed = honored(start, Features.of_array(embedding.astype(np.float32)), replace(told, said=label == 0))
    assert changed.names == ("as corrected",)
    np.testing.assert_array_equal(changed.cuts[0], np.where(label == 4, 2, label))


def test_placed_rows_lie_with_the_cluster_they_were_put_into() -> None:
    embedding, label = mixture(rows=240, clusters=4, noise=0.3)
    features, rows = Features.of_array(embedding.astype(np.float32)), np.arange(240)
    cuts = np.stack([label, (label + 0 * rows)]).astype(np.int64)
    left, said = (label.astype(np.int64) + 10), np.zeros(240, dtype=bool)
    moved = rows[label == 0][:5]
    left[moved], said[moved] = 12, True
    none = np.zeros((0, 2), dtype=np.int64)
    told = Constraints([str(row) for row in rows], left, said, none, none)
    start = Start(rows, 4, ("communities joined 15", "communities joined 12"), cuts)
    changed = honored(start, features, told)
    assert changed.names == ("as corrected",)
    assert (changed.cuts[:, moved] == 2).all()
    others = np.setdiff1d(rows, moved)
    assert (changed.cuts[:, others] == label[others]).mean() > 0.9
    more = honored(replace(start, clusters=5), features, told)  # another number: no cut is the earlier one
    assert len(more.cuts) == 2
    assert (more.cuts[:, moved] == 2).all()
