"""A candidate of a search whose heads leave float32 is told as failed, whatever its last finite loss was."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mixtures import mixture, write_cache

from temi.pipeline.config import load_config
from temi.pipeline.features.features import Features
from temi.pipeline.runs.pack import Candidate, train_pack
from temi.pipeline.runs.records import Training

BASE = ["heads.clusters=4", "heads.count=2", "start.kind=random", "train.epochs=0", "train.min_steps=12"]


class Told:
    """A judge that keeps what it is told."""

    def __init__(self) -> None:
        self.trained: dict[int, Sequence[Training]] = {}
        self.reasons: dict[int, str] = {}

    def survivors(self, step: int, score: dict[int, float]) -> set[int]:
        return set(score)

    def finished(self, number: int, trained: Sequence[Training]) -> None:
        self.trained[number] = trained

    def failed(self, number: int, reason: str) -> None:
        self.reasons[number] = reason

    def more(self, places: int) -> list[Candidate]:
        return []


def test_heads_that_left_float32_fail_alone(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture(rows=200)[0])
    features = Features.of_cache(cache, np.arange(cache.rows), tmp_path)
    configs = [load_config(None, [*BASE, f"optimizer.lr={lr}"]) for lr in (0.002, 3e38)]
    told = Told()
    pack = [Candidate(number, [config]) for number, config in enumerate(configs)]
    train_pack(cache, features, pack, told, halving=False)  # one window, with the finite first step in it
    assert list(told.trained) == [0]
    assert "finite" in told.reasons[1]
