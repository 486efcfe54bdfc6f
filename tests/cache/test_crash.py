"""Real processes killed at random moments: the cache is never wrong and resumes to the bytes of a run without."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killable import MANIFEST, write
from synthetic import contents

from temi.cache import CacheError, EmbeddingCache
from temi.cache.shard import ShardFile, Sidecar, Structures

KILLS = 60


class Killable:
    """A process that runs ``killable.py``."""

    def __init__(self) -> None:
        arguments = [sys.executable, str(Path(__file__).with_name("killable.py"))]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, folder: Path, worker: int = 0, workers: int = 1, signal: Path | str = "") -> int:
        """Start writing in a child; its process id. It claims its shards and waits until the file `signal` exists."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder} {worker} {workers} {signal}\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Exit status of the child: 0 if it finished, minus the signal that killed it."""
        assert self.process.stdin is not None
        self.process.stdin.write("wait\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def processes() -> Iterator[list[Killable]]:
    started = [Killable() for _ in range(3)]
    yield started
    for process in started:
        process.close()


def run_time(process: Killable, folder: Path) -> float:
    """Seconds that an uninterrupted run takes, imports not counted."""
    for path in (folder.with_name("first"), folder):
        start = time.perf_counter()
        process.start(path)
        assert process.wait() == 0
    return time.perf_counter() - start


def kill_after(process: Killable, child: int, seconds: float) -> bool:
    """Kill `child` after `seconds`; whether it was still at work."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def check_nothing_is_half_done(folder: Path) -> None:
    """Every sidecar has its shard, whole; the cache says that it is unfinished or is complete."""
    structures: Structures = {}
    for shard in MANIFEST.shards:
        path = folder / f"{shard.name}.json"
        if path.exists():
            file = ShardFile(path.with_suffix(".h5"), MANIFEST, Sidecar.read(path, MANIFEST, shard), structures)
            for name in ("row", "key", "label", "ok", "embedding", "views"):
                file.array(name)
    if not (folder / "failures.csv").exists():
        missing = sum(not (folder / f"{shard.name}.json").exists() for shard in MANIFEST.shards)
        if missing:
            with pytest.raises(CacheError, match=r"unfinished|not an embedding cache"):
                EmbeddingCache.open(folder)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bytes_of_an_uninterrupted_one(tmp_path: Path, processes: list[Killable]) -> None:
    chance = random.Random(0)
    process = processes[0]
    duration = run_time(process, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        folder = tmp_path / f"run{runs}"
        for _ in range(12):
            if not kill_after(process, process.start(folder), chance.uniform(0, duration / 6)):
                break  # it was faster
            kills += 1
            if folder.exists():
                check_nothing_is_half_done(folder)
        else:
            process.start(folder)
            assert process.wait() == 0
        assert EmbeddingCache.open(folder).verify() == []
        assert contents(folder) == expected
        assert [path.name for path in folder.iterdir() if path.suffix in (".part", ".lock")] == []


@pytest.mark.slow
def test_three_workers_one_killed_and_rerun_give_the_bytes_of_one(tmp_path: Path, processes: list[Killable]) -> None:
    chance = random.Random(1)
    duration = run_time(processes[0], tmp_path / "whole")
    for attempt in range(5):
        folder = tmp_path / f"shared{attempt}"
        children = [process.start(folder, worker, 3) for worker, process in enumerate(processes)]
        victim = chance.randrange(3)
        killed = kill_after(processes[victim], children[victim], chance.uniform(0, duration / 3))
        statuses = [process.wait() for worker, process in enumerate(processes) if worker != victim]
        assert statuses == [0, 0]
        if killed:
            processes[victim].start(folder, victim, 3)
            assert processes[victim].wait() == 0
        assert EmbeddingCache.open(folder).verify() == []
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_second_run_of_the_same_command_is_refused_while_the_first_works(
    tmp_path: Path, processes: list[Killable]
) -> None:
    processes[0].start(tmp_path / "cache", signal=tmp_path / "proceed")
    while not (tmp_path / "proceed.claimed").exists():  # a lock's file is there before it is locked
        time.sleep(0.0005)
    try:
        with pytest.raises(CacheError, match="another process is writing"):
            write(str(tmp_path / "cache"), "0", "1")
    finally:
        (tmp_path / "proceed").touch()
    assert processes[0].wait() == 0
    write(str(tmp_path / "cache"), "0", "1")  # complete: nothing to do
    assert EmbeddingCache.open(tmp_path / "cache").verify() == []
