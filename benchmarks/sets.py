"""The default and its neighbors on many real sets: one JSON line a set, method and seed, and the tables made of them.

    python benchmarks/sets.py --data FOLDER --results sets.jsonl [--methods default kmeans] [--seeds 0,1,2] [--sets a,b]
    python benchmarks/sets.py --data FOLDER --results losses.jsonl --plugin examples/plugins/swav.py \
        --methods default objective.name=swav "objective.name=scan objective.scan_entropy=2"
    python benchmarks/sets.py --results sets.jsonl --table

FOLDER holds ``sets/NAME.npz`` and ``views/NAME.npz`` with ``embedding`` (N, D), ``label`` (N,) and, in ``views``,
``views`` (N, V, D). The true number of clusters is given. Labels are read by the scoring alone.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import normalized_mutual_info_score

from temi.pipeline.config import load_config
from temi.pipeline.evaluate.baselines import run_baseline
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.evaluate.recipes import ON
from temi.pipeline.features.features import Features
from temi.pipeline.plugins import load_plugin
from temi.pipeline.progress import quiet
from temi.pipeline.registry import BASELINES
from temi.pipeline.runs.fit import fit_model

DEFAULT = "default"


def read_sets(folder: Path, names: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray | None, np.ndarray]]:
    """Name, embeddings, views if there are any, and labels numbered from 0; "views/NAME" are those with views."""
    if not (files := sorted(folder.glob("sets/*.npz")) + sorted(folder.glob("views/*.npz"))):
        raise SystemExit(f"{folder} holds no sets/*.npz and no views/*.npz")
    for file in files:
        name = file.stem if file.parent.name == "sets" else f"views/{file.stem}"
        if not names or name in names:
            table = np.load(file, allow_pickle=False)
            label = np.unique(table["label"], return_inverse=True)[1]
            yield name, table["embedding"], table.get("views"), label


def run(method: str, features: Features, embedding: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Clusters of every row by the default of this package, by it with other settings, or by a baseline.

    BASELINE@SCALING is that baseline on the rows so scaled, such as leiden@views.
    """
    name, _, kind = method.partition(ON)
    if name in BASELINES:
        rows = features.scaled(kind).numpy() if kind else embedding
        return run_baseline(name, rows, clusters, seed)[0]
    settings = [f"heads.clusters={clusters}", *(f"{part}.seed={seed}" for part in ("start", "train", "pairs"))]
    settings += [] if method == DEFAULT else method.split()
    with quiet():
        cluster, _ = fit_model(features, load_config(None, settings)).assign(torch.from_numpy(embedding))
    return cluster.numpy()


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set, method and seed that the results do not hold yet."""
    done = {(row["set"], row["method"], row["seed"]) for row in read_rows(arguments.results)}
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        features = Features.of_array(embedding, None if arguments.without_views else views)
        for seed in arguments.seeds:
            for method in arguments.methods:
                if (name, method, seed) in done:
                    continue
                began, cpu = time.perf_counter(), time.process_time()
                cluster = run(method, features, embedding, int(label.max()) + 1, seed)
                row = {
                    "set": name,
                    "rows": len(label),
                    "classes": int(label.max()) + 1,
                    "method": method,
                    "seed": seed,
                    "acc": hungarian_accuracy(label, cluster),
                    "nmi": float(normalized_mutual_info_score(label, cluster)),
                    "seconds": round(time.perf_counter() - began, 2),
                    "cpu_seconds": round(time.process_time() - cpu, 2),
                }
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name} {method} {seed}: ACC {row['acc']:.3f}, {row['cpu_seconds']} CPU s", flush=True)


def read_rows(results: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: a set a line, the methods beside each other, their means and mean ranks by ACC over the sets
    that all have, and how far the default is from the best other method.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    sizes = {row["set"]: (row["rows"], row["classes"]) for row in rows}
    for row in rows:
        found[row["set"]][row["method"]].append((100 * row["acc"], 100 * row["nmi"]))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| set | N, C | {' | '.join(methods)} | against the best of them |", "|" + "---|" * (len(methods) + 3)]
    gaps = []
    for name in sorted(found, key=lambda name: ("/" in name, name)):
        means = {method: np.mean(found[name][method], 0) for method in methods if method in found[name]}
        others = [mean[0] for method, mean in means.items() if method != DEFAULT]
        gap = means[DEFAULT][0] - max(others) if others and DEFAULT in means else float("nan")
        gaps.append(gap)
        cells = [f"{means[method][0]:.1f}, {means[method][1]:.1f}" if method in means else "" for method in methods]
        lines.append(f"| {name} | {sizes[name][0]:,}, {sizes[name][1]} | {' | '.join(cells)} | {gap:+.1f} |")
    whole = [name for name in found if all(method in found[name] for method in methods)]
    means = [np.mean([np.mean(found[name][method], 0) for name in whole], 0) for method in methods]
    cells = [f"**{acc:.1f}, {nmi:.1f}**" for acc, nmi in means]
    lines.append(
        f"| mean of {len(whole)} sets | | {' | '.join(cells)} | {np.nanmean(gaps):+.1f}, worst {np.nanmin(gaps):+.1f} |"
    )
    ranks = [rankdata([-np.mean(found[name][method], 0)[0] for method in methods]) for name in whole]
    lines.append(f"| mean rank | | {' | '.join(f'{rank:.1f}' for rank in np.mean(ranks, 0))} | |")
    return "\n".join(lines)


def options(description: str | None, sets: Sequence[str] = ()) -> argparse.ArgumentParser:
    """What every benchmark over these sets takes; `sets` are those measured by default, none: all."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(sets))
    parser.add_argument("--table", action="store_true")
    return parser


def run_or_show(
    arguments: argparse.Namespace,
    measure: Callable[[argparse.Namespace], None],
    table: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Measure what the results do not hold yet, or print the table of what they hold."""
    if arguments.table:
        print(table(read_rows(arguments.results)))
    else:
        measure(arguments)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--methods", nargs="+", default=[DEFAULT, *BASELINES])
    parser.add_argument("--plugin", type=Path, action="append", default=[])
    parser.add_argument("--without-views", action="store_true")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    arguments = parser.parse_args()
    for plugin in arguments.plugin:
        load_plugin(plugin)
    run_or_show(arguments, measure, table)


if __name__ == "__main__":
    main()
