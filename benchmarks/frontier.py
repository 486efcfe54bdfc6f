"""Accuracy against training time: how wide the heads' input is, how many heads, whether they have a hidden layer, and
how many steps they take. What is faster and no less accurate than everything slower is efficient.

Layouts and cuts are the same for all and made before; timed is what follows them: teaching the heads the cuts, and the
steps of the objective, in seconds of the processor with one thread. Labels are read here alone.

    python benchmarks/frontier.py CACHE --clusters C [--seeds 2] [--spaces whiten50-128 root] [--heads 1 16]
"""

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config, load_config
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features import scaling
from temi.pipeline.features.features import Features
from temi.pipeline.features.scaling import Moments, Scaling, signed_root
from temi.pipeline.heads.batches import TrainingSet, load_training_set
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.heads.warm_start import warm_start
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.fit import build_model
from temi.pipeline.runs.loop import Trial
from temi.pipeline.start.find import Start, pool_start

SPACES = ("root", "whiten50-256", "whiten50-128", "whiten50-64", "random-128")
KINDS = ("linear", "hidden")
CPU = torch.device("cpu")
DEFAULT = ("whiten50-128", "linear", 16, 400)


def project(space: str, embedding: torch.Tensor) -> Scaling:
    """The signed root of all coordinates; or so many principal or random ones of it."""
    name, _, width = space.partition("-")
    if name == "root":
        return Scaling.fit("root", Moments(embedding))
    if name == "random":
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(embedding.shape[1], int(width), generator=generator)
        return Scaling(True, signed_root(embedding.float()).mean(0), weight, True)
    scaling.COMPONENTS = int(width)
    return Scaling.fit("whiten50", Moments(embedding))


def settings(kind: str, heads: int, clusters: int, steps: int, seed: int) -> Config:
    chosen = [f"heads.clusters={clusters}", f"heads.count={heads}", f"train.seed={seed}", f"pairs.seed={seed}"]
    chosen += [f"train.min_steps={steps}", "train.epochs=0", f"start.seed={seed}"]
    chosen += ["heads.kind=published", "heads.hidden=128", "heads.bottleneck=64"] if kind == "hidden" else []
    return load_config(None, chosen)


def measure(features: Features, data: TrainingSet, config: Config, start: Start, label: np.ndarray) -> np.ndarray:
    """Seconds, and ACC of the consensus on the training rows."""
    began = time.process_time()
    trainer = HeadTrainer([config], data)
    warm_start(trainer, [start], config.start)
    for number, rows in enumerate(trainer.batches.bank_rows(0, trainer.steps)):
        trainer.step(number, rows)
    seconds = time.process_time() - began
    trial = Trial(trainer, 0, config)
    trial.best = {f"teacher.{name}": tensor for name, tensor in trainer.teacher.tensors().items()}
    trial.best["loss"] = trainer.window.means()[0][0]
    model = build_model(trial, features, np.arange(len(features)), None, begun=True)
    cluster, _ = model.assign(features.embedding)
    return np.array([seconds, hungarian_accuracy(label, cluster.numpy())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--clusters", type=int, required=True)
    parser.add_argument("--spaces", nargs="+", default=SPACES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 400])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    cache = EmbeddingCache.open(args.cache)
    rows = training_rows(cache)
    embedding, label = torch.from_numpy(cache.embedding()[rows]), cache.labels[rows].astype(np.int64)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{args.cache.name}: {len(rows):,} rows x {cache.dim}, C = {args.clusters}, n = {args.seeds} seeds, means")
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        plain, features = settings("linear", 1, args.clusters, 1, 0), Features.of_cache(cache, rows, Path(scratch))
        data = load_training_set(features, plain)
        start = pool_start(features, args.clusters, plain.start)
        for space in args.spaces:
            scale = project(space, embedding)
            data = replace(data, bank=scale(embedding), scaling=scale)
            for key in product([space], args.kinds, args.heads, args.steps):
                runs = [
                    measure(features, data, settings(*key[1:3], args.clusters, key[3], seed), start, label)
                    for seed in range(args.seeds)
                ]
                found[key] = np.mean(runs, axis=0)
                print(f"  {key}: {found[key][0]:.1f} s, ACC {100 * found[key][1]:.1f}", flush=True)
    best = 0.0
    print("| input | head | heads | steps | seconds | ACC | |\n|---|---|---|---|---|---|---|")
    for key, (seconds, accuracy) in sorted(found.items(), key=lambda item: item[1][0]):
        marks = ["efficient"] * bool(accuracy > best) + ["default"] * (key == DEFAULT)
        best = max(best, accuracy)
        print("| " + " | ".join(map(str, key)) + f" | {seconds:.1f} | {100 * accuracy:.1f} | {', '.join(marks)} |")


if __name__ == "__main__":
    main()
