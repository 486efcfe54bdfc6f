"""The loop of a pass of stage two, and what is remembered of every trial: in memory, or in its run folder as well."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from temi.cache.files import os_errors, write_atomic
from temi.cache.words import counted
from temi.pipeline.config import Config
from temi.pipeline.device import keep_freed_memory
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.progress import Progress
from temi.pipeline.runs.model import load_tensors, save_tensors
from temi.pipeline.runs.run_folder import RunFolder, finite
from temi.pipeline.runs.tracking import Tracker, open_trackers


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


class Trial:
    """One trial of a pass while it trains: it remembers the teachers of the best checkpoint, and touches no disk.

    Attributes
    ----------
    best : ``teacher.*`` tensors of the checkpoint of lowest mean loss, and that ``loss``, (H,)
    stopped : why the trial cannot go on: a sentence; None while nothing speaks against it
    """

    def __init__(self, trainer: HeadTrainer, index: int, config: Config):
        self.trainer, self.index, self.config = trainer, index, config
        self.best: dict[str, Tensor] = {"loss": torch.full((config.heads.count,), math.inf)}
        self.stopped: str | None = None
        self._since_checkpoint: list[Tensor] = []

    def record(self, done: int, metrics: Metrics) -> None:
        """Take in the window that ends at step `done`."""
        self._since_checkpoint.append(metrics.loss)

    def checkpoint(self, done: int) -> bool:
        """Remember the teachers if their mean loss since the last checkpoint is the lowest so far; whether it is."""
        loss = torch.stack(self._since_checkpoint).nanmean(0)
        self._since_checkpoint.clear()
        better = bool(loss.mean() < self.best["loss"].mean())
        # The last finite step may have led out of float32.
        better = better and self.trainer.finite(self.index)
        if better:
            self.remember(loss)
        return better

    def remember(self, loss: Float[Tensor, " H"]) -> None:
        """Take the teachers as they are, with this mean loss of each, for the best."""
        state = self.trainer.trial(self.index).tensors
        self.best = {name: t.clone() for name, t in state.items() if name.startswith("teacher.")}
        self.best["loss"] = loss

    @property
    def learned(self) -> bool:
        """Whether there is a checkpoint to make a model of."""
        return len(self.best) > 1

    def stop(self, done: int) -> None:
        """Give the trial up at step `done`."""
        most, skipped = self.config.train.max_skipped, int(self.trainer.skipped_in_a_row[self.index])
        if not skipped:
            what = "its heads have a loss or weights that are"
        elif skipped == done < most:
            what = f"all {counted(done, 'step')} had a loss or gradient that is"
        else:
            what = f"the last {counted(min(skipped, most), 'step')} before step {done} had a loss or gradient that is"
        self.stopped = f"training cannot go on: {what} not finite; lower optimizer.lr or raise the temperatures"

    def close(self) -> None:
        """The pass is over."""


class LoggedTrial(Trial):
    """A trial that leaves metrics, checkpoints and the reason of a stop in its run folder, and goes on from there."""

    def __init__(self, run: RunFolder, trainer: HeadTrainer, index: int, config: Config):
        super().__init__(trainer, index, config)
        self.run, self.stopped = run, run.stopped
        self.trackers: list[Tracker] = []

    def record(self, done: int, metrics: Metrics) -> None:
        """Append a line to metrics.jsonl as well, and tell the trackers."""
        super().record(done, metrics)
        values = {
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
        super().stop(done)
        self.stopped = f"{self.run.folder}: {self.stopped}"
        self.run.stop(done, self.stopped)

    def checkpoint(self, done: int) -> bool:
        """Save the state as well, and the best teachers."""
        better, metadata = super().checkpoint(done), {"step": str(done)}
        if better:
            save_tensors(self.run.best, self.best, metadata)
        if self.run.latest.exists():
            # Kept until every trial of the pass has saved this step: a kill in between finds a step common to all.
            self.run.latest.replace(self.run.previous)
        state = self.trainer.trial(self.index).tensors
        save_tensors(self.run.latest, state, metadata)
        keep_every = self.config.train.keep_every
        if keep_every and done % keep_every == 0:
            save_tensors(self.run.checkpoints / f"step-{done:06d}.safetensors", state, metadata)
        return better

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
        kept = [line for line in lines if _step(line) <= step]
        write_atomic(run.metrics, "".join(line + "\n" for line in kept).encode())

    def close(self) -> None:
        """Flush what is buffered."""
        for tracker in self.trackers:
            tracker.close(self.stopped)


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where a kill or a full disk cut it short."""
    try:
        step: float = json.loads(line)["step"]
    except ValueError:
        return math.inf
    return step


def resume_trials(trials: Sequence[LoggedTrial]) -> int:
    """Put all trials of a pass back to the last step that each of them has a checkpoint of, and return it."""
    step = max(set.intersection(*(set(trial.run.saved_states()) for trial in trials)), default=0)
    for trial in trials:
        trial.resume(step)
    return step


class TrainingLoop:
    """Train the trials of a pass from `first_step` to the end. A trial that cannot go on stops; the others go on."""

    def __init__(self, trials: Sequence[Trial], trainer: HeadTrainer, first_step: int = 0):
        self.trials, self.trainer, self.first_step = trials, trainer, first_step
        self.settings = trainer.config.train

    def run(self) -> None:
        """All steps; afterwards each trial's `best` is what it learned."""
        settings, steps = self.settings, self.trainer.steps
        with (
            keep_freed_memory(self.trainer.device),
            Progress("train", total=steps - self.first_step, unit="step") as progress,
        ):
            batches = self.trainer.batches.bank_rows(self.first_step, steps)
            for done, bank_rows in enumerate(batches, start=self.first_step + 1):
                self.trainer.step(done - 1, bank_rows)
                recorded = settings.recorded(done, steps)
                progress.advance(note=self._record(done) if recorded else "")
                if not recorded:
                    continue
                going = [trial for trial in self.trials if not trial.stopped]
                if settings.checkpointed(done, steps):
                    for trial in going:
                        trial.checkpoint(done)
                if not self.trainer.processes.agree(bool(going)):
                    break
        for trial in self.trials:
            if not trial.stopped and not trial.learned:  # it had too few steps for max_skipped to tell
                trial.stop(steps)
            trial.close()

    def _record(self, done: int) -> str:
        """Close the window of metrics at step `done`; a note for the progress line."""
        trainer = self.trainer
        loss, norm = (mean.cpu() for mean in trainer.window.means())
        trainer.window.reset()
        marginal = trainer.marginal.cpu().chunk(trainer.trials)
        skipped, in_a_row = trainer.skipped.tolist(), trainer.skipped_in_a_row.tolist()
        for index, trial in enumerate(self.trials):
            if trial.stopped:
                continue
            if in_a_row[index] >= self.settings.max_skipped:
                trial.stop(done)
            else:
                trial.record(done, Metrics(loss[index], norm[index].item(), marginal[index], skipped[index]))
        return f"loss {loss.mean(1).nan_to_num(math.inf).min():.4f}"
