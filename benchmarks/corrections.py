"""ACC against the number of corrections: a simulated person puts a run right, and heads are trained with what was said.

    python benchmarks/corrections.py --data FOLDER --results corrections.jsonl [--sets dtd10,...] [--counts 5,20,50,200]
    python benchmarks/corrections.py --results corrections.jsonl --table [--picture corrections.svg]

FOLDER holds ``sets/NAME.npz`` as for `benchmarks/sets.py`. The person merges clusters of which most images are of one
class, then moves images, in random order, that are not of the class of most of their cluster, to the largest cluster of
their class, or to a new one where there is none. One merge or one moved image is one correction. The first run has the
true number of clusters; the retrained one has as many as the person left.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sets import options, read_rows, read_sets, run_or_show

from temi.pipeline.config import load_config
from temi.pipeline.evaluate.metrics import hungarian_accuracy
from temi.pipeline.features.features import Features
from temi.pipeline.progress import quiet
from temi.pipeline.results.constraints import constraints
from temi.pipeline.results.corrections import Correction, Merge, Move, replay
from temi.pipeline.runs.fit import fit_model

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def correct_by_label(label: np.ndarray, cluster: np.ndarray, clusters: int, count: int, seed: int) -> list[Correction]:
    """What a person who knows the classes says first: at most `count` merges and moves of single images."""
    table = np.zeros((label.max() + 1, clusters), dtype=int)
    np.add.at(table, (label, cluster), 1)
    most, home, entries = table.argmax(0), {}, []
    for kind in range(len(table)):
        own = sorted(np.flatnonzero((most == kind) & table.any(0)).tolist(), key=lambda c: -table[kind, c])
        if own:
            home[kind] = own[0]
        if len(own) > 1:
            entries.append(Merge(clusters=own))
    for image in np.random.default_rng(seed).permutation(len(label)).tolist():
        if most[cluster[image]] != label[image]:
            to = home.setdefault(int(label[image]), clusters + sum(number >= clusters for number in home.values()))
            entries.append(Move(keys=[str(image)], to=to))
    return entries[:count]


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set, seed and number of corrections that the results do not hold yet."""
    done = {(row["set"], row["seed"], row["count"]) for row in read_rows(arguments.results)}
    for name, embedding, _, label in read_sets(arguments.data, arguments.sets):
        features, clusters, keys = (
            Features.of_array(embedding),
            int(label.max()) + 1,
            [str(i) for i in range(len(label))],
        )
        for seed in arguments.seeds:
            owed = [count for count in arguments.counts if (name, seed, count) not in done]
            if not owed:
                continue
            first, confidence = fit(features, clusters, seed)
            for count in owed:
                began = time.process_time()
                entries = correct_by_label(label, first, clusters, count, seed)
                by_hand = replay(keys, first, clusters, entries)
                told = constraints(keys, first, confidence, clusters, entries)
                again, _ = fit(features, told.clusters, seed, told)
                rest = ~by_hand.by_hand
                row = {
                    "set": name,
                    "rows": len(label),
                    "classes": clusters,
                    "seed": seed,
                    "count": count,
                    "said": len(entries),
                    "clusters": told.clusters,
                    "without": hungarian_accuracy(label, first),
                    "by_hand": hungarian_accuracy(label, by_hand.cluster),
                    "retrained": hungarian_accuracy(label, again),
                    "rest_by_hand": hungarian_accuracy(label[rest], by_hand.cluster[rest]),
                    "rest_retrained": hungarian_accuracy(label[rest], again[rest]),
                    "cpu_seconds": round(time.process_time() - began, 2),
                }
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def fit(features: Features, clusters: int, seed: int, told: object = None) -> tuple[np.ndarray, np.ndarray]:
    """Clusters and confidences of heads trained with what was told, if anything."""
    settings = [f"heads.clusters={clusters}", *(f"{part}.seed={seed}" for part in ("start", "train", "pairs"))]
    with quiet():
        cluster, confidence = fit_model(features, load_config(None, settings), told).assign(features.embedding)
    return cluster.numpy().astype(np.int64), confidence.numpy().astype(np.float32)


def table(rows: list[dict]) -> str:
    """Markdown: a line a set and number of corrections, means over the seeds, in percent."""
    lines = [
        "| set | N, C | corrections | without | by hand | retrained | images nobody moved: by hand | retrained |",
        "|" + "---|" * 8,
    ]
    for name, count in sorted({(row["set"], row["count"]) for row in rows}):
        own = [row for row in rows if (row["set"], row["count"]) == (name, count)]
        scores = ("without", "by_hand", "retrained", "rest_by_hand", "rest_retrained")
        cells = [f"{100 * np.mean([row[score] for row in own]):.1f}" for score in scores]
        lines.append(f"| {name} | {own[0]['rows']:,}, {own[0]['classes']} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(rows: list[dict], width: int = 640, height: int = 400) -> str:
    """SVG: retrained (lines) and corrected by hand alone (dashes) against the number of corrections, log scale."""
    counts = sorted({row["count"] for row in rows})
    left, right, top, bottom = 44, width - 130, 16, height - 40
    low = 100 * min(row["without"] for row in rows) // 10 * 10
    ends = np.log([counts[0], counts[-1]])

    def point(count: int, acc: float) -> str:
        x = left + (right - left) * (np.log(count) - ends[0]) / max(ends[1] - ends[0], 1e-9)
        return f"{x:.1f},{bottom - (bottom - top) * (100 * acc - low) / (100 - low):.1f}"

    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for tick in range(int(low), 101, 10):
        y = bottom - (bottom - top) * (tick - low) / (100 - low)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/><text x="8" y="{y + 4:.1f}">{tick}</text>')
    for count in counts:
        parts.append(f'<text x="{point(count, 0).split(",")[0]}" y="{bottom + 18}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 6}" text-anchor="middle">corrections (ACC in %)</text>')
    for color, name in zip(COLORS, sorted({row["set"] for row in rows}), strict=False):
        for score, dash in (("retrained", ""), ("by_hand", ' stroke-dasharray="4 4"')):
            own = [(c, np.mean([r[score] for r in rows if (r["set"], r["count"]) == (name, c)])) for c in counts]
            points = " ".join(point(*pair) for pair in own)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
            end = points.split()[-1].split(",")[1]
            if not dash:
                parts.append(f'<text x="{right + 6}" y="{float(end) + 4:.1f}" fill="{color}">{name}</text>')
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {style}>{"".join(parts)}</svg>\n'


def main() -> None:
    parser = options(__doc__, ["dtd10", "micrographs"])
    parser.add_argument("--counts", type=lambda text: [int(n) for n in text.split(",")], default=[5, 20, 50, 200])
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    run_or_show(arguments, measure, table)
    if arguments.table and arguments.picture:
        arguments.picture.write_text(picture(read_rows(arguments.results)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
