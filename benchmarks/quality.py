"""Accuracy of the default beside everything a user would try instead, on the same caches.

    python benchmarks/quality.py --results FILE [--features FOLDER] [--fashion FOLDER] [--sets ...] [--methods ...]
    python benchmarks/quality.py --results FILE --table          # the tables of what FILE holds
    python benchmarks/quality.py --results FILE --features FOLDER --sets shared [--table]   # as sets.py does

``shared`` are all sets of FEATURES/sets and FEATURES/views, in one table with means, mean ranks and the worst case.
Else FEATURES holds ``NAME-efficientnet_lite0.npz`` files with arrays embedding (N, D) float16, label, key, classes and
optionally split (train/test). FASHION holds Fashion-MNIST's four ``*-ubyte.gz`` files; 10,000 train and 5,000 test
images of it are written as PNG and embedded as a user would. Digits come from scikit-learn, mixtures from
benchmarks/mixtures.py. Methods train on the train rows and are scored on train and test rows; labels are read by the
scoring alone. Every (set, method, seed) becomes a line of FILE, and a line that is there is not measured again.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixtures import MIXTURES, make_mixture
from PIL import Image
from sets import measure as measure_sets
from sets import run_or_show
from sets import table as one_table

from temi.cache import EmbeddingCache, Fingerprint, Manifest, ShardWriter, plan_shards
from temi.cache.schema import MANIFEST
from temi.pipeline.config import load_config
from temi.pipeline.encode.embed import embed
from temi.pipeline.evaluate.baselines import extended, run_baseline
from temi.pipeline.evaluate.metrics import cluster_scores, confident_accuracy, knn_accuracy, probe_accuracy
from temi.pipeline.evaluate.recipes import CONFIGS, RECIPES, load_recipe, title_of
from temi.pipeline.registry import BASELINES
from temi.pipeline.runs.checks import training_rows
from temi.pipeline.runs.train import assign, train_heads

TRAINED: dict[str, tuple[str, list[str]]] = {
    "default": ("", []),
    **{name: (name, []) for name in RECIPES},
    # The default without one of its parts.
    "random start": ("", ["start.kind=random", "train.min_steps=2000"]),
    "no steps of TEMI": ("", ["train.epochs=0", "train.min_steps=1", "optimizer.lr=1e-9"]),
    "one head": ("", ["heads.count=1"]),
    "centered features": ("", ["heads.scale=center"]),
    "paper's beta": ("", ["objective.beta=0.6"]),
    "50 neighbors": ("", ["neighbors.k=50"]),
}
NAMES = {
    "default": "**TEMI, default**",
    **{name: title_of(name) for name in [*BASELINES, *RECIPES]},
    "knn": "20-NN on labels (ceiling)",
    "probe": "linear probe (ceiling)",
}
CEILINGS = {"knn": knn_accuracy, "probe": probe_accuracy}
FREE_COUNT = ("hdbscan",)  # finds its own number of clusters
UNSEEDED = ("ward", "knn", "probe")  # one run is all there is
SHARED = "shared"
SETS = ("caltech101", "cifar10", "digits", "fashion", *MIXTURES)
FASHION_IMAGES = {"train": 10_000, "t10k": 5_000}


def main() -> None:
    arguments = parse_arguments()
    if arguments.sets == SHARED:
        if arguments.features is None and not arguments.table:
            raise SystemExit(f"{SHARED} needs --features")
        methods = [name for name in arguments.methods.split(",") if name not in CEILINGS]
        given = {"sets": [], "methods": methods, "seeds": range(arguments.seeds), "without_views": False}
        run_or_show(argparse.Namespace(**vars(arguments) | given, data=arguments.features), measure_sets, one_table)
        return
    if arguments.table:
        print_tables(read_results(arguments.results))
        return
    with scratch_folder(arguments.caches) as folder:
        for name in arguments.sets.split(","):
            cache = open_set(name, arguments, folder)
            for method in arguments.methods.split(","):
                for seed in range(1 if method in UNSEEDED else arguments.seeds):
                    measure(name, cache, method, seed, arguments.results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--table", action="store_true", help="print Markdown tables of RESULTS and stop")
    parser.add_argument("--features", type=Path, help="folder of .npz files, for caltech101 and cifar10")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's .gz files, for fashion")
    parser.add_argument("--caches", type=Path, help="folder in which caches and layouts are kept between calls")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default="default,kmeans,spherical,umap,ward,hdbscan,leiden,knn,probe")
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args()


@contextmanager
def scratch_folder(kept: Path | None) -> Iterator[Path]:
    if kept:
        yield kept
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def open_set(name: str, arguments: argparse.Namespace, caches: Path) -> EmbeddingCache:
    """The cache of a data set, train rows first."""
    folder = caches / name
    if (folder / MANIFEST).exists():
        return EmbeddingCache.open(folder)
    if name in MIXTURES:
        embedding, label = make_mixture(name)
        return write_cache(folder, embedding, label, [f"{row}" for row in range(len(label))], {})
    if name in ("digits", "fashion"):
        source = "digits" if name == "digits" else str(fashion_images(arguments.fashion, caches / "fashion-images"))
        cache = embed(source, folder, load_config(CONFIGS / "demo.toml").embed)
        assert cache is not None
        return cache
    if arguments.features is None:
        raise SystemExit(f"{name} needs --features")
    arrays = np.load(arguments.features / f"{name}-efficientnet_lite0.npz", allow_pickle=False)
    label = arrays["label"].astype(np.int32)
    split = arrays["split"].astype(str) if "split" in arrays else np.full(len(label), "train")
    order = np.argsort(split != "train", kind="stable")
    train = int((split == "train").sum())
    splits = {"train": (0, train), "test": (train, len(order))} if train < len(order) else {}
    return write_cache(folder, arrays["embedding"][order], label[order], [str(k) for k in arrays["key"][order]], splits)


def fashion_images(source: Path | None, folder: Path) -> Path:
    """PNG files in split/class folders."""
    if source is None:
        raise SystemExit("fashion needs --fashion")
    for part, count in FASHION_IMAGES.items():
        packed = [(source / f"{part}-{name}-ubyte.gz").read_bytes() for name in ("images-idx3", "labels-idx1")]
        pixels, labels = (np.frombuffer(gzip.decompress(data), np.uint8) for data in packed)
        pixels, labels = pixels[16:], labels[8:]  # headers
        for row, (image, label) in enumerate(zip(pixels.reshape(-1, 28, 28)[:count], labels, strict=False)):
            path = folder / ("train" if part == "train" else "test") / str(label) / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def write_cache(
    folder: Path, embedding: np.ndarray, label: np.ndarray, keys: list[str], splits: dict[str, tuple[int, int]]
) -> EmbeddingCache:
    rows, dim = embedding.shape
    fingerprint = Fingerprint(
        backbone=folder.name,
        revision="0",
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
                embedding=embedding[part].astype(np.float16),
                views=np.zeros((shard.rows, 0, dim), np.float16),
                keys=keys[part],
                labels=label[part].astype(np.int32),
                failures={},
                seconds={},
            )
        cache = writer.finish()
    assert cache is not None
    return cache


def measure(name: str, cache: EmbeddingCache, method: str, seed: int, results: Path) -> None:
    """Run one method once and add a line to `results`, unless it is there."""
    if any((r["set"], r["method"], r["seed"]) == (name, method, seed) for r in read_results(results)):
        return
    parts = {"train": training_rows(cache)}
    if "test" in cache.splits:
        parts["test"] = training_rows(cache, "test")
    began, processor = time.perf_counter(), time.process_time()
    scores, seconds = run_method(method, cache, parts, seed)
    line = {
        "set": name,
        "method": method,
        "seed": seed,
        "scores": scores,
        "seconds": seconds or time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "rows": cache.rows,
        "dim": cache.dim,
    }
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(
        name, method, seed, {part: round(100 * s["acc"], 1) for part, s in scores.items()}, f"{line['seconds']:.0f} s"
    )


def run_method(
    method: str, cache: EmbeddingCache, parts: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, Any], float | None]:
    """Scores of the train and maybe the test rows, and seconds where the method's own count leaves scoring out."""
    embedding, label = cache.embedding(), cache.labels
    train, *others = parts.values()
    if method in CEILINGS:
        accuracy = CEILINGS[method]
        found = [accuracy(embedding[train], label[train])]
        found += [accuracy(embedding[train], label[train], embedding[rows], label[rows]) for rows in others]
        return {part: {"acc": acc} for part, acc in zip(parts, found, strict=True)}, None
    clusters = len(np.unique(label[train]))
    if method in BASELINES:
        found, seconds = run_baseline(method, embedding[train], clusters, seed)
        labels = [found, *extended(method, embedding[train], found, [embedding[rows] for rows in others])]
        pairs = zip(parts.items(), labels, strict=True)
        return {part: cluster_scores(label[rows], own, int(own.max()) + 1) for (part, rows), own in pairs}, seconds
    recipe, more = TRAINED[method]
    scores = {}
    with tempfile.TemporaryDirectory() as run:
        began = time.perf_counter()
        model = train_heads(cache, load_recipe(recipe, clusters, seed, more), Path(run))
        seconds = time.perf_counter() - began
        for part, rows in parts.items():
            cluster, confidence = assign(model, embedding[rows])
            scores[part] = cluster_scores(label[rows], cluster, clusters)
            scores[part]["confident"] = confident_accuracy(label[rows], cluster, confidence)
            single = model.head_clusters(torch.from_numpy(embedding[rows]))[model.selected].cpu().numpy()
            scores[part]["best_head_acc"] = cluster_scores(label[rows], single, clusters)["acc"]
            plain, _ = assign(replace(model, loss=torch.zeros_like(model.loss)), embedding[rows])
            scores[part]["plain_mean_acc"] = cluster_scores(label[rows], plain, clusters)["acc"]
        start = json.loads((Path(run) / "start.json").read_text()) if (Path(run) / "start.json").exists() else {}
    scores["train"]["cut"] = start.get("cut")
    return scores, seconds


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_tables(results: list[dict[str, Any]]) -> None:
    """A table per set, methods in the order of NAMES, then of TRAINED."""
    by_set: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in results:
        by_set[line["set"]][line["method"]].append(line)
    for name, methods in by_set.items():
        first = next(iter(methods.values()))[0]
        print(f"### {name}: {first['rows']:,} x {first['dim']}\n")
        parts = ("train", "test") if any("test" in runs[0]["scores"] for runs in methods.values()) else ("train",)
        heading = " | ".join(f"{part} ACC | {part} NMI" for part in parts)
        print(f"| method | runs | {heading} | clusters | CPU seconds |\n{'|---' * (4 + 2 * len(parts))}|")
        for method in sorted(methods, key=list(dict.fromkeys([*NAMES, *TRAINED])).index):
            print(table_row(method, methods[method], parts))
        print()


def table_row(method: str, runs: list[dict[str, Any]], parts: tuple[str, ...]) -> str:
    cells = [
        spread([run["scores"][part][key] for run in runs if key in run["scores"].get(part, {})])
        for part in parts
        for key in ("acc", "nmi")
    ]
    used = [run["scores"]["train"]["used_clusters"] for run in runs if "used_clusters" in run["scores"]["train"]]
    clusters = "" if not used else f"{min(used)}" if min(used) == max(used) else f"{min(used)} to {max(used)}"
    seconds = f"{statistics.median(run['processor_seconds'] for run in runs):.0f}"
    return f"| {' | '.join([NAMES.get(method, method), str(len(runs)), *cells, clusters, seconds])} |"


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
