"""How time and memory grow with the number of images, from ten thousand to a million.

Each step runs in a process of its own, so that its peak memory is its own; importing the packages is in the memory, not
in the time. Values are random, which costs "write" about as long as writing them does.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--folder WHERE]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic import make_manifest, write_cache

from cache import EmbeddingCache
from cache.verify import verify

DIM = 768


def write(folder: Path, rows: int) -> None:
    write_cache(folder, make_manifest(rows, DIM))


def verify_all(folder: Path, rows: int) -> None:
    problems = verify(folder)
    assert not problems, problems


def open_only(folder: Path, rows: int) -> None:
    assert EmbeddingCache.open(folder).rows == rows


def load(folder: Path, rows: int) -> None:
    cache = EmbeddingCache.open(folder)
    assert cache.embedding().shape == (rows, DIM)
    assert len(cache.keys) == rows


STEPS: dict[str, Callable[[Path, int], None]] = {"write": write, "verify": verify_all, "open": open_only, "load": load}


def run_step(name: str, folder: Path, rows: int) -> None:
    """Run one step and print its seconds and peak memory in MiB, as JSON."""
    start = time.perf_counter()
    STEPS[name](folder, rows)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def in_process(name: str, folder: Path, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--rows", str(rows)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to put the data; 1.6 GB for a million rows")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.folder, arguments.rows[0])
        return
    print(f"{os.cpu_count()} CPU cores, {platform.machine()}; {DIM}-d float16, no views; n = 1\n")
    print("| rows | GB | " + " | ".join(STEPS) + " |\n|---:|---:|" + "---:|" * len(STEPS))
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
            folder = Path(work) / "cache"
            done = [in_process(name, folder, rows) for name in STEPS]
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
        cells = [f"{step['seconds']:.2f} s, {step['mib']:,.0f} MiB" for step in done]
        print(f"| {rows:,} | {size:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
