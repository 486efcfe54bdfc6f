"""Baselines on easy mixtures, where every one of them must be right, and what is particular to each."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache
from sklearn.cluster import KMeans
from typer.testing import CliRunner

from temi.cache.info import list_made
from temi.cli import app
from temi.pipeline.config import load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate import baselines, recipes, tables
from temi.pipeline.evaluate.baselines import extended, run_baseline
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.evaluate.recipes import RECIPES, asks_for_all, load_recipe, parse_baselines
from temi.pipeline.features.unit_rows import unit_rows
from temi.pipeline.plugins import load_plugin
from temi.pipeline.registry import BASELINES
from temi.pipeline.runs.train import train_heads
from temi.pipeline.runs.trials import plan_trials, train_trials


def available(name: str) -> bool:
    try:
        for module in BASELINES[name].modules:
            importlib.import_module(module)
    except ImportError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # numba and UMAP warn of their own future
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if BASELINES[name].modules else [])
        for name in BASELINES
        if name != "turtle"
    ],
)
def test_every_baseline_finds_an_easy_mixture_and_assigns_new_rows(name: str) -> None:
    if not available(name):
        pytest.skip(f"the extra {BASELINES[name].extra} is not installed")
    embedding, label = mixture(rows=400, clusters=4, noise=0.2)
    found, seconds = run_baseline(name, embedding[:300], 4)
    (held_out,) = extended(name, embedding[:300], found, [embedding[300:]])
    assert found.dtype == held_out.dtype == np.int64
    assert hungarian_accuracy(label[:300], found) == 1.0
    assert hungarian_accuracy(np.r_[label], np.r_[found, held_out]) == 1.0
    assert seconds > 0
    again, _ = run_baseline(name, embedding[:300], 4)
    assert (again == found).all()


@pytest.mark.parametrize("spaces", [1, 2])
def test_turtle_finds_an_easy_mixture(spaces: int) -> None:
    embedding, label = mixture(rows=200, dim=64, clusters=3, noise=0.2)
    raw = 16 * embedding.astype(np.float32)  # unit rows would barely move a classifier in ten steps
    second = raw @ np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32) / 8
    found = baselines.turtle(raw if spaces == 1 else [raw, second], 3, 0, steps=200, device="cpu")
    assert hungarian_accuracy(label, found) > 0.97


def test_turtle_leaves_torch_random_state_alone_and_follows_its_seed() -> None:
    embedding, _ = mixture(rows=60, clusters=3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (baselines.turtle(embedding, 3, 1, steps=3, device="cpu") for _ in range(2))
    assert (first == second).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_turtle_loss_is_first_order_and_matches_numpy() -> None:
    torch.manual_seed(0)
    spaces = [torch.randn(12, 5), torch.randn(12, 7)]
    scores = [torch.randn(12, 3, requires_grad=True) for _ in spaces]
    torch.manual_seed(1)
    loss = baselines.turtle_loss(spaces, [s.softmax(1) for s in scores])
    loss.backward()

    torch.manual_seed(1)
    tasks = [s.detach().softmax(1) for s in scores]
    mean = (tasks[0] + tasks[1]) / 2
    wanted, gradient = 0.0, torch.zeros_like(mean)
    for space, task in zip(spaces, tasks, strict=True):
        log = baselines._fitted_logits(space, mean).log_softmax(1)
        share = task.numpy().mean(0)
        wanted += -(mean.numpy() * log.numpy()).sum(1).mean() + 10 * (share * np.log(share)).sum()
        gradient -= log / 12 / 2  # of both cross-entropies by one task: the mean holds half of it
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)
    for task, score in zip(tasks, scores, strict=True):
        by_task = gradient + 10 / 12 * (task.mean(0).log() + 1)
        by_score = task * (by_task - (task * by_task).sum(1, keepdim=True))
        assert score.grad is not None
        torch.testing.assert_close(score.grad, by_score, rtol=1e-4, atol=1e-6)


def test_turtle_classifier_takes_ten_adam_steps() -> None:
    x, target = torch.randn(20, 4), torch.eye(3)[torch.arange(20) % 3]
    torch.manual_seed(3)
    fitted = baselines._fitted_logits(x, target)
    assert not fitted.requires_grad
    torch.manual_seed(3)
    fresh = torch.nn.Linear(4, 3)
    w, b = fresh.weight.detach().double().numpy(), fresh.bias.detach().double().numpy()
    parameters = [w.copy(), b.copy()]
    first, second = [0 * p for p in parameters], [0 * p for p in parameters]
    inputs, wanted = x.double().numpy(), target.double().numpy()
    for step in range(1, 11):
        logits = inputs @ parameters[0].T + parameters[1]
        q = np.exp(logits - logits.max(1, keepdims=True))
        error = (q / q.sum(1, keepdims=True) - wanted) / 20
        for p, m, v, g in zip(parameters, first, second, (error.T @ inputs, error.sum(0)), strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= 1e-3 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(fitted.numpy(), inputs @ parameters[0].T + parameters[1], atol=1e-5)


def test_spherical_k_means_centers_are_its_clusters_directions() -> None:
    embedding, _ = mixture(rows=200, clusters=5, noise=0.8)
    x = unit_rows(embedding)
    label = baselines.spherical_k_means(embedding, 5, 0)
    center = np.stack([x[label == c].sum(0) for c in range(5)])
    center /= np.linalg.norm(center, axis=1, keepdims=True)
    assert (label == (x @ center.T).argmax(1)).all()  # a fixed point


def test_new_rows_of_k_means_join_what_scikit_learn_says() -> None:
    embedding, _ = mixture(rows=500, clusters=5, noise=0.4)
    x = unit_rows(embedding)
    found, _ = run_baseline("kmeans", embedding[:400], 5)
    (held_out,) = extended("kmeans", embedding[:400], found, [embedding[400:]])
    model = KMeans(5, n_init=10, random_state=0).fit(x[:400])
    assert (held_out == model.predict(x[400:])).mean() > 0.98


def test_new_rows_elsewhere_follow_their_neighbors_not_the_means() -> None:
    angle = np.r_[np.linspace(0.0, 0.2, 30), np.linspace(0.5, 0.7, 30), np.linspace(1.2, 1.4, 30)]
    train = np.c_[np.cos(angle), np.sin(angle)].astype(np.float32)
    cluster = np.repeat([0, 1, 0], 30)  # the mean of cluster 0 lies in the middle of cluster 1
    rows = np.array([[np.cos(0.1), np.sin(0.1)], [np.cos(0.6), np.sin(0.6)]], np.float32)
    assert baselines.neighbor_vote(train, cluster, rows).tolist() == [0, 1]


def test_ward_joins_a_graph_in_parts() -> None:
    far = np.concatenate([np.tile(axis, (30, 1)) for axis in np.eye(6)]).astype(np.float32)
    far += 1e-3 * np.random.default_rng(0).standard_normal(far.shape).astype(np.float32)
    label = baselines.ward(far, 6, 0)
    assert hungarian_accuracy(np.repeat(np.arange(6), 30), label) == 1.0


def test_names_of_baselines() -> None:
    assert parse_baselines("none") == []
    assert parse_baselines("kmeans,scan") == ["kmeans", "scan"]
    with pytest.raises(UserError, match=r"has no 'means'; give all, none or some of kmeans,spherical"):
        parse_baselines("kmeans,means")


def test_names_of_baselines_on_scaled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "import_needed", lambda name: None)
    assert parse_baselines("kmeans,ward@views") == ["kmeans", "ward@views"]
    assert parse_baselines("all@views") == [f"{name}@views" for name in BASELINES]
    assert parse_baselines("all") == [*BASELINES, *RECIPES]
    assert [asks_for_all(text) for text in ("all", "kmeans,all@views", "kmeans,ward@views", "none")] == [1, 1, 0, 0]
    assert recipes.title_of("ward@views") == "Ward, views"
    for wrong, sentence in (
        ("ward@view", "no scaling is called 'view'; give none, l2,"),
        ("scan@views", "scan trains on the cache; give it without @views"),
        ("means@views", "has no 'means'"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse_baselines(wrong)


def test_a_baseline_on_the_metric_of_views(tmp_path: Path) -> None:
    """Noise that the views of an image do not share hides the clusters; the metric that they teach leaves it out."""
    draw = np.random.default_rng(0)
    signal, label = mixture(rows=400, clusters=4, dim=4, noise=0.1)

    def seen() -> np.ndarray:
        return np.c_[signal, 3 * draw.standard_normal((400, 8))].astype(np.float16)

    views = np.stack([seen() for _ in range(3)], 1)
    splits = {"train": (0, 300), "test": (300, 400)}
    cache = write_cache(tmp_path / "cache", seen(), label, views=views, splits=splits)
    parts = [cache.embedding()[:300], cache.embedding()[300:]]
    plain = recipes.run_rival("kmeans", cache, "train", parts, 4)[0]
    taught = recipes.run_rival("kmeans@views", cache, "train", parts, 4)[0]
    for part, without, found in zip((label[:300], label[300:]), plain, taught, strict=True):
        assert hungarian_accuracy(part, without) < 0.6
        assert hungarian_accuracy(part, found) > 0.9
    bare = write_cache(tmp_path / "bare", seen(), label, splits=splits)
    with pytest.raises(UserError, match="needs augmented views"):
        recipes.run_rival("kmeans@views", bare, "train", parts, 4)


def test_what_a_baseline_finds_is_kept_for_the_next_run_on_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding, label = mixture(rows=200)
    cache = write_cache(tmp_path / "cache", embedding, label, splits={"train": (0, 150), "test": (150, 200)})
    parts = [cache.embedding()[:150], cache.embedding()[150:]]
    ran: list[int] = []

    def counted(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
        ran.append(clusters)
        return baselines.k_means(rows, clusters, seed)

    def run(clusters: int = 4) -> tuple[list[np.ndarray], float]:
        return recipes.run_rival("kmeans", cache, "train", parts, clusters)

    counted.__module__ = baselines.__name__  # one of this package
    monkeypatch.setitem(BASELINES._entries, "kmeans", replace(BASELINES["kmeans"], cluster=counted))
    first, seconds = run()
    assert "kept" not in capsys.readouterr().err
    again, then = run()
    assert "k-means, 4 clusters: kept from when it first ran on these images" in capsys.readouterr().err
    assert (ran, then) == ([4], seconds)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    run(clusters=5)
    recipes.run_rival("kmeans", cache, "test", parts[1:], 4)  # other rows
    monkeypatch.setattr(baselines, "version", lambda package: f"another {package}")
    run()
    assert ran == [4, 5, 4, 4]


def test_what_a_plugins_baseline_finds_is_not_kept(tmp_path: Path) -> None:
    """Its file may be edited between two runs."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import numpy as np\n"
        "from temi.pipeline.evaluate.baselines import Baseline, register_baseline\n"
        "ran = []\n"
        "def thirds(rows, clusters, seed):\n"
        "    ran.append(clusters)\n"
        "    return np.arange(len(rows)) % clusters\n"
        "register_baseline('thirds', Baseline('thirds', thirds))\n"
    )
    ran = load_plugin(plugin).module.ran
    cache = write_cache(tmp_path / "cache", mixture(rows=30)[0])
    try:
        for _ in range(2):
            (found,), _ = recipes.run_rival("thirds", cache, "", [cache.embedding()], 3)
            np.testing.assert_array_equal(found, np.arange(30) % 3)
    finally:
        del BASELINES._entries["thirds"]
    assert ran == [3, 3]
    assert "baseline" not in [kept.name for kept in list_made(cache.folder)]


def test_a_missing_extra_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"umap is not installed; pip install 'temi-clustering\[umap\]'"):
        parse_baselines("umap,hdbscan,kmeans")
    for module in ("evoc", "igraph"):
        monkeypatch.setitem(sys.modules, module, None)
    lacking = "umap, hdbscan, plscan, evoc, leiden need packages that are not installed"
    needed = f"{lacking}; pip install 'temi-clustering[baselines]'"
    with pytest.raises(UserError, match=re.escape(needed)):
        parse_baselines("all")


def test_evaluate_shows_the_baselines_that_were_asked_for(tmp_path: Path) -> None:
    embedding, label = mixture(rows=400, clusters=4, noise=0.3)
    cache = write_cache(tmp_path / "cache", embedding, label, splits={"train": (0, 300), "test": (300, 400)})
    quick = ["heads.count=2", "train.min_steps=20", "train.epochs=0", "train.tensorboard=false", "start.kind=random"]
    train_heads(cache, load_config(None, ["heads.clusters=4", *quick]), tmp_path / "run")
    arguments = ["evaluate", str(tmp_path / "run"), "--baselines"]
    assert CliRunner().invoke(app, [*arguments, "spherical,ward,scan"]).exit_code == 0
    train, test = json.loads((tmp_path / "run/result.json").read_text())["parts"]
    for part in (train, test):
        rows = {row["method"]: row for row in part["rows"]}
        assert "k-means" not in rows
        assert rows["spherical k-means"]["acc"] == rows["Ward"]["acc"] == 1.0
        assert ("seconds" in rows["Ward"]) == (part is train)
        assert rows["SCAN"]["acc"] > 0.7
    refused = CliRunner().invoke(app, [*arguments, "means"])
    assert refused.exit_code == 2
    assert "--baselines has no 'means'" in refused.stderr


def test_turtle_sees_the_spaces_of_a_joined_cache_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def spy(spaces: list[np.ndarray], clusters: int, seed: int) -> np.ndarray:
        seen.extend(spaces)
        return np.zeros(len(spaces[0]), np.int64)

    monkeypatch.setattr(baselines, "turtle", spy)
    rows = np.random.default_rng(0).normal(size=(9, 10)).astype(np.float16)
    baselines.run_baseline("turtle", rows, 3, widths=[4, 6])
    np.testing.assert_allclose(np.concatenate([seen[0] / 4**0.5, seen[1] / 6**0.5], 1), rows, rtol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_start_at_random_and_take_the_number_and_seed_asked_for(name: str) -> None:
    config = load_recipe(name, 7, seed=3)
    assert (config.start.kind, config.heads.clusters, config.train.seed, config.pairs.seed) == ("random", 7, 3, 3)


PLUGIN = """
import numpy as np
from temi.pipeline.evaluate.baselines import Baseline, register_baseline

def halves(embedding, clusters, seed):
    return (np.arange(len(embedding)) % clusters).astype(np.int64)

register_baseline("halves", Baseline("every second", halves))
"""


def test_a_file_of_ones_own_adds_a_baseline(tmp_path: Path) -> None:
    embedding, label = mixture(rows=200, clusters=2)
    cache = write_cache(tmp_path / "cache", embedding, label)
    quick = ["heads.clusters=2", "heads.count=2", "train.min_steps=20", "train.epochs=0", "start.kind=random"]
    train_heads(cache, load_config(None, [*quick, "train.tensorboard=false"]), tmp_path / "run")
    plugin = tmp_path / "halves.py"
    plugin.write_text(PLUGIN)
    shown = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "run"), "--baselines", "halves", "--plugin", str(plugin)]
    )
    assert shown.exit_code == 0, shown.output
    assert "every second" in shown.output


def test_noise_joins_its_nearest_rows() -> None:
    y = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 5.0), [[4.0, 4.0]], [[0.5, 0.0]]]).astype(np.float32)
    label = np.r_[np.zeros(20), np.ones(20), -1, -1].astype(np.int64)
    assert baselines.without_noise(y, label).tolist() == [0] * 20 + [1] * 20 + [1, 0]
    assert baselines.without_noise(y, np.full(42, -1)).tolist() == [0] * 42


def test_start_is_open_to_a_file_of_ones_own() -> None:
    import temi.pipeline.start.find as find
    from temi.pipeline.features.features import Features
    from temi.pipeline.runs.fit import fit_model

    embedding, label = mixture(rows=200, clusters=4, noise=0.3)

    def rows_in_turn(features: Features, clusters: int, config: object) -> find.Start:
        cut = (np.arange(len(features)) % clusters)[None]
        return find.Start(np.arange(len(features)), clusters, ("in turn",), cut)

    find.register_start("in turn", rows_in_turn)
    config = load_config(None, ["heads.clusters=4", "heads.count=2", "start.kind=in turn", "start.steps=100"])
    model = fit_model(Features.of_array(embedding), config)
    assert hungarian_accuracy(label, model.assign(Features.of_array(embedding).embedding)[0].numpy()) > 0.95


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (np.zeros(3, np.int64), r"returned int64 of shape \(3,\); return an array of 40 integers"),
        (np.zeros(40), r"returned float64 of shape \(40,\)"),
        (np.r_[np.zeros(39, np.int64), -1], r"returned the cluster -1; put every row into one"),
        (None, r"returned NoneType; return an array of 40 integers, one per row"),
        ([0] * 40, r"returned list"),
        (np.full(40, 2**40), r"returned the cluster 1099511627776; number them from 0 to 39"),
    ],
)
def test_labels_that_are_none_are_a_sentence(found: object, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES._entries, "mine", baselines.Baseline("mine", lambda *_: found))  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="the baseline 'mine' " + sentence):
        run_baseline("mine", mixture(rows=40)[0], 2)


def test_a_baseline_that_fails_is_a_sentence_that_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES._entries, "mine", baselines.Baseline("mine", lambda *_: np.zeros(1 // 0)))
    with pytest.raises(UserError, match=r"the baseline 'mine' failed at .*test_baselines.py:\d+: ZeroDivisionError"):
        run_baseline("mine", mixture(rows=40)[0], 2)


def test_baselines_that_need_more_images_are_left_out_of_all_and_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(tmp_path / "cache", np.repeat(mixture(rows=10)[0], 3, 0))  # copies count once
    quick = ["heads.clusters=2", "heads.count=2", "train.min_steps=5", "train.epochs=0", "start.kind=random"]
    train_heads(cache, load_config(None, [*quick, "neighbors.k=3", "train.tensorboard=false"]), tmp_path / "run")
    ran: list[str] = []
    monkeypatch.setattr(recipes, "import_needed", lambda name: None)
    monkeypatch.setattr(tables, "run_rival", lambda name, *_: ran.append(name) or ([np.zeros(30, np.int64)], 0.0))  # type: ignore[func-returns-value]
    command = ["evaluate", str(tmp_path / "run"), "--baselines"]
    refused = CliRunner().invoke(app, [*command, "kmeans,scan"])
    assert refused.exit_code == 2
    assert "SCAN needs 21 different images, and there are 10 to train on; leave scan out" in refused.stderr
    assert "--set" not in refused.stderr
    assert not ran
    shown = CliRunner().invoke(app, [*command, "all"])
    assert shown.exit_code == 0, shown.output
    assert "scan is left out: SCAN needs 21 different images" in shown.stderr
    assert ran == [*BASELINES, *(name for name in RECIPES if f"{name} is left out" not in shown.stderr)]
    assert "scan" not in ran
    numbers = plan_trials(None, ["heads.clusters=2,3"], None, [*quick[1:], "neighbors.k=3", "train.tensorboard=false"])
    train_trials(cache, numbers, tmp_path / "runs")
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "runs"), "--baselines", "all"])
    assert shown.exit_code == 0, shown.output
    assert shown.stderr.count("scan is left out") == 1  # and not once for every number of clusters
