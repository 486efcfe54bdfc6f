"""Two hundred thousand images trained on, assigned and reported by the installed command in a cgroup of 1.5 GB.

That is a gigabyte beside the half that its libraries take before they do anything.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grouped import cgroup, inside
from mixtures import write_cache

TEMI = Path(sys.executable).with_name("temi")
ROWS, DIM, CLUSTERS, DIRECTIONS = 200_000, 256, 20, 4  # rows of a cluster differ in four directions
LIMIT = 1_500_000_000  # bytes, pages of files and what is compiled included
QUICK = ["heads.count=4", "start.steps=100", "train.epochs=0", "train.min_steps=100", "train.tensorboard=false"]


def within(group: Path, *words: object) -> str:
    """What `temi` says inside the cgroup, on standard output and error."""
    ran = subprocess.run([*inside(group), TEMI, *map(str, words)], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.long
def test_200_000_images_are_trained_on_assigned_and_reported_within_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    center, direction = (random.standard_normal((count, DIM), np.float32) for count in (CLUSTERS, DIRECTIONS))
    label = np.arange(ROWS) % CLUSTERS
    rows = 0.5 * random.standard_normal((ROWS, DIRECTIONS), np.float32) @ direction / DIRECTIONS**0.5
    rows = (rows + center[label] + 0.1 * random.standard_normal((ROWS, DIM), np.float32)).astype(np.float16)
    cache, run = write_cache(tmp_path / "cache", rows, shard_rows=4096).folder, tmp_path / "run"
    settings = ["--clusters", CLUSTERS, *(word for setting in QUICK for word in ("--set", setting))]
    with cgroup("memory", "memory.limit_in_bytes", LIMIT) as group:
        said = within(group, "train-heads", cache, "--out", run, *settings)
        within(group, "predict", run, cache, "--out", tmp_path / "predicted.parquet")
        within(group, "report", run)
        print("most memory of the cgroup:", (group / "memory.max_usage_in_bytes").read_text())
    assert "cuts of a random 100,000 of the 200,000 images" in said
    assert "cells probed, recall@15 0.9" in said
    trained, predicted = (
        pd.read_parquet(path) for path in (run / "assignments.parquet", tmp_path / "predicted.parquet")
    )
    assert len(trained) == ROWS
    np.testing.assert_array_equal(trained["cluster"], predicted["cluster"])
    assert pd.crosstab(label, trained["cluster"]).max(axis=1).sum() > 0.99 * ROWS
    assert (run / "report.html").stat().st_size > 1_000_000
