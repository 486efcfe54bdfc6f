"""Trials and a search on two nodes of a Ray cluster: the heads and scores that one process gives."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mixtures import SHORT_TRIALS, mixture, write_cache
from ray_nodes import ray_nodes

from temi.pipeline.config import load_config
from temi.pipeline.runs.ray_trials import parts
from temi.pipeline.runs.run_folder import SEARCH
from temi.pipeline.runs.search import Search, search
from temi.pipeline.runs.space import Range
from temi.pipeline.runs.train import train_heads
from temi.pipeline.runs.trials import plan_trials, train_trials

SHORT = [*SHORT_TRIALS, "train.tensorboard=false"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch, ray_nodes(patch) as nodes:
        yield nodes


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_trials_and_a_search_on_two_nodes_equal_those_of_one_process(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, on = write_cache(tmp_path / "cache", *mixture(rows=120, dim=8, clusters=4)), f"ray:{cluster.address}"
    configs = plan_trials(None, ["objective.beta=0.6,0.8,1.0"], None, SHORT)
    train_trials(cache, configs, tmp_path / "here")
    train_trials(cache, configs, tmp_path / "there", on=on)
    assert "train: 3/3 trial" in capsys.readouterr().err
    for file in ("heads.safetensors", "assignments.csv", "metrics.jsonl", "config.toml"):
        for trial in ("trial-000", "trial-001", "trial-002"):
            assert (tmp_path / "there" / trial / file).read_bytes() == (tmp_path / "here" / trial / file).read_bytes()
    assert (tmp_path / "there/merge.json").read_bytes() == (tmp_path / "here/merge.json").read_bytes()
    packed = [json.loads((tmp_path / f"there/trial-00{i}/training.json").read_text()) for i in range(3)]
    assert [one["trials_in_pass"] for one in packed] == [2, 2, 1]

    base = tmp_path / "base.toml"
    base.write_text("[teacher]\nmomentum = 0.9\n")
    wanted = Search({"objective.beta": Range(low=0.5, high=1.2)}, base, SHORT, 4, 4, sampler="random", halving=False)
    record = search(cache, wanted, tmp_path / "study", storage="journal", on=on)
    assert "search: 4/4 trial" in capsys.readouterr().err
    assert len({str(trial.settings) for trial in record.trials}) == 4
    assert (tmp_path / "study" / SEARCH).exists()
    best = record.trials[0]
    beta = best.settings["objective.beta"]
    train_heads(cache, load_config(base, [*SHORT, f"objective.beta={beta}"]), tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/training.json").read_text())
    assert best.training is not None
    assert best.training.head_loss == tuple(alone["head_loss"])


def test_groups_are_cut_into_a_part_for_each_place() -> None:
    assert parts([[0, 1, 2, 3, 4]], 2) == [[0, 1, 2], [3, 4]]
    assert parts([[0, 2], [1, 3]], 2) == [[0, 2], [1, 3]]
    assert parts([[0, 1], [2]], 8) == [[0], [1], [2]]
