"""Experiment tracking, for those who use it: what metrics.jsonl holds, for TensorBoard and for MLflow as well.

Both get the metrics of every window, and at the end a trial's settings, its label-free scores and the sizes of its
clusters. Nothing in the pipeline reads any of it.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from temi.pipeline.config import Config, flatten
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.runs.records import Setting, Training
from temi.pipeline.runs.run_folder import RunFolder, read_json, write_json

EXPERIMENT = "temi"
BATCH = 1000  # metrics that MLflow takes at once

Values = Mapping[str, float]


class Tracker(Protocol):
    """Where the metrics of one trial go besides its run folder."""

    def record(self, step: int, values: Values, marginal: Tensor) -> None:
        """One window: `values` by name, and p(c) of every head, (H, C)."""

    def finish(self, settings: Mapping[str, Setting], scores: Values, sizes: Sequence[int]) -> None:
        """Settings by ``section.key``, label-free scores, and images per cluster."""

    def close(self, stopped: str | None) -> None:
        """No more windows will come; `stopped` says why, if training could not go on."""


def open_trackers(run: RunFolder, config: Config, step: int = 0) -> list[Tracker]:
    """The trackers that `config` asks for, going on from `step`."""
    trackers: list[Tracker] = []
    if config.train.tensorboard:
        trackers.append(TensorBoard(run, step))
    if config.train.mlflow:
        trackers.append(MLflow(run, config.train.mlflow))
    return trackers


def check_tracking(config: Config) -> None:
    """UserError where the MLflow store that `config` names cannot be used."""
    if config.train.mlflow:
        with _answered(config.train.mlflow):
            _experiment(_client(config.train.mlflow))


def log_result(run: RunFolder, config: Config, training: Training, sizes: Sequence[int]) -> None:
    """Give the trackers a finished trial: all settings of stage two, and every number in `training`."""
    settings = dict(flatten(config.model_dump(mode="json", exclude={"embed"})))
    scores = {name: float(value) for name, value in training if isinstance(value, int | float)}
    for tracker in open_trackers(run, config, training.steps):
        tracker.finish(settings, scores | {"loss": training.loss}, sizes)


class TensorBoard:
    """Events in ``RUN/events``: scalars and p(c) while training, then hyperparameters and cluster sizes."""

    def __init__(self, run: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = step
        _wait_for_a_later_name(run.events)
        # Windows after a checkpoint that training resumes from come again: those of before are dropped.
        self.events = SummaryWriter(str(run.events), purge_step=step + 1)

    def record(self, step: int, values: Values, marginal: Tensor) -> None:
        for name, value in values.items():
            self.events.add_scalar(f"train/{name}", value, step)
        self.events.add_histogram("train/marginal", marginal, step)

    def finish(self, settings: Mapping[str, Setting], scores: Values, sizes: Sequence[int]) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        results = {f"result/{name}": value for name, value in scores.items()}
        # `add_hparams` would write these to a folder of their own, which is another run to TensorBoard.
        writer: Any = self.events.file_writer
        for summary in hparams(plain, results):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        for name, value in results.items():
            self.events.add_scalar(name, value, self.step)
        self.events.add_histogram("result/cluster_sizes", torch.tensor(sizes), self.step)
        self.events.close()

    def close(self, stopped: str | None) -> None:
        self.events.close()


class MLflow:
    """A run in the experiment "temi" of an MLflow store, found again by ``RUN/mlflow.json`` when training resumes.

    MLflow cannot take a metric back: windows after the checkpoint that training resumes from are there twice.
    """

    def __init__(self, run: RunFolder, uri: str) -> None:
        self.uri, file = uri, run.folder / "mlflow.json"
        with _answered(uri):
            self.client = _client(uri)
            if file.exists():
                self.id = read_json(file)["run_id"]
                self.client.update_run(self.id, status="RUNNING")
                return
            tags = {"folder": str(run.folder.resolve())}
            self.id = self.client.create_run(_experiment(self.client), tags=tags, run_name=run.folder.name).info.run_id
        write_json(file, {"tracking_uri": uri, "run_id": self.id})

    def record(self, step: int, values: Values, marginal: Tensor) -> None:
        self._log([(name, value, step) for name, value in values.items()])

    def finish(self, settings: Mapping[str, Setting], scores: Values, sizes: Sequence[int]) -> None:
        from mlflow.entities import Param

        with _answered(self.uri):
            self.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in settings.items()])
        steps = [(f"result/{name}", value, 0) for name, value in scores.items()]
        # MLflow has no histograms: a curve over the clusters, which are numbered by falling size, shows the same.
        self._log([*steps, *(("result/cluster_size", float(size), cluster) for cluster, size in enumerate(sizes))])
        with _answered(self.uri):
            self.client.set_terminated(self.id, "FINISHED")

    def close(self, stopped: str | None) -> None:
        if stopped:
            with _answered(self.uri):
                self.client.set_tag(self.id, "stopped", stopped)
                self.client.set_terminated(self.id, "FAILED")

    def _log(self, points: list[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        with _answered(self.uri):
            for first in range(0, len(metrics), BATCH):
                self.client.log_batch(self.id, metrics=metrics[first : first + BATCH])


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait, a second at most, until a new file of events sorts behind those in `folder`.

    TensorBoard reads them in the order of their names. A name begins with the second that its file was made in and
    ends with a counter that has no leading zeros: of two of one second "…10" comes before "…9".
    """
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # send no statistics of use
    mlflow = import_extra("mlflow", "mlflow", "train.mlflow")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: Any) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))


@contextmanager
def _answered(uri: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a network, a server and a database each fail in their own ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"MLflow at {uri} cannot be used ({reason}); correct train.mlflow, or leave it out and train without"
        ) from None
