"""The loop of a pass of stage two: steps, and every trial's metrics, checkpoints and resume in its own run folder."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.config import Config
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.progress import Progress
from temi.pipeline.runs.model import load_tensors, save_tensors
from temi.pipeline.runs.run_folder import RunFolder, finite, write_json
from temi.pipeline.runs.tracking import Tracker, open_trackers


class TrainingLoop:
    """Train the trials of a pass to the end, or on from the last step that all of them have a checkpoint of.

    A trial that cannot go on leaves its sentence in its folder (`RunFolder.stopped`); the others go on.
    """

    def __init__(self, runs: Sequence[RunFolder], trainer: HeadTrainer, config: Config):
        self.trainer, self.settings = trainer, config.train
        self.trials = [TrialLog(run, trainer, index, config) for index, run in enumerate(runs)]
        common = set.intersection(*(set(trial.run.saved_states()) for trial in self.trials))
        self.first_step = max(common, default=0)
        for trial in self.trials:
            trial.resume(self.first_step)

    def run(self) -> list[dict[str, Tensor]]:
        """For each trial the teacher heads of its best checkpoint and their losses."""
        settings, steps = self.settings, self.trainer.steps
        with Progress("train", total=steps - self.first_step, unit="step") as progress:
            batches = self.trainer.batches.bank_rows(self.first_step, steps)
            for done, bank_rows in enumerate(batches, start=self.first_step + 1):
                self.trainer.step(done - 1, bank_rows)
                recorded = settings.recorded(done, steps)
                progress.advance(note=self._record(done) if recorded else "")
                if not recorded:
                    continue
                going = [trial for trial in self.trials if not trial.run.stopped]
                if settings.checkpointed(done, steps):
                    for trial in going:
                        trial.checkpoint(done)
                if not self.trainer.team.agree(bool(going)):
                    break
        for trial in self.trials:
            trial.close()
        return [trial.best for trial in self.trials]

    def _record(self, done: int) -> str:
        """Close the window of metrics at step `done`; a note for the progress line."""
        trainer = self.trainer
        loss, norm = (mean.cpu() for mean in trainer.window.means())
        trainer.window.reset()
        marginal = trainer.marginal.cpu().chunk(trainer.trials)
        skipped, in_a_row = trainer.skipped.tolist(), trainer.skipped_in_a_row.tolist()
        for index, trial in enumerate(self.trials):
            if trial.run.stopped:
                continue
            if in_a_row[index] >= self.settings.max_skipped:
                trial.stop(done)
            else:
                trial.record(done, Metrics(loss[index], norm[index].item(), marginal[index], skipped[index]))
        return f"loss {loss.mean(1).nan_to_num(math.inf).min():.4f}"


@dataclass(frozen=True)
class Metrics:
    """One window of one trial.

    Attributes
    ----------
    loss : (H,) mean training loss of each head
    norm : mean gradient norm
    marginal : (H, C) p(c)
    skipped : non-finite steps since the start
    """

    loss: Float[Tensor, " H"]
    norm: float
    marginal: Float[Tensor, "H C"]
    skipped: int


class TrialLog:
    """What one trial of a pass leaves in its run folder while it trains."""

    def __init__(self, run: RunFolder, trainer: HeadTrainer, index: int, config: Config):
        self.run, self.trainer, self.index, self.config = run, trainer, index, config
        self.best: dict[str, Tensor] = {"loss": torch.full((config.heads.count,), math.inf)}
        self.since_checkpoint: list[Tensor] = []
        self.trackers: list[Tracker] = []

    def record(self, done: int, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl, and tell the trackers."""
        self.since_checkpoint.append(metrics.loss)
        values: dict[str, Any] = {
            "loss": metrics.loss.mean().item(),
            "best_head_loss": metrics.loss.min().item(),
            "gradient_norm": metrics.norm,
            "lr": self.trainer.rates[done - 1, self.index].item(),
            "teacher_momentum": self.trainer.momenta[done - 1, self.index].item(),
            "skipped": metrics.skipped,
            "effective_clusters": torch.special.entr(metrics.marginal).sum(-1).exp().mean().item(),
        }
        line = json.dumps(finite({"step": done, **values, "head_loss": metrics.loss.tolist()}))
        with os_errors(self.run.metrics, "write"), self.run.metrics.open("a") as file:
            file.write(line + "\n")
        for tracker in self.trackers:
            tracker.record(done, values, metrics.marginal)

    def stop(self, done: int) -> None:
        """Leave the sentence that says why this trial cannot go on."""
        reason = (
            f"training in {self.run.folder} cannot go on: the last {self.config.train.max_skipped} steps before step "
            f"{done} had a loss or gradient that is not finite; lower optimizer.lr or raise the temperatures"
        )
        write_json(self.run.stop_reason, {"step": done, "reason": reason})

    def checkpoint(self, done: int) -> None:
        """Save the state, and the teachers if their mean loss since the last checkpoint is the lowest so far."""
        loss = torch.stack(self.since_checkpoint).nanmean(0)
        self.since_checkpoint.clear()
        metadata = {"step": str(done)}
        state = self.trainer.trial(self.index).tensors
        if loss.mean() < self.best["loss"].mean():
            self.best = {name: t.clone() for name, t in state.items() if name.startswith("teacher.")}
            self.best["loss"] = loss
            save_tensors(self.run.best, self.best, metadata)
        if self.run.latest.exists():
            # Kept until every trial of the pass has saved this step: a kill in between finds a step common to all.
            self.run.latest.replace(self.run.previous)
        save_tensors(self.run.latest, state, metadata)
        keep_every = self.config.train.keep_every
        if keep_every and done % keep_every == 0:
            save_tensors(self.run.checkpoints / f"step-{done:06d}.safetensors", state, metadata)

    def resume(self, step: int) -> None:
        """Load this trial's state at `step` (0: begin) and cut its metrics back to there."""
        run, device = self.run, self.trainer.device
        self.trackers = open_trackers(run, self.config, step)
        if step == 0:
            run.metrics.unlink(missing_ok=True)
            return
        state, _ = load_tensors(run.saved_states()[step], device)
        self.trainer.trial(self.index).load(state)
        if run.best.exists():
            self.best, _ = load_tensors(run.best, device)
            self.best["loss"] = self.best["loss"].cpu()
        lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomic(run.metrics, "".join(line + "\n" for line in kept).encode())

    def close(self) -> None:
        """Flush what is buffered."""
        for tracker in self.trackers:
            tracker.close(self.run.stopped)
