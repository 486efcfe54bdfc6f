"""Cuts in the metric that clusters teach: its equation in a few lines of numpy, and rows where it matters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from temi.pipeline.config import StartConfig
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.start import find
from temi.pipeline.start.communities import cut_graphs
from temi.pipeline.start.consensus import consensus
from temi.pipeline.start.find import APART, TURNS, first_cuts, pool_start
from temi.pipeline.start.spaces import space_graphs
from temi.pipeline.start.taught import (
    SHRINKAGE,
    Metrics,
    covariance,
    discriminants,
    finely_taught_cuts,
    merged,
    small_communities,
    taught_cuts,
)
from temi.pipeline.start.vote import vote

COUNTS = [15, 12, 10]


def classes(seed: int, count: int = 5, width: int = 12, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Rows of mean zero, and a class of each."""
    random = np.random.default_rng(seed)
    label = np.r_[np.arange(count), random.integers(count, size=rows - count)]
    x = 2 * random.normal(size=(count, width))[label] + random.normal(size=(rows, width)) * random.uniform(
        0.3, 3, width
    )
    return (x - x.mean(0)).astype(np.float32), label


def cosines(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def seen(x: np.ndarray, *labels: np.ndarray) -> np.ndarray:
    """What partitions teach that count alike."""
    found = Metrics(x).taught(labels)
    assert found is not None
    return found


def metrics(features: Features) -> Metrics:
    return Metrics(features.scaled("joined").numpy())


def nested(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight classes that differ in 12 directions, while 30 others vary as much inside each of them."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(8), 60)
    apart = 1.5 * random.normal(size=(8, 12))[truth] + 0.8 * random.normal(size=(480, 12))
    return np.concatenate([apart, 1.6 * random.normal(size=(480, 30))], 1).astype(np.float32), truth


@pytest.mark.parametrize("counts", [[2], [5], [30], [5, 5, 20]])
def test_directions_solve_their_equation_and_weigh_their_reliability(counts: list[int]) -> None:
    x, _ = classes(0)
    labels = [np.random.default_rng(n).permutation(200) % count for n, count in enumerate(counts)]
    between, center = np.zeros((12, 12)), np.zeros(12)
    for label in labels:
        centers = np.stack([x[label == c].mean(0) for c in range(label.max() + 1)])
        between += centers[label].T @ centers[label] / len(x) / len(labels)
        center += centers.mean(0) / len(labels)
    within = x.T @ x / len(x) - between
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / 12 * np.eye(12)
    value, vector = eigh(between, shrunk)
    value, vector = value[value > 1e-3][::-1], vector[:, value > 1e-3][:, ::-1]
    expected = (x - center) @ vector
    found, reliability = discriminants(x, covariance(x), labels)
    signs = np.sign((found * expected).sum(0))  # an eigenvector may point either way
    np.testing.assert_allclose(found, signs * expected, atol=2e-3)
    np.testing.assert_allclose(reliability, value / (1 + value), atol=1e-4)
    if counts != [2]:
        weighed, alike = Metrics(x).taught(labels), Metrics(x).taught(labels, 2)
        assert weighed is not None
        assert alike is not None
        np.testing.assert_allclose(weighed, found * reliability, atol=1e-4)
        np.testing.assert_allclose(alike, found[:, :2], atol=1e-4)


def test_partitions_that_agree_teach_what_one_of_them_does() -> None:
    x, label = classes(4)
    np.testing.assert_allclose(cosines(seen(x, label, label)), cosines(seen(x, label)), atol=1e-4)


def test_what_partitions_disagree_about_counts_little() -> None:
    """Two partitions have the same border along the first coordinate, and each one of its own."""
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    x -= x.mean(0)
    first, own = x[:, 0] > 0, (x[:, 1:] > 0).astype(int)
    agreed, *alone = np.sort(np.square(seen(x, first + 2 * own[:, 0], first + 2 * own[:, 1])).mean(0))[::-1]
    assert len(alone) == 2
    assert max(alone) < agreed / 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_directions_do_not_depend_on_ids_on_the_axes_or_on_the_unit(seed: int, scale: float) -> None:
    x, label = classes(seed)
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(12, 12)))[0]
    turned = (scale * x @ turn).astype(np.float32)
    one, other = seen(x, label), seen(turned, random.permutation(5)[label])
    np.testing.assert_allclose(cosines(other), cosines(one), atol=2e-3)


@pytest.mark.filterwarnings("error")
def test_clusters_of_one_row_each_teach_what_can_be_computed_with() -> None:
    x = (0.1 * np.random.default_rng(0).normal(size=(5, 12))).astype(np.float32)
    found, reliability = discriminants(x - x.mean(0), covariance(x - x.mean(0)), [np.arange(5)])
    assert np.isfinite(found).all()
    assert np.isfinite(reliability).all()


def test_a_cluster_without_rows_teaches_nothing() -> None:
    x, label = classes(1)
    np.testing.assert_allclose(cosines(seen(x, 2 * label)), cosines(seen(x, label)), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_what_varies_inside_clusters_stops_to_count(seed: int) -> None:
    x, truth = nested(seed)
    graphs = space_graphs(Features.of_array(x), "joined", COUNTS)
    first = list(cut_graphs(graphs, 8, seed))
    taught = taught_cuts(metrics(Features.of_array(x)), first, 8, COUNTS, seed)
    before, after = (hungarian_accuracy(truth, vote(cuts, 8)[0]) for cuts in (first, taught))
    assert after > before


def test_heads_learn_the_consensus_of_every_turn_which_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = nested(0)
    features = Features.of_array(x)
    turns = [cuts_of_turn(features, seed) for seed in range(0, TURNS * APART, APART)]
    monkeypatch.setattr(find, "small_communities", lambda *_: {})  # so this is the only way to cut
    found, again = (pool_start(one, 8, StartConfig()) for one in (features, Features.of_array(x)))
    assert found.names == ("consensus: 100% communities joined 15, 12, 10",) * TURNS
    assert (found.cuts == again.cuts).all()
    for taught, cut in zip(turns, found.cuts, strict=True):
        assert hungarian_accuracy(consensus(taught, np.ones(3), 8), cut) == 1  # the same, but for the ids

    monkeypatch.setattr(find, "FEW", len(x) - 1)  # more rows are cut in one turn
    found = pool_start(Features.of_array(x), 8, StartConfig())
    for left_out, cut in enumerate(found.cuts):
        rest = [taught for number, taught in enumerate(turns[0]) if number != left_out]
        assert hungarian_accuracy(consensus(rest, np.ones(2), 8), cut) == 1
    assert len(found.cuts) == 3


def cuts_of_turn(features: Features, seed: int) -> list[np.ndarray]:
    first = first_cuts(space_graphs(features, "joined", COUNTS), 8, seed)
    return taught_cuts(metrics(features), first, 8, COUNTS, seed)


@pytest.mark.parametrize("seed", range(4))
def test_clear_clusters_of_very_uneven_size_are_found(seed: int) -> None:
    """Six clear clusters, one of them with 400 of 500 rows."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(6), (400, 20, 20, 20, 20, 20))
    x = (3 * random.normal(size=(6, 24))[truth] + random.normal(size=(500, 24))).astype(np.float32)
    found = pool_start(Features.of_array(x), 6, StartConfig())
    assert hungarian_accuracy(truth, vote(list(found.cuts), 6)[0]) > 0.97


def two_clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = np.repeat([0, 1], (120, 80))
    return (5 * random.normal(size=(2, 10))[truth] + random.normal(size=(200, 10))).astype(np.float32), truth


def test_of_two_clear_clusters_and_of_equal_rows_the_first_cuts_stay() -> None:
    for x, clusters in ((two_clusters(0)[0], 2), (np.ones((40, 6), np.float32), 4)):
        features = Features.of_array(x)
        first = list(cut_graphs(3 * space_graphs(features, "joined", COUNTS), clusters, 0))
        kept = taught_cuts(metrics(features), first, clusters, COUNTS, 0)
        assert all(one is other for one, other in zip(kept, first[:3], strict=True))


@pytest.mark.parametrize("moved", [1, 5, 40])
def test_of_two_clusters_cuts_that_disagree_about_some_rows_teach(moved: int) -> None:
    """Rows lie along one direction then, but for little."""
    x, truth = two_clusters(1)
    first = [truth.copy() for _ in range(9)]
    for cut in first[::3]:
        cut[:moved] = 1
    taught = taught_cuts(metrics(Features.of_array(x)), first, 2, COUNTS, 0)
    assert hungarian_accuracy(truth, vote(taught, 2)[0]) == 1


def defects(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Five small dense classes in the cloud of one that has most rows."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(6), (800, 60, 60, 60, 60, 60))
    center = random.normal(size=(6, 20))
    center *= 5 / np.linalg.norm(center, axis=1, keepdims=True)
    center[0] = 0
    x = center[truth] + np.where(truth == 0, 1, 0.3)[:, None] * random.normal(size=(1100, 20))
    return x.astype(np.float32), truth


@pytest.mark.parametrize("seed", range(6))
def test_small_communities_know_clusters_of_very_uneven_size(seed: int) -> None:
    x, truth = defects(seed)
    features = Features.of_array(x)
    graphs = space_graphs(features, "joined", COUNTS)
    first = first_cuts(graphs, 6, seed)
    plain = taught_cuts(metrics(features), first, 6, COUNTS, seed)
    found = pool_start(features, 6, StartConfig(seed=seed))
    before, after = (hungarian_accuracy(truth, vote(list(cuts), 6)[0]) for cuts in (plain, found.cuts))
    assert after > before
    assert after > 0.95


def test_clusters_as_small_as_small_communities_are_not_taught_by_them() -> None:
    features = Features.of_array(nested(0)[0])
    graph = space_graphs(features, "joined", COUNTS)[0]
    for clusters, expected in ((8, 3), (10, 2), (13, 1), (16, 0)):  # 480 rows: 9, 12 and 16 communities
        small = small_communities(graph, clusters, 0)
        sizes = [50, 40, 30][3 - expected :]
        assert list(small) == sizes
        ways = finely_taught_cuts(metrics(features), small, clusters, COUNTS, 0)
        assert [len(way) for way in ways] == ([len(COUNTS), expected] if expected else [])


def test_communities_of_the_highest_mean_cosine_are_merged_first() -> None:
    x, small = classes(2, count=12)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centers = np.stack([unit[small == c].mean(0) for c in range(12)])
    cosine, groups = cosines(centers), [[c] for c in range(12)]
    while len(groups) > 4:
        pairs = [(cosine[np.ix_(a, b)].mean(), a, b) for i, a in enumerate(groups) for b in groups[:i]]
        _, a, b = max(pairs)
        groups = [g for g in groups if g not in (a, b)] + [a + b]
    found = merged(x, small, 4)
    assert len(np.unique(found)) == 4
    assert all(len(np.unique(found[np.isin(small, group)])) == 1 for group in groups)


def test_fewer_communities_than_clusters_stay_and_equal_rows_are_merged() -> None:
    x, small = classes(3)
    assert (merged(x, small, 5) == small).all()
    assert len(np.unique(merged(np.zeros_like(x), small, 2))) == 2


@pytest.mark.parametrize("seed", range(4))
def test_merged_communities_know_clusters_of_uneven_size_that_are_of_groups(seed: int) -> None:
    """Clusters of 14 to one group of 40 rows: communities of like size divide those of many groups."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(6), (14, 6, 3, 2, 1, 1))
    centers = 1.5 * random.normal(size=(6, 40))[group] + 1.2 * random.normal(size=(27, 40))
    x = (centers.repeat(40, 0) + 0.7 * random.normal(size=(1080, 40))).astype(np.float32)
    features = Features.of_array(x)
    graphs = space_graphs(features, "joined", COUNTS)
    plain = taught_cuts(metrics(features), first_cuts(graphs, 6, seed), 6, COUNTS, seed)
    _, merger = finely_taught_cuts(metrics(features), small_communities(graphs[0], 6, seed), 6, COUNTS, seed)
    before, after = (hungarian_accuracy(group.repeat(40), vote(cuts, 6)[0]) for cuts in (plain, merger))
    assert after > before
    if seed < 2:  # of the others the plain cuts can be predicted without an error, too
        found = pool_start(features, 6, StartConfig(seed=seed))
        assert hungarian_accuracy(group.repeat(40), vote(list(found.cuts), 6)[0]) > before
