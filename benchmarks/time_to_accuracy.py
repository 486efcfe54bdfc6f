"""Seconds until the default settings are as accurate as the published recipe ends up, whole processes of `temi`.

`configs/published.toml` trains to its end; then the defaults train with a few lengths, the shortest first, each a
process of its own with start-up, mining and warm start. The first that reaches the published ACC on the training rows
gives the time. Labels are read here alone. Every run begins with a copy of the cache without stored graphs. Beside the
seconds on the clock stand those of the processor, which other work on the machine does not lengthen.

    python benchmarks/time_to_accuracy.py CACHE --clusters C [--steps 1 50 400] [--set heads.count=4]
"""

import argparse
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from temi.cache import EmbeddingCache
from temi.pipeline.evaluate.metrics import hungarian_accuracy

PUBLISHED = Path(__file__).parent.parent / "configs" / "published.toml"
TEMI = [sys.executable, "-c", "from temi.cli import app; app()"]


def processor_seconds() -> float:
    """Of all finished children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def train(cache: Path, work: Path, *arguments: str) -> tuple[float, float, float]:
    """Seconds of a whole run from a copy of `cache` without stored graphs, those of the processor, and its ACC."""
    copy = work / "cache"
    shutil.copytree(cache, copy, ignore=shutil.ignore_patterns("neighbors"))
    began, used = time.perf_counter(), processor_seconds()
    command = [*TEMI, "train-heads", str(copy), "--out", str(work / "run"), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    table = pd.read_parquet(work / "run" / "assignments.parquet")
    trained = EmbeddingCache.open(copy)
    start, stop = trained.splits.get("train", (0, trained.rows))
    table = table[table["row"].between(start, stop - 1)]
    label = trained.labels[table["row"]].astype(np.int64)
    return seconds, used, hungarian_accuracy(label, table["cluster"].to_numpy(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clusters", type=int, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 50, 400], help="lengths of the default run")
    parser.add_argument("--set", nargs="*", default=[], help="settings that change the published recipe, if any")
    args = parser.parse_args()
    clusters = ["--clusters", str(args.clusters)]
    changes = [word for change in args.set for word in ("--set", change)]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seconds, used, goal = train(args.cache, work / "published", "--config", str(PUBLISHED), *clusters, *changes)
        print(
            f"published recipe {args.set or ''}: ACC {100 * goal:.1f} in {seconds:.1f} s ({used:.1f} s CPU)", flush=True
        )
        for steps in args.steps:
            length = ["--set", f"train.min_steps={steps}", "--set", "train.epochs=0"]
            own, own_used, accuracy = train(args.cache, work / f"default-{steps}", *clusters, *length)
            verdict = f"{own / seconds:.2f}x, CPU {own_used / used:.2f}x" if accuracy >= goal else "less accurate"
            print(
                f"defaults, {steps} steps: ACC {100 * accuracy:.1f} in {own:.1f} s ({own_used:.1f} s CPU): {verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
