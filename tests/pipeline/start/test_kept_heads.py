"""Heads that learned their cuts once are kept: another loss finds them ready, other cuts do not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache

from temi.pipeline.config import load_config
from temi.pipeline.features.features import Features
from temi.pipeline.heads import warm_start as module
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.start.find import Start

BASE = ["heads.clusters=4", "heads.count=2", "neighbors.k=5", "start.steps=20"]


def test_another_loss_finds_its_heads_ready_and_other_cuts_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, label = mixture(rows=120, clusters=4)
    cache, learned = write_cache(tmp_path / "cache", embedding), []
    whole = module.warm_start
    monkeypatch.setattr(module, "warm_start", lambda *given: (learned.append(given[3]), whole(*given)))

    def begin(cut: np.ndarray, *settings: str) -> dict[str, torch.Tensor]:
        features = Features.of_cache(cache, np.arange(cache.rows))
        configs = [load_config(None, [*BASE, *own.split()]) for own in settings]
        trainer = HeadTrainer(configs, load_training_set(features, configs[0]))
        start = Start(np.arange(len(cut)), 4, ("given",), cut[None].astype("i8"))
        module.begin_at_cuts(trainer, features, configs, [start] * len(configs), range(len(configs)))
        return trainer.state()

    first = begin(label, "objective.beta=1")
    again = begin(label, "objective.beta=0.6 optimizer.lr=1e-4", "objective.student_temperature=0.2")
    assert learned == [[0], [1]]  # of the second pass only the trial whose temperature is new
    for name, tensor in first.items():
        if name.startswith(("student", "teacher", "marginal")):
            torch.testing.assert_close(again[name].chunk(2)[0], tensor, rtol=0, atol=0)
    begin(3 - label, "objective.beta=1")
    assert learned[2:] == [[0]]
    for file in (tmp_path / "cache/neighbors").glob("heads-*"):  # damaged: made again
        file.write_bytes(file.read_bytes()[:-1])
    begin(label, "objective.beta=1")
    assert learned[3:] == [[0]]
