"""How time and memory grow with the number of images, from ten thousand to a million.

Each step runs in a process of its own, so that its peak memory is its own; what importing the packages takes is in
neither figure. Making values up is in the time of "write", about as long as writing them. "mine" finds the 15
neighbors of the default settings (its recall is printed), "train" loads the set with that graph, makes 16 linear heads
of 100 clusters and takes one step, and "assign" does the same, builds the model and assigns every row.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--steps write mine ...] [--folder WHERE]
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

import numpy as np
import torch
from synthetic import make_manifest, write_cache

from temi.cache import EmbeddingCache, load_neighbors
from temi.cache.verify import verify
from temi.pipeline.config import load_config
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs.fit import build_model
from temi.pipeline.runs.loop import Trial
from temi.pipeline.runs.memory import predict

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


def features_of(folder: Path) -> Features:
    cache = EmbeddingCache.open(folder)
    return Features.of_cache(cache, np.arange(cache.rows))


def mine(folder: Path, rows: int) -> str:
    settings = CONFIG.neighbors
    features_of(folder).neighbors(settings.k, settings.scale)
    (graph,) = (folder / "neighbors").glob("*.h5")
    stored = load_neighbors(folder / "neighbors", graph.stem)
    assert stored is not None
    return f", {stored[2]['backend']}, recall {stored[2]['recall']:.3f}"


def train(folder: Path, rows: int) -> str:
    trainer = HeadTrainer([CONFIG], load_training_set(features_of(folder), CONFIG))
    trainer.step(0, next(trainer.batches.bank_rows(0, 1)))
    return f", predicted {predict([CONFIG], rows, DIM, 0, torch.device('cpu')).total / 2**20:,.0f} MiB"


def assign_all(folder: Path, rows: int) -> None:
    features = features_of(folder)
    trial = Trial(HeadTrainer([CONFIG], load_training_set(features, CONFIG)), 0, CONFIG)
    state = trial.trainer.state()
    trial.best = {name: tensor for name, tensor in state.items() if name.startswith("teacher.")}
    trial.best["loss"] = torch.zeros(CONFIG.heads.count)
    model = build_model(trial, features, np.arange(len(features)), None, begun=False)
    assert len(model.assign(features.embedding)[0]) == rows


CONFIG = load_config(None, ["heads.clusters=100", "start.kind=random"])  # no step lays out
STEPS: dict[str, Callable[[Path, int], str | None]] = {
    "write": write,
    "verify": verify_all,
    "open": open_only,
    "load": load,
    "mine": mine,
    "train": train,
    "assign": assign_all,
}


def run_step(name: str, folder: Path, rows: int) -> None:
    """Run one step and print its seconds and peak memory in MiB, and what it says, as JSON."""
    imported, start = peak_mib(), time.perf_counter()
    note = STEPS[name](folder, rows) or ""
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "mib": peak_mib() - imported, "note": note}))


def peak_mib() -> float:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(name: str, folder: Path, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder), "--rows", str(rows)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, default=None, help="where to put the data; 1.6 GB for a million rows")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.folder, arguments.rows[0])
        return
    threads = torch.get_num_threads()
    print(f"{os.cpu_count()} CPU cores, {platform.machine()}, {threads} threads; {DIM}-d float16, no views; n = 1\n")
    print("| rows | GB | " + " | ".join(arguments.steps) + " |\n|---:|---:|" + "---:|" * len(arguments.steps))
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
            folder = Path(work) / "cache"
            done = [in_process(name, folder, rows) for name in arguments.steps]
            size = sum(path.stat().st_size for path in folder.glob("*.h5")) / 1e9
        cells = [f"{step['seconds']:.2f} s, {step['mib']:,.0f} MiB{step['note']}" for step in done]
        print(f"| {rows:,} | {size:.2f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
