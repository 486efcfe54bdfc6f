"""TensorBoard and MLflow get what metrics.jsonl has, settings, scores and sizes; a resumed run goes on in both."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mixtures import mixture, write_cache
from photos import short

from temi.cache import EmbeddingCache
from temi.pipeline.errors import UserError
from temi.pipeline.runs import loop as loop_module
from temi.pipeline.runs.train import train_heads
from temi.pipeline.runs.trials import plan_trials, train_trials

LENGTH = "train.checkpoint_every=20"


class Killed(BaseException):
    pass


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return write_cache(tmp_path / "cache", mixture(rows=120)[0])


def train_with_a_kill(cache: EmbeddingCache, run: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> list[dict]:
    """Train to step 60, killed at step 50 after the checkpoint of step 40; the lines of metrics.jsonl."""
    record = loop_module.LoggedTrial.record

    def dying(log: loop_module.LoggedTrial, done: int, metrics: loop_module.Metrics) -> None:
        record(log, done, metrics)
        if done == 50:
            for tracker in log.trackers:
                tracker.close(None)
            raise Killed

    monkeypatch.setattr(loop_module.LoggedTrial, "record", dying)
    with pytest.raises(Killed):
        train_heads(cache, short(LENGTH, *settings), run)
    monkeypatch.setattr(loop_module.LoggedTrial, "record", record)
    train_heads(cache, short(LENGTH, *settings), run)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def sizes(run: Path) -> np.ndarray:
    return np.bincount(pd.read_parquet(run / "assignments.parquet")["cluster"], minlength=3)


def test_tensorboard_has_every_window_once_and_the_result(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.summary.writer import event_file_writer

    run = tmp_path / "run"
    # The three files of this run are numbered 9, 10 and 11 in this process: by name, 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    lines = train_with_a_kill(cache, run, monkeypatch, "train.tensorboard=true", "objective.beta=0.7")
    events = EventAccumulator(str(run / "events"), size_guidance={"histograms": 0})
    events.Reload()
    for name in ("loss", "lr", "effective_clusters"):
        points = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert points == [(line["step"], pytest.approx(line[name])) for line in lines]
    assert [event.step for event in events.Histograms("train/marginal")] == [line["step"] for line in lines]
    [histogram] = events.Histograms("result/cluster_sizes")
    assert (histogram.histogram_value.num, histogram.histogram_value.sum) == (3, sizes(run).sum())
    assert histogram.histogram_value.max == sizes(run).max()
    training = json.loads((run / "training.json").read_text())
    [agreement] = events.Scalars("result/head_agreement")
    assert agreement.value == pytest.approx(training["head_agreement"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    chosen = HParamsPluginData.FromString(content).session_start_info.hparams
    assert chosen["objective.beta"].number_value == 0.7
    assert chosen["heads.kind"].string_value == "linear"
    assert not any(name.startswith("embed.") for name in chosen)


@pytest.fixture
def store(tmp_path: Path) -> str:
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def tracked(store: str) -> tuple[Any, list[Any]]:
    """A client of the store, and the runs in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store, registry_uri=store)
    [experiment] = client.search_experiments(filter_string="name = 'temi'")
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow and what it brings
def test_mlflow_has_one_run_with_every_window_and_the_result(
    cache: EmbeddingCache, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    lines = train_with_a_kill(cache, run, monkeypatch, f"train.mlflow={store}", "objective.beta=0.7")
    client, [found] = tracked(store)
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.tags["folder"] == str(run)
    assert found.data.params["objective.beta"] == "0.7"
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")}
    assert history == {line["step"]: pytest.approx(line["loss"]) for line in lines}
    images = client.get_metric_history(found.info.run_id, "result/cluster_size")
    assert [metric.value for metric in sorted(images, key=lambda metric: metric.step)] == sizes(run).tolist()
    training = json.loads((run / "training.json").read_text())
    assert found.data.metrics["result/neighbor_consistency"] == pytest.approx(training["neighbor_consistency"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_trial_has_its_run_and_a_stopped_one_says_why(cache: EmbeddingCache, tmp_path: Path, store: str) -> None:
    base = ["heads.count=2", "train.min_steps=40", "train.epochs=0", "start.kind=random", "train.tensorboard=false"]
    base += [f"train.mlflow={store}", "train.log_every=10", "train.max_skipped=20", "heads.clusters=3"]
    train_trials(cache, plan_trials(None, ["objective.beta=0.6,1e38"], None, base), tmp_path / "out")
    _, runs = tracked(store)
    bad, good = sorted(runs, key=lambda run: run.info.status)
    assert (bad.info.run_name, bad.info.status) == ("trial-001", "FAILED")
    assert "cannot go on" in bad.data.tags["stopped"]
    assert (good.info.run_name, good.info.status) == ("trial-000", "FINISHED")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_store_that_cannot_be_used_is_a_sentence_before_any_folder_is_made(
    cache: EmbeddingCache, tmp_path: Path, store: str
) -> None:
    for uri in (f"sqlite:///{cache.folder}/manifest.json/m.db", "gopher://here"):
        with pytest.raises(UserError, match=rf"MLflow at {uri} cannot be used \(.*\); correct train.mlflow") as error:
            train_heads(cache, short(f"train.mlflow={uri}"), tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_the_package_it_says_what_to_install(
    cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'temi-clustering\[mlflow\]'"):
        train_heads(cache, short("train.mlflow=sqlite:///m.db"), tmp_path / "run")
