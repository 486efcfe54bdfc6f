"""Cores, threads and memory of a process that does not have the machine for itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from grouped import cgroup, inside
from mixtures import mixture, write_cache
from PIL import Image

from temi.pipeline import limits
from temi.pipeline.encode import workers
from temi.pipeline.encode.preprocessing import Preprocessing
from temi.pipeline.runs import footprint

OWN = """
from temi.pipeline.encode.backbone import Backbone
from temi.pipeline.encode.backbones import register_backbone
from temi.pipeline.encode.preprocessing import Preprocessing

@register_backbone("own")
def own(config, device, precision):
    seen = Preprocessing(224, (224, 224), "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Backbone(
        name="own", revision="1", pooling="mean", precision=precision, dim=3, preprocessing=seen, device=device,
        encode=lambda pixels: pixels.mean(dim=(2, 3)),
    )
"""
TEMI = Path(sys.executable).with_name("temi")
MEMORY = "from temi.pipeline import limits; print(limits.total_memory(), limits.free_memory())"
CORES = "from temi.pipeline.limits import core_count; print(core_count())"
THREADS = (
    "from temi import cli; cli.temi(); import os, torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
)
FREE = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "NUMBA_"))}


def output(*command: str, **environment: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=FREE | environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of cgroups to fill, and a process in none."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_in_", "#").replace("__", ".").replace("#", "_in_")).write_text(f"{text}\n")


@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset here")
def test_taskset_decides_the_cores_and_torch_starts_with_as_many_threads_that_sleep() -> None:
    assert output("taskset", "-c", "0", sys.executable, "-c", CORES) == "1"
    assert output("taskset", "-c", "0", sys.executable, "-c", THREADS) == "1 PASSIVE"
    asked = output(sys.executable, "-c", THREADS, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE")
    assert asked == "1 ACTIVE"  # what the user says stands


def test_a_quota_of_this_machine_decides_the_cores() -> None:
    with cgroup("cpu", "cpu.cfs_quota_us", 100_000) as group:
        assert output(*inside(group), sys.executable, "-c", CORES) == "1"


def test_a_memory_limit_of_this_machine_is_what_is_free() -> None:
    with cgroup("memory", "memory.limit_in_bytes", 10**9) as group:
        total, free = map(int, output(*inside(group), sys.executable, "-c", MEMORY).split())
    assert 0.99e9 < total <= 1e9
    assert total - 3e8 < free < total


def test_a_run_that_needs_more_than_the_limit_of_its_cgroup_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", mixture()[0])
    large = ["--set", "heads.count=4000", "--set", "heads.kind=published", "--set", "start.kind=random"]
    command = [str(TEMI), "train-heads", f"{tmp_path}/cache", "--out", f"{tmp_path}/run", *large]
    with cgroup("memory", "memory.limit_in_bytes", 10**9) as group:
        ran = subprocess.run([*inside(group), *command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    assert re.search(
        r"training needs about [0-9.]+ GB .*, and 0\.\d+ GB are free on cpu; lower heads.count", ran.stderr
    )


@pytest.mark.parametrize(("text", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64)])
def test_a_container_of_two_cores_on_a_machine_of_64(groups: Path, text: str, cores: int) -> None:
    (groups / "own").write_text("0::/pod/mine\n")
    write(groups / "pod", cpu__max=text)
    write(groups / "pod/mine", cpu__max="max 100000")
    assert limits.core_count() == cores


def test_cgroups_of_version_one_of_which_only_the_root_is_seen(groups: Path) -> None:
    (groups / "own").write_text("4:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123\n1:name=systemd:/x\n0::/\n")
    write(groups / "cpu", cpu__cfs_quota_us=350000, cpu__cfs_period_us=100000)
    write(groups / "memory", memory__limit_in_bytes=3 * 2**20, memory__usage_in_bytes=2 * 2**20)
    write(groups / "memory", memory__stat=f"cache 7\ntotal_inactive_file {2**20}")
    assert limits.core_count() == 3
    assert limits.free_memory() == 2 * 2**20
    assert limits.total_memory() == 3 * 2**20


def test_what_a_pass_needs_is_compared_with_the_limit_of_the_container(groups: Path) -> None:
    (groups / "own").write_text("0::/\n")
    write(groups, memory__max=2**30, memory__current=2**29, memory__stat="inactive_file 0\nanon 5")
    assert footprint.free_memory(torch.device("cpu")) == 2**29
    write(groups, memory__max="max")
    assert footprint.free_memory(torch.device("cpu")) > 2**29
    assert limits.total_memory() == psutil.virtual_memory().total


def test_a_small_place_for_shared_memory_holds_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Preprocessing(256, (224, 224), "bicubic", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 64 * 2**20)
    assert workers.fitting_workers(16, 16, seen, None) == 9  # 3 batches of 2.4 MB each
    assert workers.fitting_workers(4, 16, seen, None) == 4
    assert workers.fitting_workers(4, 512, seen, None) == 0
    monkeypatch.setattr(workers, "free_shared_memory", lambda: None)
    assert workers.fitting_workers(16, 16, seen, None) == 16


def test_where_a_file_may_not_hold_a_batch_no_process_hands_one_over() -> None:
    """Else the error is in a thread of that process, and nobody hears of it."""
    script = (
        "from temi.pipeline.encode.preprocessing import Preprocessing as P; from temi.pipeline.encode import workers;"
        "seen = P(256, (224, 224), 'bicubic', 1 / 255, (0.5,) * 3, (0.5,) * 3);"
        "print(workers.fitting_workers(2, 6, seen, None), workers.fitting_workers(2, 7, seen, None))"
    )
    limited = ["bash", "-c", f'ulimit -f 1000 && exec "$0" -c "{script}"', sys.executable]
    assert subprocess.run(limited, capture_output=True, text=True, check=True).stdout == "2 0\n"


@pytest.mark.slow
def test_64_mb_of_shared_memory_are_enough(tmp_path: Path) -> None:
    """A container's /dev/shm for real: without the limit the processes that decode die of a bus error."""
    small = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec"
    if subprocess.run(["unshare", "-m", "sh", "-c", f"{small} true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(64):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"photos/{number}.png")
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN)
    command = f"{small} {TEMI} embed {tmp_path}/photos --out {tmp_path}/cache --plugin {plugin}"
    settings = "--set embed.backbone=own --set embed.workers=2 --set embed.batch_size=64 --set embed.views=8"
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{command} {settings}"], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "0 processes decode images instead of 2: /dev/shm has no room for more" in ran.stderr
