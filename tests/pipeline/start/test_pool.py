"""The parts of the start against a few lines of numpy, and the start as a whole."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from mixtures import SHORT_TRIALS, mixture, write_cache

from temi.pipeline.config import StartConfig, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.heads.warm_start import _dealt, warm_start
from temi.pipeline.registry import STARTS
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.trials import train_trials
from temi.pipeline.start import communities as communities_module
from temi.pipeline.start import find
from temi.pipeline.start.communities import communities, cut_graphs
from temi.pipeline.start.find import TURNS, Start, pool_start
from temi.pipeline.start.graph import edge_counts, fuzzy_graph
from temi.pipeline.start.kernels import contract, louvain, move_nodes
from temi.pipeline.start.spaces import neighbor_counts, space_graphs
from temi.pipeline.start.vote import vote


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def neighbors(u: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    near = u @ u.T
    np.fill_diagonal(near, -2)
    index = np.argsort(-near, 1)[:, :k]
    return index, 1 - np.take_along_axis(near, index, 1)


def blobs(random: np.random.Generator, sizes: tuple[int, ...], width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centers = 3.0 * random.normal(size=(len(sizes), width))
    return (centers[truth] + random.normal(size=(len(truth), width))).astype(np.float32), truth


def test_fuzzy_graph_sums_to_log2_before_the_union(random: np.random.Generator) -> None:
    index, distance = neighbors(unit(random.normal(size=(60, 8)).astype(np.float32)), 7)
    graph = fuzzy_graph(index, distance).toarray()
    one = np.zeros((60, 60))
    for i in range(60):
        excess, low, high = distance[i] - distance[i, 0], 1e-9, 1e3
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if np.exp(-excess / middle).sum() > np.log2(8) else (middle, high)
        one[i, index[i]] = np.exp(-excess / low)
    np.testing.assert_allclose(graph, one + one.T - one * one.T, atol=1e-4)


def test_contraction_sums_weights(random: np.random.Generator) -> None:
    weight = sp.random_array((20, 20), density=0.3, rng=random)
    weight = sp.csr_array(weight + weight.T)
    label = random.integers(0, 4, 20)
    arrays = weight.indptr.astype(np.int64), weight.indices.astype(np.int64), weight.data
    pointer, ends, sums = contract(*arrays, label, 4)
    np.testing.assert_allclose(sp.csr_array((sums, ends, pointer), shape=(4, 4)).toarray(), edge_counts(weight, label))


def test_moves_never_lower_modularity(random: np.random.Generator) -> None:
    index, distance = neighbors(unit(random.normal(size=(80, 5)).astype(np.float32)), 6)
    graph = fuzzy_graph(index, distance)
    arrays = graph.indptr.astype(np.int64), graph.indices.astype(np.int64), graph.data

    def modularity(label: np.ndarray) -> float:
        joint = edge_counts(graph, label) / graph.sum()
        return float(np.trace(joint) - 1.3 * (joint.sum(0) ** 2).sum())

    label = random.integers(0, 8, 80)
    before = modularity(label.copy())
    move_nodes(*arrays, np.asarray(graph.sum(1)), label, 1.3, random.permutation(80))
    assert modularity(label) > before
    assert modularity(louvain(*arrays, 1.3, 4, 0)) >= modularity(label) - 0.02


def test_vote_matches_ids(random: np.random.Generator) -> None:
    truth = random.integers(0, 3, 90)
    noisy = [np.where(random.random(90) < 0.2, random.integers(0, 3, 90), truth) for _ in range(9)]
    turned = [np.array([1, 2, 0])[label] if i % 2 else label for i, label in enumerate(noisy)]
    voted, share = vote(turned, 3)
    assert (voted == truth).mean() > 0.95
    np.testing.assert_allclose(share.sum(1), 1, rtol=1e-5)


def test_communities_are_as_many_as_asked(random: np.random.Generator) -> None:
    x, _ = blobs(random, (40,) * 6)
    graph = fuzzy_graph(*neighbors(unit(x - x.mean(0)), 10))
    assert communities(graph, 6, 0).max() == 5


def test_parts_that_no_edge_joins_are_merged_evenly_and_after_those_that_one_does() -> None:
    part = np.repeat(np.arange(12), 10)
    weight = (part[:, None] == part).astype(float)
    weight[0, 10] = weight[10, 0] = 1e-3
    label = communities(sp.csr_array(weight), 6, 0)
    assert sorted(np.bincount(label)) == [20] * 6
    assert label[0] == label[10]


def test_the_start_finds_the_clusters_and_is_made_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, label = mixture(noise=0.6)
    cache = write_cache(tmp_path / "cache", embedding)
    features, config = Features.of_cache(cache, np.arange(cache.rows)), StartConfig()
    found = pool_start(features, 6, config)
    assert all(hungarian_accuracy(label, cut) > 0.9 for cut in found.cuts)
    assert all((cut == found.cuts[0]).mean() > 0.9 for cut in found.cuts)  # their ids are matched
    for part in ("cut_graphs", "taught_cuts"):
        monkeypatch.setattr(find, part, lambda *_: pytest.fail("made again"))
    again = pool_start(Features.of_cache(cache, np.arange(cache.rows)), 6, config)
    assert np.array_equal(found.cuts, again.cuts)
    with pytest.raises(pytest.fail.Exception):
        pool_start(features, 6, StartConfig(seed=1))


def test_of_several_turns_one_line_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = mixture(rows=120)[0]
    pool_start(Features.of_array(rows), 6, StartConfig())
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if not line.startswith("neighbors")]
    assert told == ["cuts: 6/6 turn"]
    monkeypatch.setattr(find, "FEW", len(rows) - 1)
    pool_start(Features.of_array(rows), 6, StartConfig())
    assert "communities: 9/9 cut" in capsys.readouterr().err


def test_cuts_of_two_seeds_are_others_and_any_seed_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    cut = communities_module.find_communities
    monkeypatch.setattr(
        communities_module, "find_communities", lambda *of, seed: (seeds.append(seed), cut(*of, seed=seed))[1]
    )
    graphs = 9 * space_graphs(Features.of_array(mixture(rows=120)[0]), "joined", [10])
    for seed in (0, 1, 2, 3):
        list(cut_graphs(graphs, 6, seed))
    assert len(set(seeds)) == 36
    for seed in (-1, 2**70):
        assert len(list(cut_graphs(graphs[:2], 6, seed))) == 2


def test_the_metric_of_views_takes_the_place_of_the_plain_one() -> None:
    embedding, _ = mixture(rows=300)
    noise = np.random.default_rng(1).standard_normal((300, 2, 16)) / 8
    plain, seen = Features.of_array(embedding), Features.of_array(embedding, (embedding[:, None] + noise).astype("f2"))
    assert seen.scaled("joined").shape[1] > plain.scaled("joined").shape[1]
    for features, space in ((plain, "joined"), (seen, "views")):
        names = pool_start(features, 6, StartConfig()).names
        assert len(names) == TURNS
        assert re.fullmatch(rf"consensus: \d+% communities {space} 15, 12, 10; .* {space} merged", names[0])


def test_neighborhoods_are_smaller_where_clusters_have_few_rows_and_equal_graphs_are_one() -> None:
    assert neighbor_counts(1000, 10) == [15, 12, 10]
    assert neighbor_counts(200, 8) == [12, 12, 10]
    assert neighbor_counts(60, 20) == [5, 5, 5]
    assert neighbor_counts(4, 2) == [3, 3, 3]
    one, other, smaller = space_graphs(Features.of_array(mixture(rows=60)[0]), "center", [12, 12, 10])
    assert one is other
    assert smaller.nnz < one.nnz


@pytest.mark.parametrize("copies", [200, 500])
def test_a_lump_of_copies_counts_once(copies: int) -> None:
    embedding, label = mixture(rows=600, noise=0.6)
    lump = np.concatenate([embedding, np.repeat(embedding[:1] + np.float16(0.5), copies, 0)])
    distinct = Features.of_array(lump).distinct()
    assert len(distinct) == 601
    jitter = 1e-4 * np.random.default_rng(0).standard_normal(lump.shape)  # near-copies do not decide either
    near = Features.of_array((lump + jitter * (np.arange(len(lump)) >= 600)[:, None]).astype(np.float32))
    for features in (distinct, near):
        found = pool_start(features, 6, StartConfig())
        assert found.cuts.shape[1] == len(features)
        assert np.median([hungarian_accuracy(label, cut[:600]) for cut in found.cuts]) > 0.95


def test_rows_of_a_narrow_space_are_no_copies(random: np.random.Generator) -> None:
    """In four dimensions rows are so near to their neighbors that half precision takes many of them for one."""
    rows = np.repeat(3 * random.normal(size=(4, 4)), 250, 0) + 0.3 * random.normal(size=(1000, 4))
    features = Features.of_array(np.concatenate([rows, rows[:5] + 1e-4]).astype(np.float32))
    u = unit(features.scaled("whiten50").numpy().astype(np.float64))
    distance = neighbors(u, max(neighbor_counts(1005, 4)))[1]
    copies = sp.csr_array(1 - u @ u.T < np.median(distance[:, -1]) / 300)
    expected = sp.csgraph.connected_components(copies, directed=False)[1]
    found = find.distinct_sample(features, 4)
    assert expected.max() + 1 == len(found.features) == 1000
    assert hungarian_accuracy(expected, found.group) == 1


def test_of_many_rows_a_sample_is_cut_and_heads_know_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, label = mixture(noise=0.6)
    features, config = Features.of_array(embedding), load_config(None, ["heads.clusters=6"])
    monkeypatch.setattr(find, "LARGEST", 250)
    found = pool_start(features, 6, config.start)
    assert found.cuts.shape[1] == 250
    assert (np.diff(found.rows) > 0).all()
    assert np.median([hungarian_accuracy(label[found.rows], cut) for cut in found.cuts]) > 0.97
    trainer = HeadTrainer([config], load_training_set(features, config))
    warm_start(trainer, [found], config.start)
    clusters = trainer.teacher.logits(trainer.data.originals).argmax(-1).numpy()
    assert np.median([hungarian_accuracy(label, own) for own in clusters]) > 0.95


def start_of(clusters: int, *cuts: np.ndarray) -> Start:
    names = tuple(str(number) for number in range(len(cuts)))
    return Start(np.arange(len(cuts[0])), clusters, names, np.stack(cuts).astype("i8"))


@pytest.mark.parametrize("kind", ["linear", "published", "mlp-bn"])
def test_heads_learn_their_cuts(kind: str) -> None:
    embedding, label = mixture(noise=0.6)
    config = load_config(None, ["heads.clusters=6", "heads.count=2", f"heads.kind={kind}", "heads.hidden=64"])
    trainer = HeadTrainer([config], load_training_set(Features.of_array(embedding), config))
    warm_start(trainer, [start_of(6, label)], config.start)
    for heads in (trainer.student, trainer.teacher):
        clusters = heads.logits(trainer.data.originals).argmax(-1).numpy()
        assert all((own == label).mean() > 0.97 for own in clusters)
    assert np.allclose(trainer.marginal.sum(-1), 1)


def test_every_head_learns_the_cut_dealt_to_it_also_where_trials_differ_in_clusters() -> None:
    embedding, label = mixture(noise=0.6)
    configs = [load_config(None, [f"heads.clusters={clusters}", "heads.count=2"]) for clusters in (6, 3)]
    trainer, pairs = HeadTrainer(configs, load_training_set(Features.of_array(embedding), configs[0])), label // 2
    starts = [start_of(6, label, 5 - label), start_of(3, pairs, 2 - pairs)]
    warm_start(trainer, starts, configs[0].start)
    clusters = trainer.teacher.logits(trainer.data.originals).argmax(-1).numpy()
    for own, wanted in zip(clusters, np.concatenate([start.cuts for start in starts]), strict=True):
        assert (own == wanted).mean() > 0.95


@pytest.mark.parametrize(("heads", "cuts"), [(16, 12), (4, 12), (1, 12), (5, 3)])
def test_every_cut_is_dealt_to_a_head_and_every_head_has_one(heads: int, cuts: int) -> None:
    dealt = [_dealt(heads, cuts, step) for step in range(cuts)]
    assert all(len(hand) == heads for hand in dealt)
    assert {cut for hand in dealt for cut in hand} == set(range(cuts))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (5, "returned int; return a Start, or None"),
        (Start(np.arange(60), 4, ("one",), np.zeros((1, 5), int)), r"rows of shape \(60,\) and cuts of shape \(1, 5\)"),
        (
            Start(np.arange(60), 4, ("one",), np.full((1, 60), 4)),
            r"cuts of int64 from 4 to 4; return integers from 0 to 3",
        ),
        (Start(np.arange(60), 4, ("one",), np.full((1, 60), -1)), r"cuts of int64 from -1 to -1"),
        (Start(np.arange(60), 4, ("one",), np.zeros((1, 60))), r"cuts of float64"),
        (Start(np.arange(60) + 1, 4, ("one",), np.zeros((1, 60), int)), r"rows of int64 from 1 to 60"),
    ],
)
def test_a_start_that_heads_cannot_learn_is_a_sentence(
    found: object, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STARTS._entries, "mine", lambda *_: found)  # type: ignore[arg-type, return-value]
    config = load_config(None, ["heads.clusters=4", "heads.count=2", "start.kind=mine"])
    with pytest.raises(UserError, match="the start 'mine' .*" + sentence):
        fit_model(Features.of_array(mixture(rows=60, clusters=4)[0]), config)


def test_a_start_that_fails_is_a_sentence_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STARTS._entries, "mine", lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    config = load_config(None, ["heads.clusters=4", "heads.count=2", "start.kind=mine"])
    with pytest.raises(UserError, match=r"the start 'mine' failed at .*test_pool.py:\d+: ZeroDivisionError"):
        fit_model(Features.of_array(mixture(rows=60, clusters=4)[0]), config)


@pytest.mark.parametrize("other", [range(40), range(1, 31), None], ids=["fewer", "others", "none"])
def test_a_start_of_other_rows_for_another_number_is_refused(
    other: range | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(features: Features, clusters: int, config: StartConfig) -> Start | None:
        if clusters == 4 and other is None:
            return None
        rows = np.asarray(other if clusters == 4 else range(30))
        return Start(rows, clusters, ("mine",), rows[None] % clusters)

    monkeypatch.setitem(STARTS._entries, "mine", mine)
    cache = write_cache(tmp_path / "cache", mixture(rows=60, clusters=4)[0])
    base = [*SHORT_TRIALS, "heads.count=2", "start.kind=mine"]
    configs = [load_config(None, [*base, f"heads.clusters={clusters}"]) for clusters in (3, 4)]
    with pytest.raises(UserError, match="the start 'mine' cuts other rows for another number of clusters, or none"):
        train_trials(cache, configs, tmp_path / "runs")
