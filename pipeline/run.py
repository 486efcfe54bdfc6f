"""A run folder, and the loop that fills it: `train_heads` is stage two from a cache to a trained model.

::

    RUN/config.toml           every setting of the run
    RUN/environment.json      versions, revision, device, and the cache's fingerprint
    RUN/metrics.jsonl         a line per window of steps
    RUN/events/               the same for TensorBoard
    RUN/checkpoints/          latest (resume), best (lowest mean training loss), step-N (kept)
    RUN/heads.safetensors     the trained model
    RUN/training.json         steps, seconds, skipped steps, losses, label-free scores
    RUN/assignments.parquet   key, row, cluster, confidence of every readable image; .csv beside it
"""

import json
import math
import platform
import shutil
import subprocess
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float16
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cache import EmbeddingCache
from cache.files import os_errors, write_atomic
from pipeline.config import Config, dump_toml, load_config
from pipeline.data import TrainingSet, load_training_set, pick_device
from pipeline.errors import UserError
from pipeline.model import ClusterModel, load_tensors, save_tensors
from pipeline.progress import Progress
from pipeline.select import label_free_scores
from pipeline.train import HeadTrainer

PACKAGES = ("torch", "torchvision", "transformers", "h5py", "numpy", "faiss-cpu", "faiss-gpu", "scikit-learn", "temi")


class RunFolder:
    """Paths and files of one run; knows nothing of training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "config.toml"
        self.environment = folder / "environment.json"
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "events"
        self.checkpoints = folder / "checkpoints"
        self.latest = self.checkpoints / "latest.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.model = folder / "heads.safetensors"
        self.training = folder / "training.json"

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return self.training.exists()

    def start(self, config: Config, environment: dict[str, Any], overwrite: bool) -> None:
        """Create the folder, or check that the one there was made with these settings on this cache.

        Raises
        ------
        UserError
            The folder holds a run with other settings or another cache, or something that is no run.
        """
        if overwrite and self.config.exists():
            shutil.rmtree(self.folder)
        with os_errors(self.folder, "create"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        if self.config.exists():
            self._check_same(config, environment)
            return
        if self.latest.exists():
            raise UserError(f"{self.folder} has checkpoints but no config.toml; choose another --out")
        write_json(self.environment, environment)
        write_atomic(self.config, dump_toml(config).encode())

    def _check_same(self, config: Config, environment: dict[str, Any]) -> None:
        before = load_config(self.config)
        for section, values in config.model_dump().items():
            if section == "embed":  # what embedding settings changed is in the cache's fingerprint
                continue
            for key, value in values.items():
                there = getattr(getattr(before, section), key)
                if there != value:
                    raise UserError(
                        f"{self.folder} was started with {section}.{key} = {there!r} and {value!r} is asked; "
                        "use another --out, or --overwrite to start again"
                    )
        if read_json(self.environment)["cache"]["digest"] != environment["cache"]["digest"]:
            raise UserError(
                f"{self.folder} was trained on other embeddings than {environment['cache']['folder']} holds; "
                "use another --out, or --overwrite to start again"
            )


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically; NaN becomes null."""
    write_atomic(path, (json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON in `path`; a UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; is {path.parent} a run folder of `temi train-heads`?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or train again") from None


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_environment(cache: EmbeddingCache, device: torch.device) -> dict[str, Any]:
    """Versions, revision and device of this process, and what the cache is."""
    fingerprint = asdict(cache.manifest.fingerprint)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "revision": _git_revision(),
        "cache": {"folder": str(cache.folder.resolve()), "digest": cache.digest, "fingerprint": fingerprint},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def train_heads(cache: EmbeddingCache, config: Config, out: Path, *, overwrite: bool = False) -> ClusterModel:
    """Train clustering heads on `cache` and leave a run folder at `out`; an interrupted run goes on where it stopped.

    Raises
    ------
    UserError
        Settings that do not fit the cache, a folder that holds another run, or training that cannot go on.
    """
    device = pick_device(config.train.device)
    run = RunFolder(out)
    run.start(config, describe_environment(cache, device), overwrite)
    if run.finished:
        return ClusterModel.load(run.model, device)
    data = load_training_set(cache, config, device, scratch=out / "neighbors")
    trainer = HeadTrainer([config], data)
    began = time.perf_counter()
    best = TrainingLoop(run, trainer, config).run()
    model = build_model(trainer, best, cache)
    model.save(run.model)
    write_assignments(cache, model, out)
    write_json(run.training, _summary(trainer, model, data, cache, time.perf_counter() - began))
    return model


class TrainingLoop:
    """Steps, windows of metrics, checkpoints and resume of a trial in its run folder."""

    def __init__(self, run: RunFolder, trainer: HeadTrainer, config: Config):
        self.run_folder, self.trainer, self.settings = run, trainer, config.train
        self.best: dict[str, Tensor] = {"loss": torch.full((config.heads.count,), math.inf)}
        self.since_checkpoint: list[Tensor] = []
        self.first_step = self._resume()

    def run(self) -> dict[str, Tensor]:
        """Train to the end; the teacher heads of the best checkpoint and their losses."""
        settings, steps = self.settings, self.trainer.steps
        folder = str(self.run_folder.events)
        events = SummaryWriter(folder, purge_step=self.first_step) if settings.tensorboard else None
        with Progress("train", total=steps - self.first_step, unit="step") as progress:
            batches = self.trainer.batches.bank_rows(self.first_step, steps)
            for done, bank_rows in enumerate(batches, start=self.first_step + 1):
                self.trainer.step(done - 1, bank_rows)
                checkpoint = done % settings.checkpoint_every == 0 or done == steps
                note = self._record(done, events) if checkpoint or done % settings.log_every == 0 else ""
                if checkpoint:
                    self._checkpoint(done)
                progress.advance(note=note)
        if events:
            events.close()
        return self.best

    def _record(self, done: int, events: SummaryWriter | None) -> str:
        """Close the window of metrics at step `done`; a note for the progress line."""
        loss, norm = (mean[0].cpu() for mean in self.trainer.window.means())
        self.trainer.window.reset()
        self._stop_if_stuck(done)
        self.since_checkpoint.append(loss)
        marginal = self.trainer.marginal.cpu()
        values = {
            "loss": loss.mean().item(),
            "best_head_loss": loss.min().item(),
            "gradient_norm": norm.item(),
            "lr": self.trainer.rates[done - 1, 0].item(),
            "teacher_momentum": self.trainer.momenta[done - 1, 0].item(),
            "skipped": int(self.trainer.skipped[0]),
            "effective_clusters": torch.special.entr(marginal).sum(-1).exp().mean().item(),
        }
        line = json.dumps(_finite({"step": done, **values, "head_loss": loss.tolist()}))
        with os_errors(self.run_folder.metrics, "write"), self.run_folder.metrics.open("a") as file:
            file.write(line + "\n")
        if events:
            for name, value in values.items():
                events.add_scalar(f"train/{name}", value, done)
            events.add_histogram("train/marginal", marginal, done)
        return f"loss {values['loss']:.4f}"

    def _stop_if_stuck(self, done: int) -> None:
        if int(self.trainer.skipped_in_a_row[0]) >= self.settings.max_skipped:
            raise UserError(
                f"training in {self.run_folder.folder} cannot go on: the last {self.settings.max_skipped} steps before "
                f"step {done} had a loss or gradient that is not finite; lower optimizer.lr or raise the temperatures"
            )

    def _checkpoint(self, done: int) -> None:
        loss = torch.stack(self.since_checkpoint).nanmean(0)
        self.since_checkpoint.clear()
        metadata = {"step": str(done)}
        if loss.mean() < self.best["loss"].mean():
            self.best = {f"teacher.{name}": t.clone() for name, t in self.trainer.teacher.tensors().items()}
            self.best["loss"] = loss
            save_tensors(self.run_folder.best, self.best, metadata)
        state = self.trainer.trial(0).tensors
        save_tensors(self.run_folder.latest, state, metadata)
        if self.settings.keep_every and done % self.settings.keep_every == 0:
            save_tensors(self.run_folder.checkpoints / f"step-{done:06d}.safetensors", state, metadata)

    def _resume(self) -> int:
        """Load the latest checkpoint and cut the metrics back to it; the step to go on from."""
        run, device = self.run_folder, self.trainer.device
        if not run.latest.exists():
            run.metrics.unlink(missing_ok=True)
            return 0
        state, metadata = load_tensors(run.latest, device)
        self.trainer.trial(0).load(state)
        if run.best.exists():
            self.best, _ = load_tensors(run.best, device)
            self.best["loss"] = self.best["loss"].cpu()
        step = int(metadata["step"])
        lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomic(run.metrics, "".join(line + "\n" for line in kept).encode())
        return step


def build_model(trainer: HeadTrainer, best: dict[str, Tensor], cache: EmbeddingCache) -> ClusterModel:
    """The best checkpoint's teachers as a model whose clusters are numbered by falling size on the training rows."""
    weights = {name: best[f"teacher.{name}"] for name in trainer.teacher.weights}
    buffers = {name: best[f"teacher.{name}"] for name in trainer.teacher.buffers}
    heads = replace(trainer.teacher, weights=weights, buffers=buffers)
    clusters = int(heads.outputs[0].sum())
    order = torch.arange(clusters, device=trainer.device)
    fingerprint = asdict(cache.manifest.fingerprint)
    loss = best["loss"].to(trainer.device)
    model = ClusterModel(heads, trainer.data.scaling, trainer.teacher_temperature, loss, order, fingerprint)
    embedding = torch.from_numpy(cache.embedding()[trainer.data.rows])
    sizes = model.predict_proba(embedding).argmax(-1).bincount(minlength=clusters)
    return replace(model, order=sizes.argsort(descending=True, stable=True))


def assign(model: ClusterModel, embedding: Float16[np.ndarray, "n D"]) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (n,) int32 and confidence (n,) float32 of each embedding."""
    confidence, cluster = model.predict_proba(torch.from_numpy(embedding)).max(-1)
    return cluster.cpu().numpy().astype(np.int32), confidence.cpu().numpy()


def write_assignments(cache: EmbeddingCache, model: ClusterModel, folder: Path) -> pd.DataFrame:
    """Assign every readable image of `cache`; assignments.parquet and .csv with key, row, cluster, confidence."""
    rows = np.flatnonzero(cache.ok)
    cluster, confidence = assign(model, cache.embedding()[rows])
    keys = [cache.keys[row] for row in rows]
    table = pd.DataFrame({"key": keys, "row": rows, "cluster": cluster, "confidence": confidence})
    with os_errors(folder, "write"):
        write_atomic(folder / "assignments.parquet", table.to_parquet(index=False))
        write_atomic(folder / "assignments.csv", table.to_csv(index=False, float_format="%.4f").encode())
    return table


def _summary(
    trainer: HeadTrainer, model: ClusterModel, data: TrainingSet, cache: EmbeddingCache, seconds: float
) -> dict[str, Any]:
    embedding = torch.from_numpy(cache.embedding()[data.rows])
    return {
        "steps": trainer.steps,
        "images": len(data.rows),
        "seconds": round(seconds, 3),
        "skipped_steps": int(trainer.skipped[0]),
        "head_loss": model.loss.tolist(),
        "selected_head": model.selected,
        **label_free_scores(model, embedding, data.neighbors),
    }
