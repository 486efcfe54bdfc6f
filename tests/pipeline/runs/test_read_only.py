"""A cache that cannot be written is trained from: its neighbors and cuts go to the run folder."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from mixtures import mixture, write_cache

TEMI = Path(sys.executable).with_name("temi")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # <linux/prctl.h>, <linux/capability.h>


def obey_permissions() -> None:
    """Have even root be refused by a folder's mode bits, in the program that is about to start."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="takes a right from root as Linux does")
def test_training_from_a_read_only_cache_keeps_what_trials_share_in_the_run(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture(rows=300)[0]).folder
    files = sorted(path.name for path in cache.iterdir())
    cache.chmod(0o500)
    settings = ["heads.clusters=6", "heads.count=2", "train.min_steps=20", "train.epochs=0", "start.steps=20"]
    command = [TEMI, "train-heads", cache, "--out", tmp_path / "run"]
    command += [word for setting in (*settings, "train.device=cpu") for word in ("--set", setting)]
    done = subprocess.run(
        list(map(str, command)), preexec_fn=obey_permissions, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in cache.iterdir()) == files
    kept = {
        path.name.partition("-")[0] if "-" in path.name else path.suffix
        for path in (tmp_path / "run/neighbors").iterdir()
    }
    made = {"copies", "scaling", "start", "heads", "familiar"}
    assert kept == {*made, ".h5"}
    assert (tmp_path / "run/assignments.csv").exists()
