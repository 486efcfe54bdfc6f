"""Many trials in one pass against as many runs after one another: whole processes of `temi`, from start to scores.

Both sides begin with a copy of the cache without a neighbor graph, train, and evaluate; of the runs after one another
the first mines and the others find the graph, as they would for a user. The grid is over the learning rate and the
exponent of the objective. Beside the seconds on the clock stand those of the processor, which other work on the machine
does not lengthen.

    python benchmarks/trials.py CACHE [--trials 16] [--clusters 10] [--heads 4] [--steps 1000] [--start random]
"""

import argparse
import math
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch

TEMI = [sys.executable, "-c", "from temi.cli import app; app()"]


def temi(*arguments: str) -> None:
    subprocess.run([*TEMI, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def copy_of(cache: Path, where: Path) -> Path:
    shutil.copytree(cache, where, ignore=shutil.ignore_patterns("neighbors"))
    return where


def grid(trials: int) -> tuple[list[str], list[str]]:
    """Learning rates and exponents whose product has `trials` points."""
    rates = 2 ** (int(math.log2(trials)) // 2)
    return [f"{1e-3 * 2**-n:.6g}" for n in range(rates)], [f"{0.6 + 0.02 * n:.2f}" for n in range(trials // rates)]


def seconds() -> np.ndarray:
    """On the clock, and of the processor in all finished children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def together(cache: Path, work: Path, trials: int, settings: list[str]) -> np.ndarray:
    cache = copy_of(cache, work / "cache")
    rates, betas = (",".join(values) for values in grid(trials))
    began = seconds()
    axes = ["--grid", f"optimizer.lr={rates}", "--grid", f"objective.beta={betas}"]
    temi("train-heads", str(cache), "--out", str(work / "out"), *axes, *settings)
    temi("evaluate", str(work / "out"))
    return seconds() - began


def after_one_another(cache: Path, work: Path, trials: int, timed: int, settings: list[str]) -> np.ndarray:
    """The first `timed` of them, and what all would take at the mean of those after the first, which mines."""
    cache = copy_of(cache, work / "cache")
    began, first = seconds(), np.zeros(2)
    for number, (rate, beta) in enumerate(list(product(*grid(trials)))[:timed]):
        own = ["--set", f"optimizer.lr={rate}", "--set", f"objective.beta={beta}"]
        temi("train-heads", str(cache), "--out", str(work / f"run-{number}"), *own, *settings)
        temi("evaluate", str(work / f"run-{number}"))
        if number == 0:
            first = seconds() - began
    rest = seconds() - began - first
    return first + rest * ((trials - 1) / max(1, timed - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--timed", type=int, help="of the runs after one another, how many are made (default: all)")
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", choices=["random", "pool"], default="random")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    chosen = {
        "heads.clusters": args.clusters,
        "heads.count": args.heads,
        "heads.kind": "linear",
        "start.kind": args.start,
        "train.min_steps": args.steps,
        "train.epochs": 0,
    }
    settings = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one = together(args.cache, Path(folder) / "together", args.trials, settings)
            timed = args.timed or args.trials
            rounds.append([one, after_one_another(args.cache, Path(folder) / "apart", args.trials, timed, settings)])
    one, many = np.median(rounds, axis=0)
    ratio = np.median([one / many for one, many in rounds], axis=0)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{args.trials} trials, C = {args.clusters}, {args.heads} linear heads, {args.steps} steps, {args.start} start"
    )
    for name, column in (("on the clock", 0), ("of the processor", 1)):
        print(
            f"seconds {name}: {one[column]:.1f} in one pass, {many[column]:.1f} after one another, "
            f"{ratio[column]:.2f}x (n = {args.rounds})"
        )


if __name__ == "__main__":
    main()
