"""Pairs of every step say what was said, the same ones after a resume; where nothing was said there are none."""

import numpy as np
import pytest
import torch
from mixtures import mixture

from temi.pipeline.config import load_config
from temi.pipeline.features.constraints import NOWHERE, Constraints, distinct_pairs
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.constrained import DRAWN, ConstrainedPairs
from temi.pipeline.heads.trainer import HeadTrainer

CONFIG = load_config(None, ["heads.clusters=4", "heads.count=2", "neighbors.k=4", "train.batch_size=16"])
KEYS = [str(row) for row in range(40)]


def told(placed: dict[int, int], must: object = (), cannot: object = ()) -> Constraints:
    cluster = np.full(40, NOWHERE)
    cluster[list(placed)] = list(placed.values())
    return Constraints(KEYS, cluster, cluster != NOWHERE, distinct_pairs(must), distinct_pairs(cannot))


@pytest.fixture(scope="module")
def data():
    return load_training_set(Features.of_array(mixture(rows=40, dim=8, clusters=4)[0].astype(np.float32)), CONFIG)


def drawn(pairs: ConstrainedPairs, data, step: int) -> list[tuple[int, int, bool]]:
    """Rows of each pair, found again by their embeddings, and whether they belong together."""
    pairs.draw(step)
    rows = torch.cdist(pairs.batch, data.originals).argmin(1).tolist()
    return list(zip(rows, rows[len(pairs.together) :], pairs.together.tolist(), strict=False))


def test_pairs_say_what_was_said(data) -> None:
    placed = {0: 5, 1: 5, 2: 7, 3: 9}
    pairs = ConstrainedPairs(told(placed, must=[(10, 11)], cannot=[(12, 13)]), data, 4, seed=0)
    found = drawn(pairs, data, 3)
    assert len(found) == 4 * DRAWN
    named = {frozenset(pair[:2]) for pair in found if not set(pair[:2]) <= set(placed)}
    assert named == {frozenset((10, 11)), frozenset((12, 13))}
    for one, other, joined in found:
        if one in placed:
            assert joined == (placed[one] == placed[other])
        else:
            assert joined == ({one, other} == {10, 11})
    again = ConstrainedPairs(told(placed, must=[(10, 11)], cannot=[(12, 13)]), data, 4, seed=0)
    assert drawn(again, data, 3) == found != drawn(again, data, 4)


def test_fewer_clusters_than_were_left_may_join_them(data) -> None:
    pairs = ConstrainedPairs(told({0: 5, 1: 5, 2: 7, 3: 9}), data, 2, seed=0)
    assert all(joined for _, _, joined in drawn(pairs, data, 0))


def test_where_nothing_was_said_there_are_no_pairs(data) -> None:
    assert HeadTrainer([CONFIG], data, told=told({})).told is None


def test_a_step_pulls_pairs_together_and_apart(data) -> None:
    def together(known: Constraints | None) -> list[float]:
        """Probability that rows 0 and 1, of two clusters of the mixture, and rows 0 and 4, of one, are together."""
        trainer = HeadTrainer([CONFIG], data, told=known)
        for step, rows in enumerate(trainer.batches.bank_rows(0, 100)):
            trainer.step(step, rows)
        q = trainer.student.probabilities(data.originals, trainer.student_temperature)
        return (q[:, [0]] * q[:, [1, 4]]).sum(-1).mean(0).tolist()

    plain, changed = together(None), together(told({}, must=[(0, 1)], cannot=[(0, 4)]))
    assert changed[0] > 0.5 > plain[0]
    assert changed[1] < 0.5 < plain[1]
