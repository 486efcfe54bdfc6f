"""Communities of the neighbor graph: modularity against its definition, and as many as are asked for."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture

from temi.pipeline.config import StartConfig
from temi.pipeline.evaluate.tables import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.features.neighbors import exact_neighbors
from temi.pipeline.start.communities import at_least, communities, settle
from temi.pipeline.start.find import find_start
from temi.pipeline.start.umap import fuzzy_graph


def graph_of(embedding: np.ndarray, k: int = 10) -> sp.csr_array:
    index, similarity = exact_neighbors(embedding.astype(np.float32), k)
    return fuzzy_graph(index, 1 - similarity.astype(np.float32))


def modularity(graph: np.ndarray, label: np.ndarray, resolution: float) -> float:
    """Sum over pairs in one community of A_ij - resolution * d_i d_j / 2m, over 2m."""
    degree, total = graph.sum(1), graph.sum()
    together = label[:, None] == label[None]
    return float(((graph - resolution * np.outer(degree, degree) / total) * together).sum() / total)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 16))
def test_settled_rows_gain_nothing_by_moving(seed: int, clusters: int) -> None:
    graph = graph_of(mixture(rows=64, noise=1.0, seed=seed)[0], k=5)
    label, resolution = at_least(graph, clusters, seed)
    settled, dense = settle(graph, label, resolution, seed), graph.toarray()
    level = modularity(dense, settled, resolution)
    assert level >= modularity(dense, label, resolution) - 1e-9
    for row in range(64):
        for community in np.unique(settled[dense[row] > 0]):  # of its neighbors: others gain nothing from it
            moved = np.where(np.arange(64) == row, community, settled)
            assert modularity(dense, moved, resolution) < level + 1e-9


def test_a_row_that_is_better_alone_stays_alone() -> None:
    graph = sp.csr_array(np.ones((4, 4)) - np.eye(4))
    assert settle(graph, np.arange(4), 100.0, seed=0).tolist() == [0, 1, 2, 3]
    assert len(set(settle(graph, np.arange(4), 0.1, seed=0))) < 4


@pytest.mark.parametrize("clusters", [2, 6, 25, 100])
def test_there_are_as_many_communities_as_asked_for(clusters: int) -> None:
    embedding, label = mixture(rows=600, noise=0.5)
    graph = graph_of(embedding)
    found = communities(graph, clusters, seed=1)
    assert np.array_equal(np.unique(found), np.arange(clusters))
    assert np.array_equal(found, communities(graph, clusters, seed=1))
    assert at_least(graph, clusters, seed=1)[0].max() >= clusters - 1
    if clusters == 6:
        assert hungarian_accuracy(label, found) > 0.98
    if clusters == 2:  # no class is cut
        assert all(np.mean(found[label == own] == found[label == own][0]) > 0.98 for own in range(6))


def test_a_graph_that_does_not_break_is_left_whole() -> None:
    whole = sp.csr_array(np.ones((40, 40)) - np.eye(40))
    assert communities(whole, 3, seed=0).max() <= 2


def test_half_of_many_even_cuts_are_communities(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, label = mixture(rows=1500, dim=24, clusters=100, noise=0.9)
    features, config = Features.of_array(embedding), StartConfig(sizes="even")
    both = find_start(features, 100, config)
    monkeypatch.setattr("temi.pipeline.start.find.MANY", 101)
    even = find_start(features, 100, config)
    assert both.cut == even.cut == "even"
    assert both.agreement == even.agreement  # the choice of sizes does not see communities
    right = np.array([[hungarian_accuracy(label, cut) for cut in start.cuts] for start in (both, even)])
    np.testing.assert_array_equal(right[0, ::2], right[1, ::2])
    assert right[0, 1::2].mean() > right[1, 1::2].mean()
