"""`temi train-heads` by torchrun: two processes equal one, an error or a signal ends them all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mixtures import mixture, write_cache

from temi.pipeline.runs.model import load_tensors

TEMI = Path(sys.executable).with_name("temi")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(TEMI)]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
BASE = (
    "heads.clusters=6",
    "heads.count=2",
    "heads.hidden=16",
    "heads.bottleneck=8",
    "neighbors.k=10",
    "train.batch_size=128",
    "train.epochs=0",
    "train.min_steps=40",
    "train.log_every=10",
    "train.checkpoint_every=20",
    "train.tensorboard=false",
    "train.device=cpu",
)


def command(cache: Path, out: Path, *settings: str, grid: str = "") -> list[str]:
    chosen = [word for setting in (*BASE, *settings) for word in ("--set", setting)]
    return ["train-heads", str(cache), "--out", str(out), *chosen, *(["--grid", grid] if grid else [])]


def run(launcher: list[str], words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=1800, env=ENVIRONMENT)


def assert_same(one: Path, two: Path) -> None:
    """Two runs hold the same heads, to the rounding of sums in another order."""
    expected, found = (load_tensors(folder / "heads.safetensors")[0] for folder in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    assert (one / "assignments.csv").read_text().count("\n") == 601
    for lines in zip(*((folder / "assignments.csv").read_text().splitlines() for folder in (one, two)), strict=True):
        assert lines[0].rpartition(",")[0] == lines[1].rpartition(",")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        (("start.steps=50",), ""),
        pytest.param(
            ("start.kind=random", "heads.kind=published", "objective.regularizer=batch-entropy"),
            "",
            marks=pytest.mark.long,
        ),
        pytest.param(("start.kind=random", "optimizer.clip=0.01"), "objective.name=temi,scan", marks=pytest.mark.long),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, settings: tuple[str, ...], grid: str) -> None:
    write_cache(tmp_path / "cache", mixture()[0])
    for name, launcher in {"one": [str(TEMI)], "two": TORCHRUN}.items():
        done = run(launcher, command(tmp_path / "cache", tmp_path / name, *settings, grid=grid))
        assert done.returncode == 0, done.stderr
    for trial in ("trial-000", "trial-001") if grid else (".",):
        assert_same(tmp_path / "one" / trial, tmp_path / "two" / trial)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("written:" if grid else "assignments:") == 1  # one process speaks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("heads.kind=mlp-bn", "normalizes by the whole batch and trains in one process only"),
        ("train.batch_size=127", "a batch of 127 pairs does not divide among 2 processes"),
    ],
)
def test_what_several_processes_cannot_train_is_one_sentence(tmp_path: Path, setting: str, sentence: str) -> None:
    write_cache(tmp_path / "cache", mixture()[0])
    done = run(TORCHRUN, command(tmp_path / "cache", tmp_path / "run", setting))
    assert done.returncode != 0
    assert done.stderr.count(sentence) == 1
    assert "Connection closed by peer" not in done.stderr  # as the other process would say, which hears no more
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_signal_ends_all_processes_and_the_run_goes_on_later(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", mixture()[0])
    words = command(tmp_path / "cache", tmp_path / "run", "start.kind=random", "train.min_steps=3000")
    process = subprocess.Popen(
        [*TORCHRUN, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    until = time.monotonic() + 600
    while not (tmp_path / "run/checkpoints/previous.safetensors").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) != 0
    assert not (tmp_path / "run/training.json").exists()
    done = run(TORCHRUN, words)
    assert done.returncode == 0, done.stderr
    steps = [line.partition(",")[0] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(10, 3001, 10)]
