"""What somebody else owns: a cache that cannot be written is trained from, its neighbors and cuts go to the run folder;
what cannot be written or read is told before the work, in one sentence.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from mixtures import mixture, write_cache
from photos import short

from temi.pipeline.runs.train import train_heads

TEMI = Path(sys.executable).with_name("temi")
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # <linux/prctl.h>, <linux/capability.h>


def obey_permissions() -> None:
    """Have even root be refused by a folder's mode bits, in the program that is about to start."""
    for right in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="takes a right from root as Linux does"),
]


def temi(*words: object) -> subprocess.CompletedProcess[str]:
    """The installed command, to whom permissions apply."""
    command = [str(TEMI), *map(str, words)]
    return subprocess.run(
        command, preexec_fn=obey_permissions, capture_output=True, text=True, timeout=1800, check=False
    )


def test_training_from_a_read_only_cache_keeps_what_trials_share_in_the_run(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", mixture(rows=300)[0]).folder
    files = sorted(path.name for path in cache.iterdir())
    cache.chmod(0o500)
    settings = ["heads.clusters=6", "heads.count=2", "train.min_steps=20", "train.epochs=0", "start.steps=20"]
    options = [word for setting in (*settings, "train.device=cpu") for word in ("--set", setting)]
    done = temi("train-heads", cache, "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in cache.iterdir()) == files
    kept = {
        path.name.partition("-")[0] if "-" in path.name else path.suffix
        for path in (tmp_path / "run/neighbors").iterdir()
    }
    made = {"copies", "scaling", "start", "heads", "familiar"}
    assert kept == {*made, ".h5"}
    assert (tmp_path / "run/assignments.csv").exists()


@pytest.mark.long
def test_what_may_not_be_written_or_read_is_told_before_the_work(tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path / "cache", *mixture(rows=60, dim=8, clusters=3)), tmp_path / "run"
    train_heads(cache, short("train.min_steps=20"), run)
    unseen = write_cache(tmp_path / "unseen", mixture(rows=20, dim=8, clusters=3)[0]).folder
    unseen.chmod(0)
    run.chmod(0o500)
    assert temi("report", run, "--out", tmp_path / "new/page.html").returncode == 0
    for words in (("evaluate", run), ("report", run, "--out", run / "pages/page.html")):
        done = temi(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stderr.startswith(f"temi: cannot write to {run}"), (words, done.stderr)
        assert "permission denied; choose a folder that you may write to" in done.stderr
    told = tmp_path / "told.txt"
    told.touch()
    for words, path in (
        (("predict", run, unseen), unseen),
        (("predict", run, told), told),
        (("names", run), run / "heads.safetensors"),
        (("evaluate", run, unseen), unseen),
        (("compare", run), run / "training.json"),
        (("correct", run, told), told),
        (("correct", run, "--from", told), told),
    ):
        before = path.stat().st_mode
        path.chmod(0)
        done = temi(*words)
        path.chmod(before)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stderr == (
            f"temi: cannot read {path}: permission denied; ask whom it belongs to, or change its permissions\n"
        )


@pytest.mark.long
def test_a_folder_that_may_not_be_entered_is_named_in_one_sentence(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    run, settings = outer / "run", tmp_path / "settings.toml"
    run.mkdir(parents=True)
    settings.touch(0)
    for locked in (run, outer):
        locked.chmod(0)
        for words in (("evaluate", run), ("report", run), ("compare", run), ("cache", "info", run)):
            done = temi(*words)
            assert (done.returncode, done.stderr) == (
                2,
                f"temi: cannot use {locked}: permission denied; ask whom it belongs to, or change its permissions\n",
            ), words
    done = temi("train-heads", "cache", "--out", tmp_path / "new", "--config", settings)
    reason = "Permission denied; give --config a TOML file that you may read"
    assert (done.returncode, done.stderr) == (2, f"temi: config file {settings} cannot be read: {reason}\n")
