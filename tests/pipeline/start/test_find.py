"""Layouts, cuts, their alignment and the warm start: references, laws, and that they find what is there."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture, write_cache
from sklearn.cluster import KMeans

from temi.pipeline.config import StartConfig, load_config
from temi.pipeline.evaluate.tables import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.features.neighbors import exact_neighbors
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.start import find as start_module
from temi.pipeline.start.agreement import agreement, align, majority, match, mean_agreement
from temi.pipeline.start.cuts import LINKAGE, density_sizes, even_sizes, evenness, free_sizes, merge, silhouette
from temi.pipeline.start.find import _dealt, choose_cut, find_start, graph_layouts, warm_start
from temi.pipeline.start.umap import CURVE, _moves, fuzzy_graph, layout, principal_start

CPU = torch.device("cpu")


def neighbors(embedding: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    index, similarity = exact_neighbors(embedding.astype(np.float32), k)
    return index, 1 - similarity.astype(np.float32)


def test_fuzzy_graph_equals_the_definition_row_by_row() -> None:
    index, distance = neighbors(mixture(rows=60)[0], 8)
    one_way = np.zeros((60, 60))
    for i in range(60):
        low, high = 1e-9, 1e3
        for _ in range(200):
            sigma = (low + high) / 2
            total = np.exp(-(distance[i] - distance[i, 0]) / sigma).sum()
            low, high = (low, sigma) if total > np.log2(9) else (sigma, high)
        one_way[i, index[i]] = np.exp(-(distance[i] - distance[i, 0]) / sigma)
    expected = one_way + one_way.T - one_way * one_way.T
    np.testing.assert_allclose(fuzzy_graph(index, distance).toarray(), expected, atol=1e-3)


def test_fuzzy_graph_survives_duplicates() -> None:
    index, distance = neighbors(np.ones((30, 4)), 5)
    graph = fuzzy_graph(index, distance)
    assert np.isfinite(graph.data).all()
    assert graph.data.max() <= 1


def test_moves_are_the_gradient_of_umaps_objective() -> None:
    a, b = CURVE
    y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    attraction = torch.log(1 + a * (y[0] - y[1]).square().sum() ** b)  # -log of the edge's membership
    (gradient,) = torch.autograd.grad(attraction, y)
    moves = _moves(y.detach(), torch.empty(2, 0, dtype=torch.long), torch.Generator())
    assert (moves == 0).all()  # no edge, no move
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("temi.pipeline.start.umap.NEGATIVES", 0)
        moves = _moves(y.detach(), torch.tensor([[0], [1]]), torch.Generator())
    torch.testing.assert_close(moves, -gradient.clamp(-4, 4))


def test_a_layout_separates_clusters_and_is_a_function_of_its_seed() -> None:
    embedding, label = mixture(noise=0.6)
    graph = fuzzy_graph(*neighbors(embedding, 10))
    first = principal_start(torch.from_numpy(embedding).float(), seed=3)
    y = layout(graph, first, 60, 3, CPU)
    assert np.array_equal(y, layout(graph, first, 60, 3, CPU))
    assert not np.array_equal(y, layout(graph, first, 60, 4, CPU))
    assert hungarian_accuracy(label, even_sizes(y, graph, 6, seed=0)) > 0.97


def test_free_sizes_find_uneven_clusters_where_k_means_cuts_the_largest() -> None:
    rng = np.random.default_rng(0)
    line = np.c_[np.linspace(0, 30, 900), rng.normal(0, 0.3, (900, 2))]  # one long cluster
    small = [center + rng.normal(0, 0.3, (40, 3)) for center in ([0, 6, 0], [10, 6, 0], [20, 6, 0])]
    y = np.concatenate([line, *small]).astype(np.float32)
    label = np.repeat([0, 1, 2, 3], [900, 40, 40, 40])
    graph = fuzzy_graph(*_euclidean_neighbors(y, 8))
    free = free_sizes(y, graph, 4, seed=0)
    assert hungarian_accuracy(label, free) > 0.98 > 0.6 > hungarian_accuracy(label, even_sizes(y, graph, 4, seed=0))
    assert evenness(free, 4) < 0.5


def test_even_sizes_end_at_a_lower_inertia_than_k_means_from_many_starts() -> None:
    rng = np.random.default_rng(0)
    y = (rng.normal(0, 6, (60, 3))[rng.integers(60, size=3000)] + rng.normal(0, 0.5, (3000, 3))).astype(np.float32)
    label = even_sizes(y, sp.csr_array((3000, 3000)), 60, seed=0)
    inertia = sum(((y[label == c] - y[label == c].mean(0)) ** 2).sum() for c in range(60))
    assert inertia < KMeans(60, n_init=20, random_state=0).fit(y).inertia_
    assert np.array_equal(label, even_sizes(y, sp.csr_array((3000, 3000)), 60, seed=0))
    assert sorted(np.unique(even_sizes(y[:9], sp.csr_array((9, 9)), 9, seed=0))) == list(range(9))


@given(st.integers(1, 40), st.integers(1, 20))
def test_every_cut_is_dealt_to_a_head_and_every_head_has_one(heads: int, cuts: int) -> None:
    turns = np.array([_dealt(heads, cuts, step) for step in range(cuts)])
    assert turns.shape == (cuts, heads)
    if heads >= cuts:
        assert (turns == np.arange(heads) % cuts).all()
    else:
        assert set(turns.ravel()) == set(range(cuts))
        assert all(set(turns[:, head]) == set(range(head, cuts, heads)) for head in range(heads))


def _euclidean_neighbors(y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(y[:, None] - y[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    index = distance.argsort(1)[:, :k].astype(np.int32)
    return index, np.take_along_axis(distance, index, 1).astype(np.float32)


def test_merge_takes_the_pair_of_highest_linkage_each_time() -> None:
    rng = np.random.default_rng(1)
    weight = np.triu(rng.random((7, 7)), 1)
    weight, size = weight + weight.T, rng.integers(1, 9, 7)
    groups = [{i} for i in range(7)]
    while len(groups) > 3:

        def score(a: set[int], b: set[int]) -> float:
            n_a, n_b = size[list(a)].sum(), size[list(b)].sum()
            return float(weight[np.ix_(list(a), list(b))].sum() / (n_a * n_b) ** LINKAGE)

        a, b = max(((a, b) for a in groups for b in groups if a is not b), key=lambda pair: score(*pair))
        groups = [g for g in groups if g not in (a, b)] + [a | b]
    found = merge(weight, size, 3)
    assert sorted(sorted(np.flatnonzero(found == c).tolist()) for c in range(3)) == sorted(sorted(g) for g in groups)


@given(st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_alignment_does_not_depend_on_cluster_ids(clusters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, clusters, 80)
    labelings = [np.where(rng.random(80) < 0.2, rng.integers(0, clusters, 80), truth) for _ in range(5)]
    renamed = [rng.permutation(clusters)[label] for label in labelings]
    aligned, other = (align(found, agreement(found), clusters) for found in (labelings, renamed))
    for label, matched in zip(labelings, aligned, strict=True):  # the same partition
        assert len({*zip(label, matched, strict=True)}) == len({*label}) == len({*matched})
    assert hungarian_accuracy(majority(aligned, clusters), majority(other, clusters)) > 0.9


def test_match_and_agreement() -> None:
    label = np.array([0, 0, 1, 1, 2, 2])
    assert match((label + 1) % 3, label, 3).tolist() == [2, 0, 1]
    noise = np.array([0, 1, 0, 1, 0, 1])
    score = agreement([noise, label, (label + 1) % 3])
    np.testing.assert_allclose(score, [[1, 0, 0], [0, 1, 1], [0, 1, 1]], atol=1e-9)
    assert mean_agreement(score) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("merged", "dense", "cut"),
    [
        ((0.70, 0.94, 0.9), (0.90, 0.96, 0.9), "merged"),  # dense is steadier, but even
        ((0.70, 0.92, 0.9), (0.70, 0.93, 0.9), "dense"),  # both uneven and steadier
        ((0.70, 0.904, 0.9), (0.70, 0.89, 0.9), "even"),  # neither is steadier by more than 0.005
        ((0.70, 0.94, 0.55), (0.90, 0.93, 0.62), "even"),  # steadier, but less far apart
        ((0.85, 0.99, 0.9), (0.80, 0.99, 0.9), "even"),  # neither is uneven
    ],
)
def test_sizes_are_free_where_free_cuts_are_uneven_and_steady(
    merged: tuple[float, float, float], dense: tuple[float, float, float], cut: str
) -> None:
    even = (0.5, 0.9, 0.6)
    measures = ({"even": e, "merged": m, "dense": d} for e, m, d in zip(even, merged, dense, strict=True))
    assert choose_cut(*measures) == cut


@pytest.mark.parametrize("clusters", [2, 4, 7, 30])
def test_dense_parts_are_merged_or_split_to_the_number_asked_for(clusters: int) -> None:
    y, label = _blobs([300, 60, 60, 20])
    graph = fuzzy_graph(*_euclidean_neighbors(y, 8))
    found = density_sizes(y, graph, clusters, seed=0)
    assert sorted(np.unique(found)) == list(range(clusters))
    if clusters == 4:
        assert hungarian_accuracy(label, found) == 1.0
    if clusters < 4:  # no blob is cut
        assert all(len(np.unique(found[label == blob])) == 1 for blob in range(4))


def test_dense_parts_survive_identical_rows_and_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    same = np.zeros((40, 3), np.float32)
    assert density_sizes(same, fuzzy_graph(*_euclidean_neighbors(same, 5)), 3, seed=0).max() == 0
    y, label = _blobs([300, 60, 60, 20])
    monkeypatch.setattr("temi.pipeline.start.cuts.DENSITY_ROWS", 220)
    assert hungarian_accuracy(label, density_sizes(y, fuzzy_graph(*_euclidean_neighbors(y, 8)), 4, seed=0)) == 1.0


def test_silhouette_equals_the_definition_row_by_row() -> None:
    rng = np.random.default_rng(0)
    y, label = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    distance = np.linalg.norm(y[:, None] - y[None], axis=2)
    scores = []
    for row in range(30):
        own = (label == label[row]) & (np.arange(30) != row)
        inside = distance[row, own].mean()
        outside = min(distance[row, label == other].mean() for other in set(label) - {label[row]})
        scores.append((outside - inside) / max(inside, outside))
    assert silhouette(y, label) == pytest.approx(np.mean(scores), abs=1e-5)
    assert silhouette(y, np.zeros(30, np.int64)) == -1


def _blobs(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [8.0 * position + rng.normal(0, 0.5, (size, 3)) for position, size in enumerate(sizes)]
    return np.concatenate(rows).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def test_start_finds_the_clusters_and_its_layouts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, label = mixture(noise=0.6)
    cache = write_cache(tmp_path / "cache", embedding)
    features, config = Features.of_cache(cache, np.arange(cache.rows)), StartConfig()
    found = find_start(features, 6, config)
    assert all(hungarian_accuracy(label, cut) > 0.97 for cut in found.cuts)
    assert not found.free
    monkeypatch.setattr(start_module, "layout", lambda *_: pytest.fail("laid out again"))
    again = find_start(features, 6, config)
    assert np.array_equal(found.cuts, again.cuts)
    with pytest.raises(pytest.fail.Exception):
        graph_layouts(features, 6, 1)


def test_of_many_rows_a_sample_is_cut_and_heads_know_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, label = mixture(noise=0.6)
    features, config = Features.of_array(embedding), load_config(None, ["heads.clusters=6"])
    monkeypatch.setattr(start_module, "LARGEST", 250)
    data = load_training_set(features, config)
    found = find_start(features, 6, config.start)
    assert found.cuts.shape == (16, 250)
    assert (np.diff(found.rows) > 0).all()
    assert all(hungarian_accuracy(label[found.rows], cut) > 0.97 for cut in found.cuts)
    trainer = HeadTrainer([config], data)
    warm_start(trainer, [found], config.start)
    clusters = trainer.teacher.logits(data.originals).argmax(-1).numpy()
    assert all(hungarian_accuracy(label, own) > 0.95 for own in clusters)


@pytest.mark.parametrize("kind", ["linear", "published", "mlp-bn"])
def test_heads_learn_their_cuts(kind: str) -> None:
    embedding, label = mixture(noise=0.6)
    config = load_config(None, ["heads.clusters=6", "heads.count=2", f"heads.kind={kind}", "heads.hidden=64"])
    data = load_training_set(Features.of_array(embedding), config)
    trainer = HeadTrainer([config], data)
    start = start_module.Start(np.arange(len(label)), 6, label[None], "merged", {}, {}, {})
    warm_start(trainer, [start], config.start)
    for heads in (trainer.student, trainer.teacher):
        clusters = heads.logits(data.originals).argmax(-1).numpy()
        assert all((own == label).mean() > 0.97 for own in clusters)
    assert (trainer.settings["marginal_power"] == 0).all()  # free sizes: the objective stops balancing
    torch.testing.assert_close(trainer.marginal.sum(-1), torch.ones(2))


def test_every_head_learns_the_cut_dealt_to_it_also_where_trials_differ_in_clusters() -> None:
    embedding, label = mixture(noise=0.6)
    configs = [load_config(None, [f"heads.clusters={clusters}", "heads.count=2"]) for clusters in (6, 3)]
    data = load_training_set(Features.of_array(embedding), configs[0])
    trainer, rows, pairs = HeadTrainer(configs, data), np.arange(len(label)), label // 2
    starts = [
        start_module.Start(rows, 6, np.stack([label, 5 - label]).astype(np.int64), "even", {}, {}, {}),
        start_module.Start(rows, 3, np.stack([pairs, 2 - pairs]).astype(np.int64), "merged", {}, {}, {}),
    ]
    warm_start(trainer, starts, configs[0].start)
    clusters = trainer.teacher.logits(data.originals).argmax(-1).numpy()
    for own, wanted in zip(clusters, np.concatenate([start.cuts for start in starts]), strict=True):
        assert (own == wanted).mean() > 0.95
    assert trainer.settings["marginal_power"].tolist() == [1, 1, 0, 0]
