"""Where a default run spends its time, part by part, and what a well-known library takes for the same part.

Every round is a process of its own. It runs the default `train-heads` on a cache whose kept results are left out, and
times the parts from outside (the phases of scale.py). Then each part is asked of a library, as often as the run needs
it, on this package's rows, neighbor lists and graphs. Imports and compilation are left out on both sides.

    python benchmarks/parts.py CACHE --clusters 100 [--rounds 3]
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads import Textbook
from scale import Phases, warm_up
from sklearn.neighbors import NearestNeighbors
from umap.umap_ import fuzzy_simplicial_set

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config, load_config
from temi.pipeline.evaluate.baselines import leiden_communities
from temi.pipeline.features.features import Features
from temi.pipeline.heads.batches import load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.progress import quiet
from temi.pipeline.runs.train import train_heads
from temi.pipeline.start.find import REPEATS, distinct_sample
from temi.pipeline.start.spaces import neighbor_counts, space_graphs, spaces_of

KEPT = "neighbors"  # the folder of what a cache keeps from earlier runs
LOOP_STEPS = 20  # of the textbook loop that are timed
LIBRARIES = {
    "neighbors": "scikit-learn, brute force",
    "graphs": "umap-learn",
    "communities": "leidenalg",
    "steps": "a loop over heads",
}


def run(folder: Path, clusters: int) -> None:
    """Train once, ask the libraries, print seconds as JSON."""
    config = load_config(None, [f"heads.clusters={clusters}"])
    cache = EmbeddingCache.open(folder / "cache")
    with quiet():
        warm_up(folder / "warm")
        phases = Phases()
        with phases.phase("other"):
            train_heads(cache, config, folder / "run")
        ours = {name: values["seconds"] for name, values in phases.found.items()}  # now: what follows counts, too
        features = Features.of_cache(cache, np.arange(cache.rows)).loaded()
        for _, call in asked(features.sample(np.arange(1000)), config, 10):
            call()  # compiles
        libraries = dict.fromkeys(LIBRARIES, 0.0)
        for name, call in asked(features, config, clusters):
            began = time.perf_counter()
            call()
            libraries[name] += time.perf_counter() - began
    print(json.dumps({"ours": ours, "libraries": libraries}))


def asked(features: Features, config: Config, clusters: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every part of a run as a library does it."""
    cut = distinct_sample(features, clusters).features
    space, counts = spaces_of(cut)[0], neighbor_counts(len(cut), clusters)
    yield "neighbors", search(features, "whiten50", config.neighbors.k)  # for pairs
    yield "neighbors", search(cut, space, max(counts))
    index, similarity = cut.neighbors(max(counts), space)
    # umap-learn counts a row as its own first neighbor.
    index = np.c_[np.arange(len(cut)), index].astype(np.int32)
    distance = np.c_[np.zeros(len(cut)), 1 - similarity].astype(np.float32)
    for k, graph in zip(counts, space_graphs(cut, space, counts), strict=True):
        own = {"knn_indices": index[:, : k + 1], "knn_dists": distance[:, : k + 1]}
        yield "graphs", partial(fuzzy_simplicial_set, index, k + 1, np.random, "cosine", **own)
        for _ in range(REPEATS):
            yield "communities", partial(leiden_communities, graph, clusters, config.start.seed)
    data = load_training_set(features, config)
    trainer = HeadTrainer([config], data)
    loop, batches = Textbook(config, data, trainer.student), list(trainer.batches.bank_rows(0, LOOP_STEPS))
    for _ in range(trainer.steps // LOOP_STEPS):
        yield "steps", partial(take, loop, batches)


def take(loop: Textbook, batches: list[torch.Tensor]) -> None:
    """A step on every batch."""
    for rows in batches:
        loop.step(rows)


def search(features: Features, space: Any, k: int) -> Callable[[], Any]:
    """The nearest k of all rows, by scikit-learn."""
    rows = features.scaled(space).numpy()
    return partial(NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="cosine").fit(rows).kneighbors, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clusters", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run(arguments.cache, arguments.clusters)
        return
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as work:
            shutil.copytree(arguments.cache, Path(work) / "cache", ignore=shutil.ignore_patterns(KEPT))
            command = [sys.executable, __file__, "--child", work, "--clusters", str(arguments.clusters)]
            rounds.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    print_table(rounds)


def print_table(rounds: list[dict[str, dict[str, float]]]) -> None:
    """A line per part: medians of the rounds."""
    print(f"{os.cpu_count()} CPU cores, {platform.machine()}, {torch.get_num_threads()} threads; n = {len(rounds)}\n")
    print("| part | s | share | a library for the same | its s | times as long |\n|---|---|---|---|---|---|")
    whole = statistics.median(sum(found["ours"].values()) for found in rounds)
    for name in rounds[0]["ours"]:
        own = statistics.median(found["ours"][name] for found in rounds)
        line = f"| {name} | {own:.2f} | {100 * own / whole:.0f} % |"
        if name in LIBRARIES:
            theirs = [found["libraries"][name] for found in rounds]
            ratio = statistics.median(t / found["ours"][name] for t, found in zip(theirs, rounds, strict=True))
            line += f" {LIBRARIES[name]} | {statistics.median(theirs):.2f} | {ratio:.1f} |"
        else:
            line += " | | |"
        print(line)
    print(f"| **whole** | {whole:.2f} | | | | |")


if __name__ == "__main__":
    main()
