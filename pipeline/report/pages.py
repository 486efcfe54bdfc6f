"""`temi report`: one HTML page that opens from disk without network, to look at clusters and decide what to do next.

Everything is inside the page: plotly.js from its Python package, thumbnails, and the figures as one JSON block, from
which page/report.js builds the rest. Labels, where there are any, are shown and change nothing.
"""

import base64
import html
import json
import re
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from plotly.offline import get_plotlyjs
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.optimize import linear_sum_assignment

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.errors import UserError
from temi.pipeline.report.cards import centers, class_name, class_shares, cluster_cards, nearest_clusters
from temi.pipeline.report.levels import run_levels
from temi.pipeline.report.map import run_atlas
from temi.pipeline.report.thumbnails import run_thumbnails
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.label_free import compared
from temi.pipeline.runs.run_folder import read_json
from temi.pipeline.start.agreement import mutual_information

POINTS = 50_000  # images on the map; of more, a sample
THUMBNAIL_BYTES = 30 * 2**20  # 40 MB as base64; cards come first, then images of the map in random order
CONFUSION_CLASSES = 300
CURVE_POINTS = 500


def write_report(run: FinishedRun, out: Path | None = None, source: str | None = None) -> Path:
    """Write the report of `run` to `out`, by default ``RUN/report.html``; `source` is where the images are now.

    Where the images cannot be found and no `source` is given, the report has no pictures and says why.
    """
    out = out or run.folder / "report.html"
    write_page(out, render("report", figures(run, source), run.folder.resolve().name))
    return out


def write_page(out: Path, page: str) -> None:
    """Write a page, atomically."""
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page.encode("utf-8", "backslashreplace"))


def render(name: str, data: dict[str, Any], title: str) -> str:
    """``page/NAME.html`` around `data`; whatever text is in it cannot leave its place."""
    page = files("temi.pipeline.report") / "page"
    parts = {
        "title": html.escape(title),
        "style": (page / "report.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "shared": (page / "shared.js").read_text(encoding="utf-8"),
        "script": (page / f"{name}.js").read_text(encoding="utf-8"),
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (page / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def figures(run: FinishedRun, source: str | None) -> dict[str, Any]:
    """All that the page shows, as JSON."""
    table = run.assignments
    rows = table["row"].to_numpy()
    cluster = table["cluster"].to_numpy().astype(np.int64)
    confidence = table["confidence"].to_numpy().astype(np.float32)
    embedding = torch.from_numpy(run.cache.embedding()[rows])
    scaled = run.model.scaling(embedding).cpu().numpy()
    label = run.cache.labels[rows].astype(np.int64)
    center = centers(scaled, cluster, run.model.clusters)
    cards = [
        card | {"name": name, "near": near, "classes": classes}
        for card, name, near, classes in zip(
            cluster_cards(scaled, cluster, confidence, center),
            run.headings,
            nearest_clusters(center, cluster),
            class_shares(label, cluster, run.cache.classes, run.model.clusters),
            strict=True,
        )
    ]
    levels = run_levels(run, scaled)
    on_cards = [i for card in cards for i in [*card["typical"], *card["uncertain"]]]
    on_cards = list(dict.fromkeys([*on_cards, *(levels.pictures() if levels else ())]))
    shown, place = shown_images(len(table), on_cards)
    for card in cards:
        card["typical"] = [place[i] for i in card["typical"]]
        card["uncertain"] = [place[i] for i in card["uncertain"]]
    with ThreadPoolExecutor(1) as pool:  # decoding and the map keep two cores busy
        making = pool.submit(pictures_of, run, rows[shown], [place[i] for i in on_cards], source)
        position = run_atlas(run.shared, scaled[shown], rows[shown])
        pictures, missing = making.result()
    return {
        "overview": overview(run, confidence),
        "clusters": cards,
        "images": {
            "key": table["key"].iloc[shown].tolist(),
            "cluster": cluster[shown].tolist(),
            "confidence": _rounded(confidence[shown], 3),
            "x": _rounded(position[:, 0], 4),
            "y": _rounded(position[:, 1], 4),
            "picture": pictures,
        },
        "missing": missing,
        "comparison": _comparison(run),
        "confusion": confusion(label, cluster, run.cache.classes, run.headings),
        "curves": _curves(run),
        "agreement": agreement(run, embedding),
        "tree": merge_tree(center, cluster, run.headings),
        "levels": levels.figures(place) if levels else None,
        "settings": _settings(run),
    }


def shown_images(count: int, on_cards: list[int]) -> tuple[Int64[np.ndarray, " shown"], dict[int, int]]:
    """Which of `count` images the page holds: all, or those on cards and a sample; and the place of each there."""
    shown = np.arange(count)
    if count > POINTS:
        sample = np.random.default_rng(0).permutation(count)[:POINTS]
        shown = np.unique(np.concatenate([sample, on_cards]))
    return shown, {int(image): place for place, image in enumerate(shown)}


def confusion(
    label: Int64[np.ndarray, " n"], cluster: Int64[np.ndarray, " n"], classes: Sequence[str], headings: Sequence[str]
) -> dict[str, Any] | None:
    """Images of each class in each cluster, clusters ordered so that their best one-to-one match is the diagonal."""
    known = label >= 0
    present = np.unique(label[known])
    if not len(present) or len(present) > CONFUSION_CLASSES or len(headings) > CONFUSION_CLASSES:
        return None
    table = np.zeros((label.max() + 1, len(headings)), dtype=np.int64)
    np.add.at(table, (label[known], cluster[known]), 1)
    table = table[present]
    row, column = linear_sum_assignment(table, maximize=True)
    matched = list(column[np.argsort(row)])
    order = matched + [c for c in range(len(headings)) if c not in set(matched) and table[:, c].any()]
    return {
        "classes": [class_name(classes, c) for c in present],
        "clusters": [headings[c] for c in order],
        "count": table[:, order].tolist(),
        "accuracy": round(float(table[row, column].sum() / known.sum()), 4),
    }


def agreement(run: FinishedRun, embedding: torch.Tensor) -> list[list[float]]:
    """Normalized mutual information of each two of the heads compared; [] where there is one head."""
    labels = run.model.head_clusters(embedding).cpu().numpy()
    if len(labels) < 2:
        return []
    return [_rounded(row, 3) for row in mutual_information(labels[compared(len(labels))])]


def merge_tree(
    center: Float32[np.ndarray, "C D"], cluster: Int64[np.ndarray, " n"], headings: Sequence[str]
) -> dict[str, Any] | None:
    """Average-linkage tree over the distances of centers, as the corners of its brackets; None for one cluster."""
    used = np.unique(cluster)
    if len(used) < 2:
        return None
    tree = dendrogram(linkage(center[used].astype(np.float64), "average"), no_plot=True)
    return {
        "across": [_rounded(np.asarray(corners), 4) for corners in tree["dcoord"]],
        "along": [_rounded(np.asarray(corners), 1) for corners in tree["icoord"]],
        "leaves": [headings[used[leaf]] for leaf in tree["leaves"]],
    }


def overview(run: FinishedRun, confidence: Float32[np.ndarray, " n"]) -> dict[str, Any]:
    """The figures at the top of the page."""
    training = read_json(run.files.training)
    made = run.model.fingerprint
    return {
        "images": len(confidence),
        "unreadable": int((~run.cache.ok).sum()),
        "clusters": run.model.clusters,
        "used": training["used_clusters"],
        "smallest": training["smallest_cluster"],
        "largest": training["largest_cluster"],
        "confidence": round(float(confidence.mean()), 4),
        "seconds": training["seconds"],
        "steps": training["steps"],
        "agreement": training["head_agreement"],
        "consistency": training["neighbor_consistency"],
        "backbone": made["backbone"],
        "histogram": np.histogram(confidence, bins=20, range=(0, 1))[0].tolist(),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def pictures_of(run: FinishedRun, rows: np.ndarray, first: list[int], source: str | None) -> tuple[list[str], str]:
    """Base64 WebP of each of `rows`, "" where there is none, and why there are none; those at `first` come first."""
    try:
        images = run.images(source)
    except UserError as error:
        if source is not None:
            raise
        return [""] * len(rows), str(error)
    order = list(dict.fromkeys([*first, *np.random.default_rng(0).permutation(len(rows)).tolist()]))
    found = run_thumbnails(run.shared, images, [int(rows[place]) for place in order], THUMBNAIL_BYTES)
    return [base64.b64encode(found.get(int(row), b"")).decode() for row in rows], ""


def _comparison(run: FinishedRun) -> list[dict[str, Any]]:
    path = run.folder / "result.json"
    return list(read_json(path)["parts"]) if path.exists() else []


def _curves(run: FinishedRun) -> dict[str, list[float]] | None:
    """At most CURVE_POINTS of the metrics of training."""
    if not run.files.metrics.exists():
        return None
    lines = [json.loads(line) for line in run.files.metrics.read_text(encoding="utf-8").splitlines()]
    lines = lines[:: max(1, len(lines) // CURVE_POINTS)]
    names = ("step", "loss", "best_head_loss", "effective_clusters")
    return {name: [line.get(name) for line in lines] for name in names}


def _settings(run: FinishedRun) -> dict[str, dict[str, Any]]:
    with os_errors(run.files.config, "read"):
        settings = tomllib.loads(run.files.config.read_text(encoding="utf-8"))
    made = {name: value for name, value in run.model.fingerprint.items() if value not in ("", {}, None)}
    return {"embeddings": made} | {name: table for name, table in settings.items() if name != "embed"}


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]
