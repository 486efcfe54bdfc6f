"""Memory: the prediction counts what is there, and too much is a sentence that names the number to lower."""

from pathlib import Path

import pytest
import torch
from mixtures import mixture, write_cache

from pipeline import memory
from pipeline.config import Config, load_config
from pipeline.data import load_training_set
from pipeline.errors import UserError
from pipeline.run import train_heads
from pipeline.train import HeadTrainer

CPU = torch.device("cpu")


def settings(*overrides: str) -> Config:
    base = ["heads.clusters=6", "neighbors.k=10", "start.kind=random", "train.min_steps=20", "train.epochs=0"]
    return load_config(None, [*base, *overrides])


@pytest.mark.parametrize("kind", ["linear", "published", "mlp-bn"])
def test_what_training_holds_is_within_the_prediction_and_most_of_it(tmp_path: Path, kind: str) -> None:
    cache = write_cache(tmp_path, mixture(rows=600, dim=64)[0])
    configs = [settings(f"heads.kind={kind}", f"train.seed={seed}", "heads.scale=none") for seed in range(3)]
    data = load_training_set(cache, configs[0], CPU, tmp_path)
    trainer = HeadTrainer(configs, data)
    trainer.step(0, next(trainer.batches.bank_rows(0, 1)))
    predicted = memory.predict(configs, 600, 64, 0, CPU)
    held = {
        "bank": sum(t.numel() * t.element_size() for t in (data.bank, data.neighbors)),
        "heads": sum(t.numel() * t.element_size() for t in trainer.state().values()),
    }
    assert held["bank"] == predicted.bank
    assert held["heads"] <= predicted.heads <= 2 * held["heads"]


@pytest.mark.parametrize(
    ("overrides", "trials", "sentence"),
    [
        (["heads.kind=published", "train.batch_size=10"], 1, r"lower heads.count from 16 to \d+ or less"),
        (["heads.kind=published", "train.batch_size=10"], 4, r"train \d trials at a time instead of 4"),
        (
            ["heads.clusters=300", "heads.hidden=8", "pairs.source=self"],
            1,
            r"lower train.batch_size from 512 to \d+ or less",
        ),
        (["heads.count=1", "train.batch_size=8"], 1, r"at most \d+% of these images"),
    ],
)
def test_too_much_names_the_number_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], trials: int, sentence: str
) -> None:
    embedding, _ = mixture(rows=4000, dim=64)
    cache = write_cache(tmp_path, embedding, views=embedding[:, None])
    configs = [settings(*overrides, f"train.seed={seed}") for seed in range(trials)]
    needed = memory.check_memory(configs, cache, 4000, CPU).rest
    monkeypatch.setattr(memory, "free_memory", lambda _: int(0.8 * needed))
    with pytest.raises(UserError, match=sentence):
        memory.check_memory(configs, cache, 4000, CPU)


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    monkeypatch.setattr(memory, "free_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"training needs about .* GB .*, and 0.00 GB are free on cpu"):
        train_heads(cache, settings(), tmp_path / "run")
    assert not (cache.folder / "neighbors").exists()


def test_free_memory_is_that_of_the_machine() -> None:
    assert 2**20 < memory.free_memory(CPU) < 2**50
