"""Runs beside each other: what differs, paired by seed, and whether it is more than noise."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from temi.cache import Fingerprint
from temi.pipeline.config import load_config
from temi.pipeline.errors import UserError
from temi.pipeline.results.compare import as_csv, as_json, as_markdown, cells, compare, left_out, repeats, warning
from temi.pipeline.runs.records import (
    Result,
    ScoredPart,
    ScoreRow,
    SearchRecord,
    Training,
    TrialRecord,
    short_settings,
    write_record,
    write_trials,
)
from temi.pipeline.runs.run_folder import Environment, TrainedCache
from temi.pipeline.runs.trials import differences, flat_settings, plan_trials, with_seeds

TEMI = Path(sys.executable).with_name("temi")
NOISE = (0.02, -0.01, 0.03)  # what the seeds 0, 1, 2 add to any settings


def training(agreement: float, used: int = 10) -> Training:
    sizes = {"clusters": 10, "used_clusters": used, "effective_clusters": 9.5, "smallest_cluster": 1}
    return Training(
        **sizes,
        largest_cluster=50,
        mean_confidence=0.9,
        head_agreement=agreement,
        stability=0.9,
        neighbor_consistency=0.8,
        linear_accuracy=0.9,
        steps=400,
        images=100,
        seconds=1.0,
        trials_in_pass=6,
        skipped_steps=0,
        head_loss=(-1.0, -2.0),
        selected_head=1,
    )


def write_trials_folder(folder: Path, agreement: dict[float, float], accuracy: dict[float, float]) -> None:
    """Trials of several beta, with three seeds each, as `temi train-heads` and `temi evaluate` leave them."""
    configs = with_seeds(plan_trials(None, [f"objective.beta={','.join(map(str, agreement))}"], None, []), len(NOISE))
    records, rows = [], []
    for number, (config, settings) in enumerate(zip(configs, differences(configs), strict=True)):
        run = folder / f"trial-{number:03d}"
        run.mkdir(parents=True)
        beta, seed = config.objective.beta, config.start.seed
        own = training(agreement[beta] + NOISE[seed] + 0.001 * seed * (beta == 1.0))
        record = TrialRecord(trial=run.name, settings=settings, training=own)
        write_run(run, [f"objective.beta={beta}", f"start.seed={seed}", f"train.seed={seed}"], own)
        records.append(record)
        rows.append(ScoreRow(method=record.name, kind="clustering", acc=accuracy[beta]))
    write_trials(folder / "trials.json", records)
    part = ScoredPart(name="training rows", images=100, rows=tuple(rows))
    write_record(folder / "result.json", Result(run=str(folder), parts=(part,)))


def write_run(
    folder: Path,
    settings: list[str],
    trained: Training,
    cache: str = "/caches/one",
    digest: str = "",
    rows: int = 0,
    plugins: dict[str, str] | None = None,
) -> None:
    from temi.pipeline.config import dump_toml

    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(dump_toml(load_config(None, settings)))
    made_from = Fingerprint("made-up", "1", {}, "cls", "fp32", {}, 0, 0, "0" * 32)
    environment = Environment(
        "3.11", "", "cpu", 1, {}, None, TrainedCache(cache, digest, made_from, rows), plugins or {}
    )
    write_record(folder / "environment.json", environment)
    write_record(folder / "training.json", trained)


def test_choices_are_paired_by_seed_and_noise_is_told_from_more(tmp_path: Path) -> None:
    write_trials_folder(tmp_path, {0.6: 0.80, 1.0: 0.90, 0.9: 0.8995}, {0.6: 0.7, 1.0: 0.5, 0.9: 0.6})
    choices = compare([tmp_path])
    assert [choice.settings for choice in choices] == [{"objective.beta": beta} for beta in (1.0, 0.9, 0.6)]
    assert [choice.verdict for choice in choices] == ["best", "even", "worse"]  # whatever the labels say
    assert [len(choice.runs) for choice in choices] == [3, 3, 3]
    found = np.array([0.9 + noise + 0.001 * seed for seed, noise in enumerate(NOISE)])
    score = choices[0].score
    low, high = stats.t.interval(0.95, 2, found.mean(), stats.sem(found))
    assert (score.mean - score.margin, score.mean + score.margin) == pytest.approx((low, high))
    behind = choices[2].behind
    difference = found - 0.8 - np.array(NOISE)
    low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert (behind.mean - behind.margin, behind.mean + behind.margin) == pytest.approx((low, high))
    assert [choice.acc.mean for choice in choices] == pytest.approx([0.5, 0.6, 0.7])


def test_a_run_a_search_and_trials_stand_in_one_table(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["objective.name=scan"], training(0.7), cache="/caches/two")
    seeds = (training(0.95), training(0.93))
    pruned = TrialRecord(trial="trial-001", settings={"optimizer.lr": 1e-4}, stopped="given up at step 44")
    trial = TrialRecord(trial="trial-000", settings={"optimizer.lr": 1e-3}, training=seeds[0], seeds=seeds)
    (tmp_path / "study").mkdir()
    shared = {"objective": load_config().objective.model_dump(mode="json")}
    record = SearchRecord(score="head_agreement", cache="/caches/one", settings=shared, trials=(trial, pruned))
    write_record(tmp_path / "study/search.json", record)
    best, other = compare([tmp_path / "run", tmp_path / "study"])
    assert best.settings == {"objective.name": "temi", "optimizer.lr": 0.001, "cache": "/caches/one"}
    assert best.score.mean == pytest.approx(0.94)
    assert (other.settings["objective.name"], other.behind.margin, cells(other)["verdict"]) == ("scan", None, "?")
    assert cells(best)["settings"] == "name=temi lr=0.001 cache=one"


def shown(*folders: Path) -> list[str]:
    """The settings column; the same in any order of `folders`."""
    found = compare(folders)
    assert [one.model_dump(exclude={"runs", "repeated"}) for one in found] == [
        one.model_dump(exclude={"runs", "repeated"}) for one in compare(folders[::-1])
    ]
    return [cells(choice)["settings"] for choice in found]


def test_a_plugin_that_changed_makes_another_choice(tmp_path: Path) -> None:
    a, b, none = tmp_path / "a", tmp_path / "b", tmp_path / "none"
    write_run(a, [], training(0.8), plugins={"mine.py": "a" * 64})
    write_run(b, [], training(0.9), plugins={"mine.py": "b" * 64})
    assert shown(a, b) == ["plugins=mine.py (bbbbbbbb)", "plugins=mine.py (aaaaaaaa)"]
    write_run(none, [], training(0.7))
    assert shown(a, none) == ["plugins=mine.py (aaaaaaaa)", "plugins=none"]


def test_a_cache_that_changed_makes_another_choice(tmp_path: Path) -> None:
    small, large, other = tmp_path / "small", tmp_path / "large", tmp_path / "other"
    write_run(small, [], training(0.8), digest="c" * 32, rows=300)
    write_run(large, [], training(0.9), digest="d" * 32, rows=1500)
    assert shown(small, large) == ["cache=one, 1,500 rows", "cache=one, 300 rows"]
    write_run(other, [], training(0.7), digest="e" * 32, rows=300)
    assert shown(small, other) == ["cache=one, 300 rows (cccccccc)", "cache=one, 300 rows (eeeeeeee)"]


def test_caches_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name, place in {
        "a": "/data/birds/dino/cache",
        "b": "/data/cats/dino/cache",
        "c": "/data/cats/clip/cache",
    }.items():
        write_run(tmp_path / name, [], training(0.8), cache=place)
    choices = compare([tmp_path / name for name in "abc"])
    table = as_markdown(choices)
    for shown in ("cache=birds/dino/cache |", "cache=cats/dino/cache |", "cache=clip/cache |"):
        assert table.count(f"| {shown}") == 1
    assert "/data/birds/dino/cache" in as_csv(choices)
    printed = subprocess.run([TEMI, "compare", *(tmp_path / name for name in "ac")], capture_output=True, text=True)
    assert "cache=dino/cache " in printed.stdout, printed.stderr
    assert "cache=clip/cache " in printed.stdout


def test_a_search_and_a_run_of_its_best_settings_are_one_run_of_one_seed(tmp_path: Path) -> None:
    own = training(0.95)
    trial = TrialRecord(trial="trial-000", settings={"objective.beta": 0.5}, training=own, seeds=(own,))
    failed = TrialRecord(trial="trial-001", settings={"objective.beta": 0.6}, stopped="no finite loss")
    record = SearchRecord(
        score="head_agreement",
        cache="/caches/one",
        digest="c" * 32,
        rows=300,
        plugins={"mine.py": "a" * 64},
        settings=load_config().model_dump(mode="json", exclude={"embed"}),
        trials=(trial, failed),
    )
    study, run, later = tmp_path / "study", tmp_path / "run", tmp_path / "later"
    study.mkdir()
    write_record(study / "search.json", record)
    write_run(run, ["objective.beta=0.5"], training(0.85), digest="c" * 32, rows=300, plugins={"mine.py": "a" * 64})
    (choice,) = compare([study, run])
    assert shown(study, run) == ["all settings alike"]
    assert (choice.seeds, cells(choice)["seeds"], choice.score.margin) == (1, "1", None)
    assert choice.score.mean == pytest.approx(0.9)
    assert choice.repeated == ((f"{study}/trial-000", str(run)),)
    assert "count as one run, by their mean" in repeats([choice])[0]
    assert left_out([study, run]) == [f"{study}: 1 of 2 trials have no score: 1 failed (no finite loss)"]
    write_run(later, ["objective.beta=0.5"], training(0.85), digest="f" * 32, rows=400, plugins={"mine.py": "a" * 64})
    assert shown(study, later) == ["cache=one, 300 rows", "cache=one, 400 rows"]
    told = subprocess.run([TEMI, "compare", study, run], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "1 of 2 trials have no score: 1 failed (no finite loss)" in told.stderr
    assert "count as one run, by their mean" in " ".join(told.stderr.split())


def test_a_folder_named_twice_counts_once_and_one_seed_says_nothing_in_any_format(tmp_path: Path) -> None:
    write_trials_folder(tmp_path / "a", {0.6: 0.80, 1.0: 0.90}, {0.6: 0.7, 1.0: 0.5})
    assert [len(choice.runs) for choice in compare([tmp_path / "a", tmp_path / "a/../a"])] == [3, 3]
    write_run(tmp_path / "one", [], training(0.9))
    write_run(tmp_path / "two", ["objective.beta=0.6"], training(0.8))
    choices = compare([tmp_path / "one", tmp_path / "two"])
    assert [row["verdict"] for row in csv.DictReader(as_csv(choices).splitlines())] == ["best", "?"]
    assert [row["verdict"] for row in json.loads(as_json(choices))] == ["best", "?"]


def test_different_numbers_of_clusters_are_said_not_to_compare(tmp_path: Path) -> None:
    for clusters in (5, 10):
        write_run(tmp_path / str(clusters), [f"heads.clusters={clusters}"], training(0.9))
    shown = subprocess.run([TEMI, "compare", tmp_path / "5", tmp_path / "10"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "numbers of clusters differ, and their label-free scores do not compare" in shown.stderr
    assert warning(compare([tmp_path / "5"])) == ""


def test_the_best_is_named_among_choices_of_one_number_of_clusters_alone(tmp_path: Path) -> None:
    for name, clusters, score in (("a", 5, 0.9), ("b", 10, 0.95)):
        write_run(tmp_path / name, [f"heads.clusters={clusters}"], training(score))
    assert {one.verdict for one in compare([tmp_path / "a", tmp_path / "b"])} == {"?"}
    write_run(tmp_path / "c", ["heads.clusters=5", "objective.beta=0.7"], training(0.8))
    found = {one.runs[0][-1]: one for one in compare([tmp_path / name for name in "abc"])}
    assert {name: one.verdict for name, one in found.items()} == {"a": "best", "b": "?", "c": "?"}
    assert found["c"].behind.mean == pytest.approx(0.1)


def test_none_of_choices_with_equal_scores_is_the_best(tmp_path: Path) -> None:
    write_trials_folder(tmp_path, {0.6: 0.90, 0.7: 0.90, 0.8: 0.2}, {0.6: 0.7, 0.7: 0.7, 0.8: 0.1})
    choices = compare([tmp_path])
    assert [choice.verdict for choice in choices] == ["even", "even", "worse"]
    assert [cells(choice)[""] for choice in choices] == ["", "", ""]


def test_formats_hold_the_same(tmp_path: Path) -> None:
    write_trials_folder(tmp_path, {0.6: 0.80, 1.0: 0.90}, {0.6: 0.7, 1.0: 0.5})
    choices = compare([tmp_path], "linear_accuracy")
    (first, second) = csv.DictReader(as_csv(choices).splitlines())
    assert {first["objective.beta"], second["objective.beta"]} == {"0.6", "1.0"}
    assert float(first["acc"]) == json.loads(as_json(choices))[0]["acc"]["mean"]
    assert as_markdown(choices).splitlines()[1].count("---") == len(cells(choices[0]))
    shown = subprocess.run([TEMI, "compare", tmp_path], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "beta=0.6" in shown.stdout


def test_a_search_of_settings_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    own = training(0.9)
    trial = TrialRecord(trial="trial-000", settings={}, training=own, seeds=(own,))
    record = SearchRecord(score="stability", cache="/c", settings={"objective": {"beta": -5}}, trials=(trial,))
    write_record(tmp_path / "search.json", record)
    with pytest.raises(UserError, match=r"search.json is damaged or from an older version \(objective.beta: input"):
        compare([tmp_path])


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run, trials or search"):
        compare([tmp_path])
    with pytest.raises(UserError, match="there is no score 'acc'; choose one of head_agreement"):
        compare([tmp_path], "acc")


def test_short_settings_keep_what_tells_apart() -> None:
    assert short_settings({"train.seed": 1, "start.seed": 1, "optimizer.lr": 1e-4}) == "seed=1 lr=0.0001"
    assert short_settings({"train.seed": 1, "start.seed": 2}) == "train.seed=1 start.seed=2"
    assert short_settings({}) == "all settings alike"
    assert flat_settings(with_seeds([load_config()], 2)[1])["start.seed"] == 1
