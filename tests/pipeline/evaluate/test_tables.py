"""Metrics against hand-made cases and laws; a run evaluated on what it saw and what it did not."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture, write_cache

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.metrics import (
    cluster_scores,
    confident_accuracy,
    hungarian_accuracy,
    knn_accuracy,
    probe_accuracy,
    purity,
)
from temi.pipeline.evaluate.tables import evaluate_run
from temi.pipeline.evaluate.trials import evaluate_trials
from temi.pipeline.results.compare import compare
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.records import Result, read_record
from temi.pipeline.runs.train import train_heads
from temi.pipeline.runs.trials import plan_trials, train_trials

labelings = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 3), min_size=n, max_size=n).map(np.array) for _ in range(2)))
)


@given(labelings)
@settings(deadline=None)
def test_hungarian_accuracy_is_the_best_over_all_renamings(pair: tuple[np.ndarray, np.ndarray]) -> None:
    label, cluster = pair
    best = max((np.array(names)[cluster] == label).mean() for names in permutations(range(4)))
    assert hungarian_accuracy(label, cluster) == pytest.approx(best)


@given(labelings, st.permutations(range(4)))
@settings(deadline=None)
def test_scores_do_not_depend_on_names_and_purity_bounds_accuracy(
    pair: tuple[np.ndarray, np.ndarray], names: list[int]
) -> None:
    label, cluster = pair
    scores, renamed = (cluster_scores(label, c, 4) for c in (cluster, np.array(names)[cluster]))
    for name in ("acc", "nmi", "ami", "ari", "purity", "effective_clusters", "used_clusters"):
        assert scores[name] == pytest.approx(renamed[name], abs=1e-6)
    assert scores["acc"] <= scores["purity"] + 1e-12
    majority = sum(np.bincount(label[cluster == c]).max() for c in np.unique(cluster)) / len(label)
    assert purity(label, cluster) == pytest.approx(majority)


def test_perfect_and_partly_unknown_labels() -> None:
    label, cluster = np.array([0, 0, 1, 1, -1]), np.array([3, 3, 1, 1, 0])
    scores = cluster_scores(label, cluster, 5)
    assert [scores[name] for name in ("acc", "nmi", "ami", "ari", "purity")] == pytest.approx([1] * 5)
    assert (scores["used_clusters"], scores["smallest_cluster"], scores["largest_cluster"]) == (3, 0, 2)
    assert "acc" not in cluster_scores(np.full(5, -1), cluster, 5)


def test_accuracy_of_the_most_confident() -> None:
    label, cluster = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, -1]), np.array([5, 5, 3, 3, 3, 3, 1, 1, 3, 1])
    confidence = np.array([9, 8, 1, 9, 8, 7, 9, 8, 0.5, 9.0])
    found = confident_accuracy(label, cluster, confidence)
    assert found == pytest.approx({"50": 1.0, "80": 1.0, "90": 7 / 8, "100": 7 / 9})
    assert found["100"] == pytest.approx(hungarian_accuracy(label[:9], cluster[:9]))
    assert confident_accuracy(np.array([-1]), np.array([0]), np.array([1.0])) == {}


def test_ceilings_read_the_labels_and_never_the_row_itself() -> None:
    embedding, label = mixture(noise=0.5)
    noise = np.random.default_rng(0).permutation(label)
    assert knn_accuracy(embedding, label) > 0.98
    assert knn_accuracy(embedding, noise) < 0.3
    assert probe_accuracy(embedding, label) > 0.95
    assert knn_accuracy(embedding[:400], label[:400], embedding[400:], label[400:]) > 0.98
    assert probe_accuracy(embedding[:400], label[:400], embedding[400:], label[400:]) > 0.95


@pytest.mark.parametrize("counts", [(40,), (40, 1)])
def test_the_probe_of_a_single_class_says_that_one(counts: tuple[int, ...]) -> None:
    label = np.repeat(np.arange(len(counts)), counts)
    embedding = np.random.default_rng(0).standard_normal((len(label), 8))
    assert 0.9 < probe_accuracy(embedding, label) <= 1
    assert probe_accuracy(embedding, np.zeros_like(label), embedding[:4], np.array([0, 0, 0, 1])) == 0.75


QUICK = ["heads.clusters=6", "heads.count=2", "train.min_steps=20", "train.epochs=0", "train.tensorboard=false"]


def test_a_run_is_scored_on_training_rows_and_its_held_out_split(tmp_path: Path) -> None:
    embedding, label = mixture(noise=0.5)
    cache = write_cache(tmp_path / "cache", embedding, label, splits={"train": (0, 400), "test": (400, 600)})
    train_heads(cache, load_config(None, QUICK), tmp_path / "run")
    result = evaluate_run(tmp_path / "run")
    assert result == read_record(Result, tmp_path / "run/result.json")
    assert [(part.name, part.images) for part in result.parts] == [
        ("training rows", 400),
        ("held out: test", 200),
    ]
    for part in result.parts:
        rows = {row.method: row for row in part.rows}
        assert {"TEMI", "best head", "k-means", "20-NN on labels", "linear probe"} <= set(rows)
        assert rows["TEMI"].acc > 0.95
        assert (rows["TEMI"].kind, rows["k-means"].kind) == ("clustering", "baseline")
    assert (tmp_path / "run/assignments.csv").read_text().count("\n") == 601


def test_a_run_is_scored_on_another_cache_of_the_same_backbone_only(tmp_path: Path) -> None:
    embedding, label = mixture(noise=0.5)
    home = write_cache(tmp_path / "home", embedding[:400])
    train_heads(home, load_config(None, QUICK), tmp_path / "run")
    other = write_cache(tmp_path / "other", embedding[400:], label[400:])
    parts = evaluate_run(tmp_path / "run", other).parts
    assert [part.name for part in parts] == ["training rows", "held out: other"]
    assert parts[0].rows[0].acc is None  # no labels there: label-free scores only
    assert parts[1].rows[0].acc > 0.95
    assert (tmp_path / "run/held-out/assignments.csv").exists()
    (tmp_path / "run/assignments.parquet").unlink()
    with pytest.raises(UserError, match=r"assignments.parquet does not exist; write it again with `temi evaluate "):
        _ = FinishedRun(tmp_path / "run").assignments
    evaluate_run(tmp_path / "run", other)  # as where the cache has grown and moved
    table = FinishedRun(tmp_path / "run").assignments
    assert len(table) == 400
    table.assign(cluster="0").to_parquet(tmp_path / "run/assignments.parquet")
    with pytest.raises(UserError, match=r"assignments.parquet does not fit the run; write it again"):
        _ = FinishedRun(tmp_path / "run").assignments
    foreign = write_cache(tmp_path / "foreign", embedding, backbone="another")
    with pytest.raises(UserError, match=r'was embedded otherwise .* here "another", asked "made-up"'):
        evaluate_run(tmp_path / "run", foreign)


def test_trials_of_other_splits_stand_in_tables_of_their_own_beside_their_own_baselines(tmp_path: Path) -> None:
    embedding, label = mixture(rows=200)
    cache = write_cache(tmp_path / "cache", embedding, label, splits={"a": (0, 40), "b": (40, 160), "c": (160, 200)})
    train_trials(cache, plan_trials(None, ["train.split=a,b"], None, [*QUICK, "neighbors.k=10"]), tmp_path / "out")
    parts = evaluate_trials(tmp_path / "out").parts
    assert {part.name: part.images for part in parts} == {
        "training rows, train.split=a": 40,
        "held out: b, train.split=a": 120,
        "held out: c, train.split=a": 40,
        "training rows, train.split=b": 120,
        "held out: a, train.split=b": 40,
        "held out: c, train.split=b": 40,
    }
    for part in parts:
        split = part.name[-1]
        assert {row.method for row in part.rows} == {
            f"trial-00{'ab'.index(split)} train.split={split}",
            "k-means, 6 clusters",
        }
    trained = {split: {row.method: row for row in part.rows} for split, part in zip("ab", parts[::3], strict=True)}
    choices = compare([tmp_path / "out"])
    assert {choice.settings["train.split"]: choice.acc.mean for choice in choices} == {
        split: next(row.acc for row in rows.values() if row.kind == "clustering") for split, rows in trained.items()
    }


def test_classes_of_another_cache_are_told_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedding, label = mixture(noise=0.5)
    home = write_cache(tmp_path / "home", embedding[:400], label[:400])
    train_heads(home, load_config(None, QUICK), tmp_path / "run")
    few = np.flatnonzero(np.isin(label[400:], [2, 5])) + 400
    names = ("class 5", "class 2")
    other = write_cache(tmp_path / "other", embedding[few], (label[few] == 2).astype(np.int32), classes=names)
    rows = {row.method: row for row in evaluate_run(tmp_path / "run", other).parts[1].rows}
    assert rows["20-NN on labels"].acc > 0.95
    assert rows["linear probe"].acc > 0.95
    new = write_cache(tmp_path / "new", embedding[400:], label[400:], classes=("x", *home.classes[1:]))
    methods = {row.method for row in evaluate_run(tmp_path / "run", new).parts[1].rows}
    assert {"TEMI", "k-means"} <= methods
    assert "linear probe" not in methods
    assert "held out: new: no ceilings, as 1 of its classes are not among those of the" in capsys.readouterr().err


def test_the_own_cache_that_only_lost_images_has_nothing_new_to_score(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    train_heads(cache, load_config(None, QUICK), tmp_path / "run")
    manifest = cache.manifest
    manifest.grown(manifest.fingerprint, 0, 256, classes=manifest.classes, removed=(3,)).write(tmp_path / "cache")
    with pytest.raises(UserError, match=r"cache holds no image that .*run was not trained on; leave it out"):
        evaluate_run(tmp_path / "run", EmbeddingCache.open(tmp_path / "cache"))


def test_what_cannot_be_evaluated_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a finished run"):
        evaluate_run(tmp_path)
    cache = write_cache(tmp_path / "cache", mixture()[0])
    train_heads(cache, load_config(None, QUICK), tmp_path / "run")
    (tmp_path / "cache/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"cache"):
        evaluate_run(tmp_path / "run")


def test_a_training_cache_that_moved_is_asked_for(tmp_path: Path) -> None:
    train_heads(write_cache(tmp_path / "cache", mixture()[0]), load_config(None, QUICK), tmp_path / "run")
    (tmp_path / "cache").rename(tmp_path / "moved")
    sentence = r"run was trained on the cache .*cache, which is not there any more; give its new place by --cache or as"
    with pytest.raises(UserError, match=sentence):
        evaluate_run(tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        _ = FinishedRun(tmp_path / "run").cache
    assert len(evaluate_run(tmp_path / "run", EmbeddingCache.open(tmp_path / "moved")).parts) == 1
