"""A process of its own for test_memory.py: trains from a cache with less memory than the cache has bytes.

    python limited.py CACHE SMALL_CACHE FOLDER MEGABYTES

Memory is what the system counts as data (RLIMIT_DATA): a mapped file is none, as the system may drop its pages. The
stacks of threads and what the C library keeps of freed blocks would be: see returning.py.
"""

import resource
import sys
from pathlib import Path

from returning import return_what_is_freed

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.runs.train import train_heads

SETTINGS = ["heads.clusters=6", "heads.count=4", "heads.scale=center", "start.kind=random", "pairs.source=views"]
LENGTH = ["train.epochs=0", "train.min_steps=40", "train.tensorboard=false", "train.device=cpu"]


def data_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))


def main() -> None:
    return_what_is_freed()
    big, small, folder, megabytes = *map(Path, sys.argv[1:4]), int(sys.argv[4])
    plain = load_config(None, [*SETTINGS, *LENGTH])
    frugal = load_config(None, [*SETTINGS, *LENGTH, f"train.memory={megabytes / 1000}"])
    train_heads(EmbeddingCache.open(small), plain, folder / "warm")  # libraries, threads and pools are in memory now
    cache = EmbeddingCache.open(big)
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + megabytes * 1_000_000, unlimited[1]))
    train_heads(cache, frugal, folder / "frugal")
    try:
        train_heads(cache, plain, folder / "refused")
    except (RuntimeError, MemoryError, ValueError) as error:
        print("refused:", error)
    resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    train_heads(cache, plain, folder / "plain")


if __name__ == "__main__":
    main()
