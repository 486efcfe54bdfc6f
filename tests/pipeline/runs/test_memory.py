"""Memory: the prediction counts what is there, too much is a sentence, and embeddings need not fit."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import mixture, write_cache

from temi.cache import CacheError
from temi.pipeline.config import Config, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.features.features import Features
from temi.pipeline.heads.bank import Place, Prefetch, empty_bank
from temi.pipeline.heads.batches import Batches, load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs import footprint
from temi.pipeline.runs.train import train_heads
from temi.pipeline.start.find import LARGEST

CPU = torch.device("cpu")


def settings(*overrides: str) -> Config:
    base = ["heads.clusters=6", "neighbors.k=10", "start.kind=random", "train.min_steps=20", "train.epochs=0"]
    return load_config(None, [*base, *overrides])


@pytest.mark.parametrize("kind", ["linear", "published", "mlp-bn"])
def test_what_training_holds_is_within_the_prediction_and_most_of_it(tmp_path: Path, kind: str) -> None:
    cache = write_cache(tmp_path, mixture(rows=600, dim=64)[0])
    configs = [settings(f"heads.kind={kind}", f"train.seed={seed}", "heads.scale=none") for seed in range(3)]
    data = load_training_set(Features.of_cache(cache, np.arange(cache.rows)), configs[0])
    trainer = HeadTrainer(configs, data)
    trainer.step(0, next(trainer.batches.bank_rows(0, 1)))
    predicted = footprint.footprint_of(configs, 600, 64, 0, CPU)
    held = {
        "bank": sum(t.numel() * t.element_size() for t in (data.bank, data.neighbors)),
        "heads": sum(t.numel() * t.element_size() for t in trainer.state().values()),
    }
    assert held["bank"] == predicted.bank
    assert held["heads"] <= predicted.heads <= 4 * held["heads"]


def test_the_peak_is_that_of_the_worst_phase() -> None:
    sizes = {"search": 70, "bank": 40, "reading": 5, "heads": 10, "start": 1, "activations": 9, "results": 21}
    peak = footprint.Footprint(**sizes)
    assert (peak.total, peak.rest, peak.worst) == (71, 70, {"search": 70})
    peak = footprint.Footprint(**sizes | {"search": 30})
    assert (peak.total, peak.rest, peak.worst) == (71, 31, {"heads": 10, "results": 21})
    assert footprint.Footprint(**sizes | {"reading": 32}).total == 72


def test_cuts_are_counted_up_to_the_sample_that_is_cut() -> None:
    plain, cuts = settings(), settings("start.kind=pool")
    assert footprint.footprint_of([plain], 5000, 64, 0, CPU).start == 0
    one, two = (footprint.footprint_of([cuts] * trials, 5000, 64, 0, CPU).start for trials in (1, 2))
    assert 0 < one <= two
    whole = footprint.footprint_of([cuts], LARGEST, 64, 0, CPU).start
    sampled = [footprint.footprint_of([cuts], times * LARGEST, 64, 0, CPU).start for times in (2, 10)]
    assert sampled == [whole + 2 * LARGEST * 64] * 2  # the sample is held in memory, as float16


@pytest.mark.parametrize(
    ("overrides", "trials", "sentence"),
    [
        (
            ["heads.kind=published", "train.batch_size=10", "heads.count=16"],
            1,
            r"lower heads.count from 16 to \d+ or less",
        ),
        (["heads.kind=published", "train.batch_size=10"], 4, r"train \d trials at a time instead of 4"),
        (
            ["heads.clusters=300", "heads.hidden=8", "pairs.source=self", "heads.count=16"],
            1,
            r"lower train.batch_size from 512 to \d+ or less",
        ),
        (["heads.count=1", "train.batch_size=8"], 1, r"at most \d+% of these images"),
        (["start.kind=pool", "heads.count=1", "train.batch_size=8"], 1, r"at most \d+% of these images"),
    ],
)
def test_too_much_names_the_number_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], trials: int, sentence: str
) -> None:
    embedding, _ = mixture(rows=4000, dim=64)
    cache = write_cache(tmp_path, embedding, views=embedding[:, None])
    configs = [settings(*overrides, f"train.seed={seed}") for seed in range(trials)]
    needed = footprint.check_memory(configs, cache, 4000, CPU).rest
    monkeypatch.setattr(footprint, "free_memory", lambda _: int(0.8 * needed))
    with pytest.raises(UserError, match=sentence):
        footprint.check_memory(configs, cache, 4000, CPU)


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(tmp_path / "cache", mixture()[0])
    monkeypatch.setattr(footprint, "free_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"training needs about .* GB .*, and 0.00 GB are free on cpu"):
        train_heads(cache, settings("train.device=cpu"), tmp_path / "run")
    kept = [path.name.rpartition("-")[0] for path in (cache.folder / "neighbors").glob("*.*")]
    assert set(kept) <= {"copies"}  # which rows repeat others is all that was asked


def test_a_limit_of_the_users_own_is_named_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, mixture(rows=4000, dim=64)[0])
    with pytest.raises(UserError, match=r"train.memory = 0.0001 allows less; set train.memory to \d+\.\d\d") as refused:
        footprint.check_memory([settings("train.memory=0.0001")], cache, 4000, CPU)
    enough = str(refused.value).split("set train.memory to ")[1].split()[0]
    footprint.check_memory([settings(f"train.memory={enough}")], cache, 4000, CPU)
    monkeypatch.setattr(footprint, "free_memory", lambda _: 1000)
    with pytest.raises(UserError, match=r"0.00 GB are free on cpu; free \d+\.\d\d GB there, or train on a machine"):
        footprint.check_memory([settings()], cache, 4000, CPU)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 2**20 < footprint.free_memory(CPU) < 2**50


@pytest.mark.long
def test_a_cache_larger_than_the_memory_is_trained_from_to_the_same_bytes(tmp_path: Path) -> None:
    embedding, _ = mixture(rows=16_384, dim=128)
    views = np.stack([embedding + np.float16(0.01 * view) for view in range(1, 32)], axis=1)
    cache = write_cache(tmp_path / "cache", embedding, views=views)
    small = write_cache(tmp_path / "small", embedding[:300], views=views[:300])
    stored, megabytes = sum(path.stat().st_size for path in cache.folder.glob("*.h5")), 105
    assert stored > 1.2e6 * megabytes
    script = [Path(__file__).with_name("limited.py"), cache.folder, small.folder, tmp_path, megabytes]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, *map(str, script)], capture_output=True, text=True, env=environment)
    assert child.returncode == 0, child.stderr
    assert "refused:" in child.stdout  # without the setting the same memory is not enough
    frugal, plain = (tmp_path / name / "heads.safetensors" for name in ("frugal", "plain"))
    assert frugal.read_bytes() == plain.read_bytes()
    assert not list((tmp_path / "frugal" / "neighbors").iterdir())  # nothing of the bank is left


@pytest.mark.parametrize("place", ["host", "disk"])
def test_a_bank_elsewhere_gives_the_same_batches(tmp_path: Path, place: Place) -> None:
    embedding, _ = mixture(rows=300, dim=16)
    cache = write_cache(tmp_path / "cache", embedding, views=embedding[:, None] + np.float16(0.5))
    config = settings("pairs.source=neighbors+views")
    near = load_training_set(Features.of_cache(cache, np.arange(cache.rows)), config)
    far = load_training_set(Features.of_cache(cache, np.arange(cache.rows)), config, place, tmp_path)
    assert torch.equal(near.bank, far.bank)
    seen = []
    for data in (near, far):
        out = torch.empty(2 * 64, data.bank.shape[1])
        for rows in Batches(data, config.pairs, 64).bank_rows(3, 12):
            data.gather(rows, out=out)
            seen.append(out.clone())
    assert len(seen) == 18
    assert all(map(torch.equal, seen[:9], seen[9:]))


def test_rows_that_nobody_asked_for_are_gathered_all_the_same() -> None:
    bank = torch.arange(20.0).view(10, 2)
    ahead, first, second, third = Prefetch(bank, CPU), *(torch.tensor([i, 9 - i]) for i in range(3))
    ahead.ask(first)
    ahead.ask(second)
    assert torch.equal(ahead.take(first), bank[first])
    assert torch.equal(ahead.take(third), bank[third])
    assert torch.equal(ahead.take(second), bank[second])


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"cannot keep the embeddings to train on in .*the disk is full"):
        empty_bank((10, 4), "disk", CPU, tmp_path)


def test_the_bank_goes_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(tmp_path, mixture(rows=4000, dim=64)[0])
    config = settings("pairs.source=self", "heads.scale=none")
    needed = footprint.check_memory([config], cache, 4000, CPU)
    assert needed.place == "device"
    between = (needed.rest + needed.total) / 2 / footprint.GIGABYTE
    frugal = settings("pairs.source=self", "heads.scale=none", f"train.memory={between}")
    assert footprint.check_memory([frugal], cache, 4000, CPU).place == "disk"
    gpu = torch.device("cuda")
    monkeypatch.setattr(footprint, "free_memory", lambda _: 2**33)
    needed = footprint.check_memory([config], cache, 4000, gpu)
    free = {"cuda": (needed.rest + needed.total) // 2, "cpu": 2**33}
    monkeypatch.setattr(footprint, "free_memory", lambda device: free[device.type])
    assert footprint.check_memory([config], cache, 4000, gpu).place == "host"
    tight = settings("pairs.source=self", "heads.scale=none", "train.memory=0.0001")
    assert footprint.check_memory([tight], cache, 4000, gpu).place == "disk"
