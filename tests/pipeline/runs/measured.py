"""A process of its own for test_footprint.py: prints by how many bytes its memory grows while it trains.

    python measured.py (asked|taken) CACHE SMALL_CACHE FOLDER TRIALS [SETTING ...]

What is asked for is the same in every process; what is taken is that and the freed blocks that the C library keeps.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from returning import return_what_is_freed

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.device import return_freed_memory
from temi.pipeline.runs.run_folder import RunFolder
from temi.pipeline.runs.train import train_pass

LENGTH = ["train.epochs=0", "train.min_steps=4", "train.log_every=2", "train.checkpoint_every=2"]
PLAIN = ["start.kind=random", "train.tensorboard=false", "train.device=cpu"]


def train(cache: Path, folder: Path, trials: int, settings: Sequence[str]) -> None:
    configs = [load_config(None, [*LENGTH, *PLAIN, *settings, f"train.seed={seed}"]) for seed in range(trials)]
    runs = [RunFolder(folder / str(seed)) for seed in range(trials)]
    train_pass(EmbeddingCache.open(cache), configs, runs, folder / "neighbors", overwrite=False)


def resident(name: str) -> int:
    """VmRSS: bytes in memory now, VmHWM: at most; `ru_maxrss` begins with what the parent process held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    what, cache, small, folder, trials, *settings = sys.argv[1:]
    if what == "asked":
        return_what_is_freed()
    train(Path(small), Path(folder) / "warm", 1, ["heads.clusters=6"])  # libraries and pools are in memory now
    return_freed_memory()
    before = resident("VmRSS")
    train(Path(cache), Path(folder) / "run", int(trials), settings)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
