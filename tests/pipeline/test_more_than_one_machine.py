"""The commands of docs/more-than-one-machine.md, run as they stand there, with small images and short trainings."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from bucketing import serve_bucket
from photos import COLORS, PhotoRun, photo
from ray_nodes import ray_nodes
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app

PAGE = (Path(__file__).parents[2] / "docs/more-than-one-machine.md").read_text()
SCRIPTS = Path(sys.executable).parent
SHORT = ["heads.count=2", "neighbors.k=5", "train.batch_size=32", "train.epochs=0", "train.min_steps=20"]
SHORT += ["start.kind=random", "train.tensorboard=false", "train.device=cpu"]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
)


def blocks(heading: str) -> str:
    """The code below a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```(?:bash)?\n(.*?)```", section, re.DOTALL))


def small(command: str, run: PhotoRun) -> list[str]:
    """A command with the settings that make it quick."""
    words = shlex.split(command, comments=True)
    settings = {
        "embed": [f"embed.backbone={run.weights}", "embed.views=0", "embed.batch_size=8", "embed.shard_rows=16"],
        "train-heads": [] if "--from" in words else SHORT,
        "search": SHORT,
    }
    verb = words[words.index("temi") + 1]
    words += [word for setting in settings.get(verb, ()) for word in ("--set", setting)]
    return words + (["--trials", "3", "--together", "2"] if verb == "search" else [])


def follow(heading: str, run: PhotoRun) -> list[str]:
    """Run every `temi` of a section; what each said."""
    said = []
    for command in blocks(heading).splitlines():
        if command.startswith("temi "):
            ran = CliRunner().invoke(app, small(command, run)[1:])
            assert ran.exit_code == 0, (command, ran.output, ran.exception)
            said.append(ran.output)
    return said


def rows_of(cache: str) -> tuple[list[str], bytes]:
    opened = EmbeddingCache.open(cache)
    return opened.keys, opened.embedding().tobytes()


@pytest.fixture(scope="module")
def bucket() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch, serve_bucket(patch):
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield patch


@pytest.fixture
def here(photo_run: PhotoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos, their cache, and a run on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    for name in ("photos", "cache", "run"):
        shutil.copytree(getattr(photo_run, name), name)
    return tmp_path


def test_the_readme_shows_what_the_page_explains() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = re.findall(r"```\n(.*?)```", readme.partition("## More than one machine\n")[2], re.DOTALL)[0].splitlines()
    explained = [line.partition(" #")[0].rstrip() for line in PAGE.splitlines()]
    assert [line for line in shown if line not in explained] == []


@pytest.mark.long
def test_new_images_every_day(photo_run: PhotoRun, here: Path) -> None:
    Path("photos/red/new.jpg").write_bytes(photo(COLORS["red"], np.random.default_rng(0)))
    _, new, continued = follow("New images every day", photo_run)
    assert "red/new.jpg" in new
    assert "moved" in continued


@pytest.mark.long
def test_a_bucket(bucket: pytest.MonkeyPatch, photo_run: PhotoRun, here: Path) -> None:
    for path in Path("photos").rglob("*.jpg"):
        boto3.client("s3").upload_file(str(path), "bucket", str(path))
    said = follow("Caches, images and runs in a bucket", photo_run)
    assert "45 rows, every byte as written" in said[-1]
    assert rows_of("cache-2") == rows_of("s3://bucket/cache")


@pytest.mark.long
def test_ray(bucket: pytest.MonkeyPatch, photo_run: PhotoRun, here: Path) -> None:
    with ray_nodes(bucket) as cluster:
        bucket.setenv("RAY_ADDRESS", cluster.address)
        said = follow("Ray", photo_run)
        bucket.delenv("RAY_ADDRESS")
    assert rows_of("s3://bucket/ray-cache") == rows_of("cache")
    assert "3 trials, by scores that need no label" in said[1]
    assert "study/search.json: 3 trials" in said[2]


@pytest.mark.long
def test_slurm_and_torchrun(bucket: pytest.MonkeyPatch, photo_run: PhotoRun, here: Path) -> None:
    script = small_script(blocks("Slurm"), photo_run)
    for task in "01":
        run_bash(script, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
    two = blocks("torchrun").replace("--nproc-per-node 8", "--nproc-per-node 2")
    run_bash(small_script(two, photo_run).replace("torchrun --", f"{sys.executable} -m torch.distributed.run --"))
    for cache in ("s3://bucket/slurm-cache", "torchrun-cache"):
        assert rows_of(cache) == rows_of("cache")
    assert Path("torchrun-run/training.json").exists()


def small_script(text: str, run: PhotoRun) -> str:
    """A script with quick commands; words that a shell is to replace stay as they are."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if "temi " in line and not line.startswith("#"):
            lines[at] = f"{line} {shlex.join(small(line, run)[len(shlex.split(line)) :])}"
    return "\n".join(lines)


def run_bash(script: str, **variables: str) -> None:
    environment = os.environ | variables | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
