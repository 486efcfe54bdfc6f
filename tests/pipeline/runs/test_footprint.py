"""The memory that a pass says it will take is what a process takes, in shapes where different parts dominate.

What a pass asks for is the same in every process. What it takes is that and the freed blocks that the C library keeps,
and those differ (see returning.py). So a prediction must be enough for what is taken, whatever that is this time, and
not much more than what is asked for.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mixtures import mixture, write_cache

MEBIBYTE = 2**20
LEAST = 200 * MEBIBYTE  # a prediction that is measured here is above what libraries do by themselves
TOO_LITTLE, TOO_MUCH = 1.15, 2.75  # taken per predicted, predicted per asked for: at most; measured were 1.0 and 2.5


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "dim", "views", "trials", "settings"),
    [
        pytest.param(4000, 128, 0, 1, ["heads.clusters=1000", "heads.count=16", "pairs.source=self"], id="clusters"),
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
    shape = [cache.folder, small.folder, tmp_path, trials, *settings]
    predicted, asked = measure("asked", *shape)
    shutil.rmtree(cache.folder / "neighbors", ignore_errors=True)  # to be searched for again
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "warm")
    _, taken = measure("taken", *shape)
    sizes = {"predicted": predicted, "asked for": asked, "taken": taken}
    table = ", ".join(f"{name} {size / MEBIBYTE:.0f} MiB" for name, size in sizes.items())
    print(table)
    assert predicted > LEAST, table
    assert taken <= TOO_LITTLE * predicted, table
    assert predicted <= TOO_MUCH * asked, table


def measure(*arguments: object) -> tuple[float, int]:
    """Bytes that a process predicts for its pass, and by how many it grows."""
    child = subprocess.run(
        [sys.executable, *map(str, [Path(__file__).with_name("measured.py"), *arguments])],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr
    said = re.findall(r"memory: about ([0-9.]+) GB \(.*\)", child.stderr)
    return float(said[-1]) * 1e9, int(child.stdout)
