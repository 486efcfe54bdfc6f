"""Opening a cache into memory, and onto a device, against numpy.fromfile of the same values on the same disk.

Loading a cache checks its digests and that every value is finite; numpy.fromfile checks nothing. Both sides are timed
in every round, in changing order, because other work on the machine hits whoever comes at the wrong moment. Printed are
the median of the rounds' ratios, the ratio of the fastest round of each side, and the load of the machine. "From disk"
has the system drop the files from its cache first; "from memory" reads files that it still holds.

    python benchmarks/load.py [--gigabytes 1] [--rounds 7] [--device cpu|cuda] [--folder WHERE]
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from synthetic import make_manifest, write_cache

from temi.cache import EmbeddingCache

DIM = 768


def forget(paths: list[Path]) -> None:
    """Have the system drop `paths` from its cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(load: Callable[[], np.ndarray], device: str) -> float:
    start = time.perf_counter()
    tensor = torch.from_numpy(load())
    if device != "cpu":
        tensor = tensor.to(device)
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(folder: Path, plain: Path, rounds: int, device: str, *, from_disk: bool) -> None:
    """Print one line: medians of both sides, and of their ratio."""
    sides: dict[str, Callable[[], np.ndarray]] = {
        "cache": lambda: EmbeddingCache.open(folder).embedding(),
        "fromfile": lambda: np.fromfile(plain, np.float16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in sorted(sides, reverse=number % 2 == 1):
            if from_disk:
                forget([*folder.iterdir(), plain])
            seconds[name].append(timed(sides[name], device))
    ratios = [fromfile / cache for cache, fromfile in zip(seconds["cache"], seconds["fromfile"], strict=True)]
    gigabytes = plain.stat().st_size / 1e9
    cache, fromfile = (statistics.median(seconds[name]) for name in ("cache", "fromfile"))
    print(
        f"{'from disk' if from_disk else 'from memory'} to {device}: "
        f"cache {cache:.3f} s ({gigabytes / cache:.2f} GB/s), "
        f"fromfile {fromfile:.3f} s ({gigabytes / fromfile:.2f} GB/s), "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"of the fastest rounds {min(seconds['fromfile']) / min(seconds['cache']):.2f}, n = {rounds}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of embeddings")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="where the tensor is wanted")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the data; a disk with twice the space")
    arguments = parser.parse_args()
    rows = int(arguments.gigabytes * 1e9 / (2 * DIM))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        folder, plain = Path(work) / "cache", Path(work) / "plain.bin"
        cache = write_cache(folder, make_manifest(rows, DIM))
        cache.embedding().tofile(plain)
        device = torch.cuda.get_device_name() if arguments.device != "cpu" else platform.machine()
        print(
            f"{os.cpu_count()} CPU cores, {device}; {rows:,} rows x {DIM} float16, {len(cache.manifest.shards)} shards"
        )
        print(f"load average before: {os.getloadavg()[0]:.1f}")
        for from_disk in (True, False):
            compare(folder, plain, arguments.rounds, arguments.device, from_disk=from_disk)
        print(f"load average after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
