"""Many trials in one pass against as many runs after one another: whole processes of `temi`, from start to scores.

Both sides begin with a copy of the cache without a neighbor graph, train, and evaluate. The grid is over the
learning rate and the exponent of the objective.

    python benchmarks/trials.py CACHE [--trials 16] [--clusters 10] [--heads 4] [--steps 1000] [--start random]
"""

import argparse
import math
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

TEMI = [sys.executable, "-c", "from cli import app; app()"]


def temi(*arguments: str) -> None:
    subprocess.run([*TEMI, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def copy_of(cache: Path, where: Path) -> Path:
    shutil.copytree(cache, where, ignore=shutil.ignore_patterns("neighbors"))
    return where


def grid(trials: int) -> tuple[list[str], list[str]]:
    """Learning rates and exponents whose product has `trials` points."""
    rates = 2 ** (int(math.log2(trials)) // 2)
    return [f"{1e-3 * 2**-n:.6g}" for n in range(rates)], [f"{0.6 + 0.02 * n:.2f}" for n in range(trials // rates)]


def together(cache: Path, work: Path, trials: int, settings: list[str]) -> float:
    cache = copy_of(cache, work / "cache")
    rates, betas = (",".join(values) for values in grid(trials))
    began = time.perf_counter()
    axes = ["--grid", f"optimizer.lr={rates}", "--grid", f"objective.beta={betas}"]
    temi("train-heads", str(cache), "--out", str(work / "out"), *axes, *settings)
    temi("evaluate", str(work / "out"))
    return time.perf_counter() - began


def after_one_another(cache: Path, work: Path, trials: int, settings: list[str]) -> float:
    cache = copy_of(cache, work / "cache")
    began = time.perf_counter()
    for number, (rate, beta) in enumerate(product(*grid(trials))):
        own = ["--set", f"optimizer.lr={rate}", "--set", f"objective.beta={beta}"]
        temi("train-heads", str(cache), "--out", str(work / f"run-{number}"), *own, *settings)
        temi("evaluate", str(work / f"run-{number}"))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--start", choices=["random", "layouts"], default="random")
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
    ratios, seconds = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one = together(args.cache, Path(folder) / "together", args.trials, settings)
            many = after_one_another(args.cache, Path(folder) / "apart", args.trials, settings)
        ratios.append(one / many)
        seconds.append((one, many))
    one, many = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    shape = f"C = {args.clusters}, {args.heads} linear heads, {args.steps} steps, {args.start} start"
    print(
        f"{args.trials} trials, {shape}: "
        f"{one:.1f} s in one pass, {many:.1f} s after one another, {statistics.median(ratios):.2f}x (n = {args.rounds})"
    )


if __name__ == "__main__":
    main()
