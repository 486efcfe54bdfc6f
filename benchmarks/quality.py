"""Accuracy on real features: the default, the first system's recipe, k-means, and the labeled ceilings.

    python benchmarks/quality.py --features FOLDER [--seeds 3] [--sets caltech101,cifar10,digits] [--methods ...]

FOLDER holds ``NAME-efficientnet_lite0.npz`` files with arrays embedding (N, D) float16, label, key, classes and
optionally split (train/test). Without FOLDER only scikit-learn's digits are scored; they are embedded on the spot.
Every method sees the same cache. Heads are trained on the train rows and scored on train and test rows; labels are
read by the scoring alone. Prints a Markdown table: mean +- standard deviation over seeds, median seconds.
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

from cache import EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards
from pipeline.config import load_config
from pipeline.data import training_rows
from pipeline.embed import embed
from pipeline.evaluate import cluster_scores, kmeans_clusters, knn_accuracy, probe_accuracy
from pipeline.run import assign, train_heads

CONFIGS = Path(__file__).parent.parent / "configs"
SEEDED = ("train.seed", "start.seed", "pairs.seed")
TRAINED = {
    "TEMI, default": (None, []),
    "TEMI, published recipe": (CONFIGS / "published.toml", ["train.tensorboard=false"]),
    "the first system's recipe": (CONFIGS / "seed-recipe.toml", ["train.tensorboard=false"]),
}
Scores = dict[str, dict[str, float]]  # part ("train", "test") -> acc, nmi, used_clusters


def main() -> None:
    arguments = parse_arguments()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}"
    )
    print(f"torch {torch.__version__}, {arguments.seeds} seeds\n")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.sets.split(","):
            cache = open_set(name, arguments.features, Path(scratch))
            print_table(name, cache, measure(cache, arguments, Path(scratch) / f"runs-{name}"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="folder of .npz files; without it only digits can be scored")
    parser.add_argument("--sets", help="comma separated; default: all in FOLDER and digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--methods", default="TEMI, default;the first system's recipe;k-means;ceilings", help="; separated"
    )
    parser.add_argument("--recipe-epochs", type=float, help="train the recipes for so many epochs instead of their own")
    arguments = parser.parse_args()
    if arguments.sets is None:
        found = sorted(arguments.features.glob("*-efficientnet_lite0.npz")) if arguments.features else []
        arguments.sets = ",".join([path.name.split("-")[0] for path in found] + ["digits"])
    return arguments


def open_set(name: str, features: Path | None, scratch: Path) -> EmbeddingCache:
    """The cache of a data set: digits through the demo's encoder, any other from its .npz file, train rows first."""
    folder = scratch / name
    if name == "digits":
        cache = embed("digits", folder, load_config(CONFIGS / "demo.toml").embed)
        assert cache is not None
        return cache
    if features is None:
        raise SystemExit(f"{name} needs --features")
    arrays = np.load(features / f"{name}-efficientnet_lite0.npz", allow_pickle=False)
    embedding, label = arrays["embedding"].astype(np.float16), arrays["label"].astype(np.int32)
    split = arrays["split"].astype(str) if "split" in arrays else np.full(len(label), "train")
    order = np.argsort(split != "train", kind="stable")
    train = int((split == "train").sum())
    splits = {"train": (0, train), "test": (train, len(order))} if train < len(order) else {}
    return write_cache(folder, embedding[order], label[order], [str(k) for k in arrays["key"][order]], splits)


def write_cache(
    folder: Path, embedding: np.ndarray, label: np.ndarray, keys: list[str], splits: dict[str, tuple[int, int]]
) -> EmbeddingCache:
    rows, dim = embedding.shape
    fingerprint = Fingerprint(
        backbone="efficientnet-lite0",
        revision=folder.name,
        preprocessing={},
        pooling="mean",
        precision="fp32",
        view_policy={},
        view_seed=0,
        views=0,
        images="0" * 32,
    )
    classes = tuple(str(c) for c in range(label.max() + 1))
    with ShardWriter.open(folder, Manifest(fingerprint, rows, dim, plan_shards(rows, 4096), splits, classes)) as writer:
        for shard in writer.pending():
            part = slice(shard.start, shard.stop)
            writer.write(
                shard,
                embedding=embedding[part],
                views=np.zeros((shard.rows, 0, dim), np.float16),
                keys=keys[part],
                labels=label[part],
                failures={},
                seconds={},
            )
        cache = writer.finish()
    assert cache is not None
    return cache


def measure(cache: EmbeddingCache, arguments: argparse.Namespace, runs: Path) -> dict[str, list[tuple[Scores, float]]]:
    """For each method the scores and seconds of every seed."""
    parts = {"train": training_rows(cache)}
    if "test" in cache.splits:
        parts["test"] = training_rows(cache, "test")
    clusters = len(np.unique(cache.labels[parts["train"]]))
    results: dict[str, list[tuple[Scores, float]]] = {}
    for method in arguments.methods.split(";"):
        seeds = range(1 if method == "ceilings" else arguments.seeds)
        for seed in seeds:
            began = time.perf_counter()
            for row, scores in run_method(method, cache, parts, clusters, seed, runs, arguments.recipe_epochs).items():
                results.setdefault(row, []).append((scores, time.perf_counter() - began))
    return results


def run_method(
    method: str,
    cache: EmbeddingCache,
    parts: dict[str, np.ndarray],
    clusters: int,
    seed: int,
    runs: Path,
    recipe_epochs: float | None,
) -> dict[str, Scores]:
    embedding, label = cache.embedding(), cache.labels
    if method in TRAINED:
        recipe, more = TRAINED[method]
        if recipe and recipe_epochs:
            more = [*more, f"train.epochs={recipe_epochs}"]
        settings = [f"heads.clusters={clusters}", *more, *(f"{name}={seed}" for name in SEEDED)]
        model = train_heads(cache, load_config(recipe, settings), runs / f"{method}-{seed}")
        found = {part: assign(model, embedding[rows])[0] for part, rows in parts.items()}
    elif method == "k-means":
        train, *others = parts.values()
        labels = kmeans_clusters(embedding[train], [embedding[rows] for rows in others], clusters, seed)
        found = dict(zip(parts, labels, strict=True))
    else:
        return ceilings(embedding, label, parts)
    scores = {part: cluster_scores(label[rows], found[part], clusters) for part, rows in parts.items()}
    return {method: scores}


def ceilings(embedding: np.ndarray, label: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, Scores]:
    train = parts["train"]
    methods: dict[str, Callable[..., float]] = {"20-NN on labels": knn_accuracy, "linear probe": probe_accuracy}
    rows = {}
    for name, accuracy in methods.items():
        rows[name] = {"train": {"acc": accuracy(embedding[train], label[train])}}
        if "test" in parts:
            test = parts["test"]
            found = accuracy(embedding[train], label[train], embedding[test], label[test])
            rows[name]["test"] = {"acc": found}
    return rows


def print_table(name: str, cache: EmbeddingCache, results: dict[str, list[tuple[Scores, float]]]) -> None:
    columns = [(part, key) for part in ("train", *(["test"] if cache.splits else [])) for key in ("acc", "nmi")]
    print(f"### {name}: {cache.rows:,} x {cache.dim}\n")
    heading = " | ".join(f"{part} {key.upper()}" for part, key in columns)
    print(f"| method | {heading} | used | seconds |")
    print("|---" * (len(columns) + 3) + "|")
    for method, seeds in results.items():
        cells = [spread([s[part][key] for s, _ in seeds if key in s.get(part, {})]) for part, key in columns]
        used = [s["train"]["used_clusters"] for s, _ in seeds if "used_clusters" in s["train"]]
        seconds = statistics.median(time for _, time in seeds)
        print(f"| {method} | {' | '.join(cells)} | {min(used) if used else ''} | {seconds:.0f} |", flush=True)
    print()


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
