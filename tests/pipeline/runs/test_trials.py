"""Many trials in one pass: each equals itself alone, survives a kill between checkpoints, and stops alone."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from mixtures import mixture, write_cache

from temi.pipeline.config import Config, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.evaluate.tables import evaluate_run
from temi.pipeline.evaluate.trials import evaluate_trials
from temi.pipeline.plugins import load_plugin
from temi.pipeline.runs import loop as loop_module
from temi.pipeline.runs.model import load_tensors
from temi.pipeline.runs.records import Result, read_record
from temi.pipeline.runs.train import train_heads
from temi.pipeline.runs.trials import MERGES, as_overrides, differences, group_trials, plan_trials, train_trials

BASE = [
    "heads.clusters=6",
    "heads.count=3",
    "neighbors.k=10",
    "start.kind=random",
    "train.batch_size=128",
    "train.epochs=0",
    "train.min_steps=60",
    "train.log_every=10",
    "train.checkpoint_every=20",
    "train.tensorboard=false",
]


def trials(*grid: str) -> list[Config]:
    return plan_trials(None, grid, None, BASE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "heads.safetensors")[0]


def test_a_file_of_trials_times_a_grid(tmp_path: Path) -> None:
    file = tmp_path / "trials.toml"
    file.write_text("""
        [[trial]]
        objective.beta = 0.5
        heads.kind = "published"
        [[trial]]
        [grid]
        optimizer.lr = [1e-3, 1e-2]
    """)
    planned = plan_trials(file, ["train.seed=0,1"], None, BASE)
    chosen = [(c.heads.kind, c.objective.beta, c.optimizer.lr, c.train.seed) for c in planned]
    base = load_config(None, BASE)
    assert chosen[:4] == [("published", 0.5, lr, seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    assert chosen[4:] == [(base.heads.kind, base.objective.beta, lr, seed) for lr in (1e-3, 1e-2) for seed in (0, 1)]
    assert group_trials(planned) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_trials_that_need_their_own_pass() -> None:
    planned = trials("objective.name=temi,scan", "heads.clusters=5,6", "pairs.seed=0,1")
    assert group_trials(planned) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert group_trials(trials("objective.name=temi,pmi,scan,wmi")) == [[0, 1, 3], [2]]


def test_trials_of_one_pass_weigh_pairs_each_in_its_own_way(tmp_path: Path) -> None:
    cache, configs = write_cache(tmp_path / "cache", mixture()[0]), trials("objective.name=wmi,pmi,temi")
    train_trials(cache, configs, tmp_path / "together")
    found = []
    for number, config in enumerate(configs):
        train_heads(cache, config, tmp_path / f"alone {number}")
        found.append((tmp_path / f"together/trial-{number:03d}/heads.safetensors").read_bytes())
        assert found[-1] == (tmp_path / f"alone {number}/heads.safetensors").read_bytes()
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("text", "grid", "sentence"),
    [
        (None, ["objective.beta"], "is not of the form section.key=value,value"),
        (None, ["objective.gamma=1,2"], "unknown setting objective.gamma"),
        (None, ["objective.beta=0.5,0.5"], "trials 0 and 1 have the same settings"),
        ("[grid]\nobjective.beta = 0.5", [], "must be a list of values, got 0.5"),
        ("[trials]\nobjective.beta = 0.5", [], r"must hold \[\[trial\]\] tables"),
        ("[[trial", [], "is not valid TOML"),
        (
            "[[trial]]\ntrain.mlflow = 2020-01-01",
            [],
            r"train.mlflow in \[\[trial\]\] 1 in .*trials.toml must be a number",
        ),
        ("[grid]\ntrain.mlflow = [2020-01-01]", [], r"train.mlflow in \[grid\] in .*trials.toml must be a number"),
        ("[[trial]]\n[[trial]]\nheads.count = -3", [], r"heads.count in \[\[trial\]\] 2 in .*trials.toml: input"),
        ("[grid]\nheads.count = [2, -3]", [], r"heads.count in \[grid\] in .*trials.toml: input"),
        (None, ["heads.count=2,x"], "heads.count in --grid: input"),
    ],
)
def test_trials_that_are_none(tmp_path: Path, text: str | None, grid: list[str], sentence: str) -> None:
    file = tmp_path / "trials.toml"
    if text:
        file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        plan_trials(file if text else None, grid, None, BASE)


def test_trials_differ_in_settings_that_not_all_of_them_have() -> None:
    load_plugin(Path(__file__).parents[3] / "examples/plugins/debiased_icon.py")
    names = ["temi", "icon", "icon"]
    debias = [[], ["objective.debias=0.1"], ["objective.debias=0.3"]]
    configs = [load_config(None, [f"objective.name={name}", *more]) for name, more in zip(names, debias, strict=True)]
    told = [
        {"objective.name": "temi"},
        {"objective.name": "icon", "objective.debias": 0.1},
        {"objective.name": "icon", "objective.debias": 0.3},
    ]
    assert differences(configs) == told
    assert differences(configs[::-1]) == told[::-1]


def test_trials_cannot_differ_in_what_made_their_cache(tmp_path: Path) -> None:
    (tmp_path / "trials.toml").write_text("[grid]\nembed.flip = [0.0, 0.5]")
    with pytest.raises(UserError, match=r"embed.views is a setting of stage one"):
        trials("objective.beta=0.5,0.6", "embed.views=0,2")
    with pytest.raises(UserError, match=r"embed.flip is a setting of stage one"):
        plan_trials(tmp_path / "trials.toml", [], None, BASE)


def test_a_mistake_in_what_trials_start_from_is_told_of_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"heads.count in --set: input"):
        plan_trials(None, ["objective.beta=0.5,0.6"], None, ["heads.count=x"])
    (tmp_path / "base.toml").write_text("train.mlflow = 2020-01-01")
    with pytest.raises(UserError, match=r"train.mlflow in .*base.toml must be a number"):
        as_overrides(tmp_path / "base.toml")


@pytest.mark.parametrize(
    ("kind", "start"), [("linear", "random"), ("published", "random"), ("mlp-bn", "random"), ("linear", "pool")]
)
def test_a_trial_equals_itself_alone_to_the_bit(tmp_path: Path, kind: str, start: str) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    fixed = [f"heads.kind={kind}", f"start.kind={start}", "start.steps=50", "heads.hidden=16", "heads.bottleneck=8"]
    fixed.append("train.device=cpu")  # a GPU multiplies more heads in another order
    grid = ["objective.beta=0.6,0.8", "optimizer.lr=1e-3,1e-2", "optimizer.clip=0.01", "train.seed=3"]
    configs = plan_trials(None, grid, None, [*BASE, *fixed])
    train_trials(cache, configs, tmp_path / "together")
    for number, config in enumerate(configs):
        train_heads(cache, config, tmp_path / f"alone {number}")
        trial, alone = tmp_path / f"together/trial-{number:03d}", tmp_path / f"alone {number}"
        for file in ("heads.safetensors", "metrics.jsonl", "config.toml", "assignments.csv"):
            assert (trial / file).read_bytes() == (alone / file).read_bytes()


def test_a_trial_with_fewer_clusters_equals_itself_alone(tmp_path: Path) -> None:
    """To rounding: its products run with the widest trial's shape, and sums round in another order."""
    cache = write_cache(tmp_path / "cache", mixture()[0])
    configs = trials("heads.clusters=4,9", "train.device=cpu")
    train_trials(cache, configs, tmp_path / "together")
    for number, config in enumerate(configs):
        alone = train_heads(cache, config, tmp_path / f"alone {number}")
        together = weights(tmp_path / f"together/trial-{number:03d}")
        assert together["head.last.weight"].shape == alone.heads.weights["last.weight"].shape
        torch.testing.assert_close(together["head.last.weight"], alone.heads.weights["last.weight"], atol=1e-4, rtol=0)
        torch.testing.assert_close(together["loss"], alone.loss, atol=1e-5, rtol=0)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("saves_before", [1, 4, 5, 8])
def test_killed_between_two_trials_checkpoints_it_resumes_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves_before: int
) -> None:
    cache, configs = write_cache(tmp_path / "cache", mixture()[0]), trials("objective.beta=0.5,0.6,0.8")
    train_trials(cache, configs, tmp_path / "whole")
    checkpoint, saved = loop_module.LoggedTrial.checkpoint, []

    def dying(log: loop_module.LoggedTrial, done: int) -> None:
        if len(saved) == saves_before:
            raise Killed
        saved.append(done)
        checkpoint(log, done)

    monkeypatch.setattr(loop_module.LoggedTrial, "checkpoint", dying)
    with pytest.raises(Killed):
        train_trials(cache, configs, tmp_path / "parts")
    monkeypatch.setattr(loop_module.LoggedTrial, "checkpoint", checkpoint)
    train_trials(cache, configs, tmp_path / "parts")
    for trial in ("trial-000", "trial-001", "trial-002"):
        for file in ("heads.safetensors", "metrics.jsonl"):
            assert (tmp_path / "parts" / trial / file).read_bytes() == (tmp_path / "whole" / trial / file).read_bytes()


def test_a_trial_that_cannot_go_on_stops_alone_with_its_sentence(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", *mixture())
    configs = plan_trials(None, ["objective.beta=0.6,1e38"], None, [*BASE, "train.max_skipped=20"])
    for _ in range(2):  # the second time nothing is trained, and the sentence is still there
        good, bad = train_trials(cache, configs, tmp_path / "out")
        assert good.settings == {"objective.beta": 0.6}
        assert good.training.neighbor_consistency > 0.5
        assert "cannot go on: the last 20 steps before step 20" in bad.stopped
    [part] = evaluate_trials(tmp_path / "out").parts
    methods = [row.method for row in part.rows]
    assert sorted(methods) == ["k-means, 6 clusters", "trial-000 objective.beta=0.6"]
    assert all(row.acc > 0.2 for row in part.rows)
    assert read_record(Result, tmp_path / "out/result.json").parts == (part,)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("objective.beta=0.6,1e38", "cannot go on: all 60 steps had a loss or gradient that is not finite"),
        ("optimizer.lr=0.002,3e38", r"cannot go on: the last \d+ steps before step 60 had a loss"),
    ],
)
def test_a_trial_without_a_finite_step_stops_alone_however_few_steps_it_has(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    good, bad = train_trials(cache, plan_trials(None, [setting], None, [*BASE, "train.max_skipped=200"]), tmp_path)
    assert good.training is not None
    assert bad.training is None
    assert re.search(sentence, bad.stopped or "")
    with pytest.raises(UserError, match=sentence):
        train_heads(cache, load_config(tmp_path / "trial-001/config.toml"), tmp_path / "alone")


def test_damaged_assignments_of_a_trial_are_written_again_as_the_sentence_says(tmp_path: Path) -> None:
    cache, configs = write_cache(tmp_path / "cache", mixture()[0]), trials("heads.clusters=5,6")
    train_trials(cache, configs, tmp_path / "out put")
    trial = tmp_path / "out put/trial-001"
    merges, table = trial.parent / MERGES, trial / "assignments.parquet"
    before = merges.read_bytes(), table.read_bytes()
    table.write_bytes(before[1][:500])
    with pytest.raises(UserError, match=r"trial-001/assignments.parquet cannot be read") as refused:
        train_trials(cache, configs, tmp_path / "out put")
    said = re.search("write it again with `(.+)`$", str(refused.value))
    assert said
    assert shlex.split(said[1]) == ["temi", "evaluate", str(trial)]
    evaluate_run(trial, baselines=())
    train_trials(cache, configs, tmp_path / "out put")
    assert (merges.read_bytes(), table.read_bytes()) == before


def test_settings_that_fit_no_trial_are_refused_before_any_folder_is_made(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    with pytest.raises(UserError, match=r"heads.clusters = 700 is more than the 600 images"):
        train_trials(cache, trials("heads.clusters=6,700"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    train_heads(cache, load_config(None, BASE), tmp_path / "run")
    with pytest.raises(UserError, match="folder of a single run"):
        train_trials(cache, trials("objective.beta=0.5,0.6"), tmp_path / "run")
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study.db").touch()
    with pytest.raises(UserError, match="folder of a search"):
        train_trials(cache, trials("objective.beta=0.5,0.6"), tmp_path / "study")
