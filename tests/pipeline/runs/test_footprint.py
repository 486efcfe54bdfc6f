"""The memory that a pass says it will take is what a process takes, in shapes where different parts dominate."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mixtures import mixture, write_cache

MEBIBYTE = 2**20
LEAST = 200 * MEBIBYTE  # a prediction that is measured here is above what libraries do by themselves
TOO_LITTLE, TOO_MUCH = 1.15, 0.5  # measured is at most, and at least, so many times what was predicted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "dim", "views", "trials", "settings"),
    [
        pytest.param(4000, 128, 0, 1, ["heads.clusters=1000", "pairs.source=self"], id="clusters"),
        pytest.param(
            2000,
            128,
            0,
            3,
            ["heads.kind=published", "heads.count=8", "heads.clusters=200", "pairs.source=self"],
            id="trials",
        ),
        pytest.param(60_000, 256, 2, 1, ["heads.scale=center", "pairs.source=views"], id="images and views"),
        pytest.param(30_000, 512, 0, 1, ["neighbors.scale=center"], id="neighbors"),
    ],
)
def test_a_process_takes_what_was_predicted(
    tmp_path: Path, rows: int, dim: int, views: int, trials: int, settings: list[str]
) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 1 + views, dim), np.float32).astype(np.float16)
    cache = write_cache(tmp_path / "cache", values[:, 0], views=values[:, 1:], shard_rows=4096)
    small = write_cache(tmp_path / "small", mixture(300)[0])
    script = [Path(__file__).with_name("measured.py"), cache.folder, small.folder, tmp_path, trials, *settings]
    child = subprocess.run(
        [sys.executable, *map(str, script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr
    said, measured = re.findall(r"memory: about ([0-9.]+) GB \(.*\)", child.stderr), int(child.stdout)
    predicted = float(said[-1]) * 1e9
    table = f"predicted {predicted / MEBIBYTE:.0f} MiB, measured {measured / MEBIBYTE:.0f} MiB; {child.stderr}"
    print(table)
    assert predicted > LEAST, table
    assert TOO_MUCH * predicted <= measured <= TOO_LITTLE * predicted, table
