"""What the loss lab costs: a second call on a cache with another loss, and a search beside calls one after another.

    python benchmarks/lab.py second CACHE [--clusters 10] [--heads 16] [--rounds 3]
    python benchmarks/lab.py search CACHE [--clusters 10] [--heads 4] [--steps 400] [--trials 64] [--rounds 1]

`second`: whole processes of `temi train-heads` with another beta each, on a cache that one call has prepared, beside
its training steps alone. `search`: `temi search` of so
many trials, beside single calls; a few are timed and counted for all. Seconds on the clock and of the processor;
the two sides are interleaved, ratios are those of pairs.
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
import torch

from temi.cache import EmbeddingCache
from temi.pipeline.config import load_config
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs.checks import training_rows

TEMI = [sys.executable, "-c", "from temi.cli import app; app()"]
SINGLE_CALLS = 4  # of a round of `search`, timed and multiplied


def used() -> np.ndarray:
    """On the clock, of this process, and of its finished children."""
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + child.ru_utime + child.ru_stime])


def timed(*arguments: str) -> np.ndarray:
    """Seconds of a whole `temi`."""
    began = used()
    subprocess.run([*TEMI, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return used() - began


def steps_alone(cache: EmbeddingCache, settings: list[str]) -> np.ndarray:
    """Seconds of the training steps, with the data in memory."""
    config = load_config(None, settings)
    features = Features.of_cache(cache, training_rows(cache)).distinct()
    trainer = HeadTrainer([config], load_training_set(features, config))
    began = used()
    for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
        trainer.step(number, rows)
    return used() - began


def options(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def second_call(arguments: argparse.Namespace, work: Path) -> None:
    """A call with another beta, against its steps."""
    shared = [f"heads.clusters={arguments.clusters}", f"heads.count={arguments.heads}", "train.tensorboard=false"]
    cache, call = EmbeddingCache.open(arguments.cache), ["train-heads", str(arguments.cache), *options(shared)]
    first = timed(*call, "--out", str(work / "first"))
    rounds = []
    for number in range(arguments.rounds):
        beta = f"objective.beta={0.7 + 0.01 * number:.2f}"
        whole = timed(*call, *options([beta]), "--out", str(work / f"run-{number}"))
        rounds.append([whole, steps_alone(cache, [*shared, beta])])
    whole, steps = np.median(rounds, axis=0)
    ratio = np.median([one / other for one, other in rounds], axis=0)
    print(f"first call {first[0]:.1f} s, {first[1]:.1f} CPU s (whatever the cache kept before)")
    print(f"second call {whole[0]:.1f} s, {whole[1]:.1f} CPU s; its steps alone {steps[0]:.1f} s, {steps[1]:.1f} CPU s")
    print(f"ratio of pairs: {ratio[0]:.2f} on the clock, {ratio[1]:.2f} of the processor (n = {len(rounds)})")


def search(arguments: argparse.Namespace, work: Path) -> None:
    """A search, against as many single calls on the same cache."""
    shared = [f"heads.clusters={arguments.clusters}", f"heads.count={arguments.heads}"]
    shared += [f"train.min_steps={arguments.steps}", "train.epochs=0", "train.tensorboard=false"]
    rounds = []
    for number in range(arguments.rounds):
        study = ["--trials", str(arguments.trials), "--out", str(work / f"study-{number}")]
        whole = timed("search", str(arguments.cache), *study, *options(shared))
        single = (
            sum(
                timed(
                    "train-heads",
                    str(arguments.cache),
                    *options([*shared, f"objective.beta={0.6 + 0.1 * call}"]),
                    "--out",
                    str(work / f"run-{number}-{call}"),
                )
                for call in range(SINGLE_CALLS)
            )
            / SINGLE_CALLS
        )
        rounds.append([whole, single * arguments.trials])
    whole, many = np.median(rounds, axis=0)
    ratio = np.median([one / other for one, other in rounds], axis=0)
    print(f"search {whole[0]:.1f} s, {whole[1]:.1f} CPU s; single calls {many[0]:.1f} s, {many[1]:.1f} CPU s")
    print(f"ratio: {ratio[0]:.3f} on the clock, {ratio[1]:.3f} of the processor (n = {len(rounds)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["second", "search"])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    work = Path(tempfile.mkdtemp())
    try:
        {"second": second_call, "search": search}[arguments.what](arguments, work)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
