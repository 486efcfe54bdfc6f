"""How clusters join: against plain counting, on nesting and on crossing clusterings, and by the command."""

import json
from pathlib import Path

import numpy as np
from mixtures import mixture, write_cache
from typer.testing import CliRunner

from temi.cli import app
from temi.pipeline.commands.console import printed_tree
from temi.pipeline.config import load_config
from temi.pipeline.runs.joins import joins, merge_tree
from temi.pipeline.runs.records import Join, Level, MergeTree
from temi.pipeline.runs.trials import plan_trials, train_trials


def tree_of(*assignments: np.ndarray) -> MergeTree:
    levels = [Level(trial=str(own), clusters=int(cut.max()) + 1) for own, cut in enumerate(assignments)]
    return merge_tree({}, levels, assignments)


def test_each_cluster_joins_the_one_that_holds_most_of_its_images() -> None:
    random = np.random.default_rng(0)
    finer, coarser = random.integers(0, 9, 500), random.integers(0, 4, 500)
    finer[finer == 6] = 5  # empty clusters have no part in it
    coarser[coarser == 1] = 0
    found = joins(finer, coarser)
    assert [join.cluster for join in found] == [0, 1, 2, 3, 4, 5, 7, 8]
    for join in found:
        inside = [int(c) for c in coarser[finer == join.cluster]]
        most = max(sorted(set(inside)), key=inside.count)
        assert (join.images, join.into) == (len(inside), most)
        assert abs(join.share - inside.count(most) / len(inside)) < 1e-4


def test_clusterings_that_nest_join_whole() -> None:
    finest = np.arange(120) % 12
    tree = tree_of(finest, finest // 3, finest // 6)
    assert tree.together == 1.0
    assert [[join.into for join in step] for step in tree.joins] == [[c // 3 for c in range(12)], [0, 0, 1, 1]]
    assert {join.share for step in tree.joins for join in step} == {1.0}
    assert [(top.cluster, top.images) for top in tree.top] == [(0, 60), (1, 60)]


def test_images_that_do_not_go_along_are_counted_over_all_steps() -> None:
    finest, middle, coarse = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 1])
    tree = tree_of(finest, middle, coarse)
    # Image 2 leaves its cluster at the first step; of middle cluster 0, image 1 leaves at the second.
    assert tree.together == 0.6
    assert tree.joins[1][0] == Join(cluster=0, images=2, into=0, share=0.5)


def test_several_numbers_of_clusters_train_in_one_pass_and_join(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=400, clusters=8, noise=0.2)
    write_cache(tmp_path / "cache", embedding)
    quick = ["heads.count=2", "train.min_steps=60", "train.epochs=0", "start.steps=60", "train.tensorboard=false"]
    options = [option for setting in quick for option in ("--set", setting)]
    arguments = ["train-heads", str(tmp_path / "cache"), "--out", str(tmp_path / "runs"), "--clusters", "4,2,8"]
    shown = CliRunner().invoke(app, [*arguments, *options])
    assert shown.exit_code == 0, shown.output
    trials = json.loads((tmp_path / "runs/trials.json").read_text())
    assert [(trial["settings"]["heads.clusters"], trial["trials_in_pass"]) for trial in trials] == [
        (4, 3),
        (2, 3),
        (8, 3),
    ]
    [tree] = json.loads((tmp_path / "runs/merge.json").read_text())
    assert [level["trial"] for level in tree["levels"]] == ["trial-002", "trial-000", "trial-001"]
    assert sum(join["images"] for join in tree["joins"][0]) == 400
    assert "how 2 <- 4 <- 8 clusters join" in shown.output
    assert "cluster 0 of 2," in shown.output
    refused = CliRunner().invoke(app, ["predict", str(tmp_path / "runs"), str(tmp_path / "cache")])
    assert refused.exit_code == 2
    assert "holds 3 trials; give one of them" in refused.stderr
    assert "runs/trial-001 (heads.clusters=2)" in refused.stderr


def test_trials_that_differ_in_more_make_a_tree_each_and_those_of_one_number_none(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture(rows=120)[0])
    base = ["heads.count=2", "train.min_steps=20", "train.epochs=0", "start.kind=random", "train.tensorboard=false"]
    train_trials(cache, plan_trials(None, ["heads.clusters=3,5", "objective.beta=0.6,1.0"], None, base), tmp_path / "a")
    trees = json.loads((tmp_path / "a/merge.json").read_text())
    assert [tree["settings"] for tree in trees] == [{"objective.beta": 0.6}, {"objective.beta": 1.0}]
    assert [level["trial"] for level in trees[1]["levels"]] == ["trial-003", "trial-001"]
    train_trials(cache, [load_config(None, base)], tmp_path / "b")
    assert json.loads((tmp_path / "b/merge.json").read_text()) == []


def test_a_tree_of_too_many_clusters_is_left_to_the_report() -> None:
    finest = np.arange(2000) % 500
    levels = [Level(trial="trial-000", clusters=500), Level(trial="trial-001", clusters=250)]
    tree = merge_tree({"train.seed": 1}, levels, [finest, finest // 2])
    assert len(printed_tree(tree).children) == 1
    assert "train.seed=1" in str(printed_tree(tree).label)
