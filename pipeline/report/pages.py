"""`temi report`: one HTML page that opens from disk without network, to look at clusters and decide what to do next.

Everything is inside the page: thumbnails, and the figures as one JSON block, from which page/*.js builds the rest.
`temi serve` shows the same page, with pictures and answers from a server. Labels, where there are any, are shown and
change nothing.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import JsonValue
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.optimize import linear_sum_assignment

from temi.cache.files import check_writable, os_errors, write_atomic
from temi.pipeline.config import recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.progress import say
from temi.pipeline.report.cards import TYPICAL, centers, class_name, nearest_clusters, typical_images
from temi.pipeline.report.columns import closeness, image_columns, rounded
from temi.pipeline.report.levels import run_levels
from temi.pipeline.report.records import Base, Brackets, Confusion, Curves, Overview, RunFigures, page_json
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.fitting import keys_of
from temi.pipeline.results.lists import Evidence, evidence, refuse_other_lists, write_lists
from temi.pipeline.results.map import run_map
from temi.pipeline.results.names import first_names
from temi.pipeline.results.thumbnails import Thumbnail, oddities, run_thumbnails
from temi.pipeline.runs.label_free import COMPARED_ROWS, compared
from temi.pipeline.runs.records import Training, read_comparison, read_record
from temi.pipeline.runs.run_folder import finite
from temi.pipeline.start.agreement import contingency, mutual_information

POINTS = 50_000  # images on the map; of more, a sample
THUMBNAIL_BYTES = 30 * 2**20  # 40 MB as base64; typical images come first, then the others in random order
CHUNK = 500  # pictures that a page reads at a time
SCRIPTS = {
    "report": ["shared", "store", "gallery", "map", "charts", "report"],
    "overview": ["shared", "overview"],
}
CONFUSION_CLASSES = 300
CURVE_POINTS = 500


def write_report(run: FinishedRun, out: Path | None = None, source: str | None = None) -> Path:
    """Write the report of `run` to `out`, by default ``RUN/report.html``; `source` is where the images are now.

    Beside it stand the lists duplicates.csv, unsure.csv and unusual.csv. Where the images cannot be found and no
    `source` is given, the report has no pictures and says why.

    Raises
    ------
    UserError
        A file that has the name of one of the lists is not such a list.
    """
    out = out or run.folder / "report.html"
    check_writable(out.parent)
    refuse_other_lists(out.parent)
    known = evidence(run)
    data, pictures, odd = figures(run, known, source)
    say_missing(data.missing)
    write_page(out, render("report", page_json(data), run.folder.resolve().name, pictures))
    write_lists(run, known, out.parent, odd)
    return out


def say_missing(reason: str) -> None:
    """Say on stderr why a page has no pictures, where it has none."""
    if reason:
        say(f"no pictures: {reason}")


def write_page(out: Path, page: str) -> None:
    """Write a page, atomically."""
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page.encode("utf-8", "backslashreplace"))


def render(name: str, data: str, title: str, pictures: Sequence[str] = (), served: bool = False) -> str:
    """``page/NAME.html`` around `data`, a block of JSON; the title cannot leave its place.

    `pictures` are base64 WebP of the images, in blocks of CHUNK that the page reads when it needs them.
    """
    page = files("temi.pipeline.report") / "page"
    script = "\n".join((page / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS[name])
    blocks = [json.dumps(list(pictures[start : start + CHUNK])) for start in range(0, len(pictures), CHUNK)]
    parts = {
        "title": html.escape(title),
        "served": " data-served" if served else "",
        "style": (page / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "allowed": f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'",
        "data": data,
        "pictures": "\n".join(f'<script type="application/json" class="pictures">{block}</script>' for block in blocks),
    }
    template = (page / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def figures(run: FinishedRun, known: Evidence, source: str | None) -> tuple[RunFigures, list[str], dict[int, str]]:
    """All that the page shows; its pictures; and what is odd about the pixels of images, by position."""
    rows = run.trained["row"].to_numpy()
    levels = run_levels(run, run.scaled)
    typical = typical_images(run.scaled, run.corrected.cluster, _center(run), TYPICAL)
    pictured = [image for images in typical for image in images]
    first = list(dict.fromkeys([*pictured, *(levels.pictures() if levels else ())]))
    shown, place = shown_images(len(rows), first)
    with ThreadPoolExecutor(1) as pool:  # decoding and the map keep two cores busy
        making = pool.submit(pictures_of, run, rows[shown], [place[i] for i in first], source)
        position = page_map(run, known, shown)
        pictures, odd, missing = making.result()
    data = replace(
        run_figures(run, known, shown, position),
        levels=levels.figures(place) if levels else None,
        missing=missing,
        odd=odd,
        looked=sum(map(bool, pictures)),
    )
    return data, pictures, {int(shown[place]): what for place, what in odd.items()}


def _center(run: FinishedRun) -> Float32[np.ndarray, "C D"]:
    """Centers of the clusters as corrected."""
    return centers(run.scaled, run.corrected.cluster, run.clusters)


def page_map(run: FinishedRun, known: Evidence, shown: Int64[np.ndarray, " shown"]) -> Float32[np.ndarray, "shown 2"]:
    """Places on the map of the images at `shown`."""
    whole = len(shown) == len(run.trained)
    graph = (known.neighbor, known.similarity) if whole else None
    return run_map(run.shared, run.scaled[shown], run.trained["row"].to_numpy()[shown], graph)


def run_figures(
    run: FinishedRun,
    known: Evidence,
    shown: Int64[np.ndarray, " shown"],
    position: Float32[np.ndarray, "shown 2"],
) -> RunFigures:
    """What a page shows of a run, pictures apart: images as trained, and the corrections to replay on them."""
    trained = run.trained["cluster"].to_numpy("int64")
    sizes = np.bincount(trained, minlength=run.model.clusters).tolist()
    as_trained = RunFigures(
        overview=overview(run),
        images=image_columns(run, known, position, shown),
        base=Base(run.model.clusters, sizes, first_names(run.folder, run.model.clusters)),
        classes=list(run.cache.classes),
        comparison=read_comparison(run.folder),
        curves=_curves(run),
        agreement=agreement(run),
        settings=_settings(run),
        chunk=CHUNK,
    )
    return as_corrected(as_trained, run, shown)


def as_corrected(data: RunFigures, run: FinishedRun, shown: Int64[np.ndarray, " shown"]) -> RunFigures:
    """`data` with the corrections of `run`, and with all that is counted from the clusters as they leave them."""
    cluster, inside = run.corrected.cluster, run.corrected.cluster != REMOVED
    center = _center(run)
    label = run.cache.labels[run.trained["row"].to_numpy()].astype(np.int64)
    return replace(
        data,
        images=replace(data.images, typical=rounded(closeness(run)[shown], 3)),
        base=replace(data.base, outside=_outside(run, shown)),
        entries=tuple(run.corrections),
        near=nearest_clusters(center, cluster[inside]),
        tree=center_dendrogram(center, cluster[inside]),
        confusion=confusion(label[inside], cluster[inside], run.cache.classes, run.headings),
    )


def _outside(run: FinishedRun, shown: Int64[np.ndarray, " shown"]) -> dict[str, int]:
    """Clusters as trained of images that corrections name and that are not among those `shown`."""
    if len(shown) == len(run.trained):
        return {}
    trained, inside = run.trained["cluster"].to_numpy(), set(shown.tolist())
    named = sorted({key for entry in run.corrections for key in keys_of(entry)})  # an undone one may be redone
    return {key: int(trained[run.place[key]]) for key in named if key in run.place and run.place[key] not in inside}


def shown_images(count: int, on_cards: list[int]) -> tuple[Int64[np.ndarray, " shown"], dict[int, int]]:
    """Which of `count` images the page holds: all, or those on cards and a sample; and the place of each there."""
    shown = np.arange(count)
    if count > POINTS:
        sample = np.random.default_rng(0).permutation(count)[:POINTS]
        shown = np.unique(np.concatenate([sample, np.array(on_cards, np.int64)]))  # no card: an empty list is float
    return shown, {int(image): place for place, image in enumerate(shown)}


def confusion(
    label: Int64[np.ndarray, " n"], cluster: Int64[np.ndarray, " n"], classes: Sequence[str], headings: Sequence[str]
) -> Confusion | None:
    """Images of each class in each cluster, clusters ordered so that their best one-to-one match is the diagonal."""
    known = label >= 0
    present = np.unique(label[known])
    if not len(present) or len(present) > CONFUSION_CLASSES or len(headings) > CONFUSION_CLASSES:
        return None
    table = contingency(label[known], cluster[known], (int(label.max()) + 1, len(headings)))[present]
    row, column = linear_sum_assignment(table, maximize=True)
    matched = list(column[np.argsort(row)])
    order = matched + [c for c in range(len(headings)) if c not in set(matched) and table[:, c].any()]
    return Confusion(
        classes=[class_name(classes, c) for c in present],
        clusters=[headings[c] for c in order],
        count=table[:, order].tolist(),
        accuracy=round(float(table[row, column].sum() / known.sum()), 4),
    )


def agreement(run: FinishedRun) -> list[list[float]]:
    """Normalized mutual information of each two of the heads compared; [] where there is one head."""
    every = -(-len(run.rows) // COMPARED_ROWS)
    labels = run.model.head_clusters(run.rows.at(np.arange(0, len(run.rows), every))).cpu().numpy()
    if len(labels) < 2:
        return []
    return [rounded(row, 3) for row in mutual_information(labels[compared(len(labels))])]


def center_dendrogram(center: Float32[np.ndarray, "C D"], cluster: Int64[np.ndarray, " n"]) -> Brackets | None:
    """Average-linkage tree over the distances of centers, as the corners of its brackets; None for one cluster."""
    used = np.unique(cluster)
    if len(used) < 2:
        return None
    tree = dendrogram(linkage(center[used].astype(np.float64), "average"), no_plot=True)
    return Brackets(
        across=[rounded(corners, 4) for corners in tree["dcoord"]],
        along=[rounded(corners, 1) for corners in tree["icoord"]],
        leaves=[int(used[leaf]) for leaf in tree["leaves"]],
    )


def overview(run: FinishedRun) -> Overview:
    """The figures of the whole run."""
    confidence = run.trained["confidence"].to_numpy("float32")
    training = read_record(Training, run.files.training)
    return Overview(
        images=len(confidence),
        unreadable=int((~run.cache.ok).sum()),
        clusters=run.model.clusters - len(run.model.given_up),
        used=training.used_clusters,
        smallest=training.smallest_cluster,
        largest=training.largest_cluster,
        confidence=round(float(confidence.mean()), 4),
        seconds=training.seconds,
        steps=training.steps,
        agreement=training.head_agreement,
        consistency=training.neighbor_consistency,
        backbone=run.model.made_from.backbone,
        histogram=np.histogram(confidence, bins=20, range=(0, 1))[0].tolist(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def pictures_of(
    run: FinishedRun, rows: np.ndarray, first: list[int], source: str | None
) -> tuple[list[str], dict[int, str], str]:
    """Base64 WebP of each of `rows`, "" where there is none; what is odd about their pixels; why there are none.

    Those at `first` come first.
    """
    images, missing = run.images_or_reason(source)
    if images is None:
        return [""] * len(rows), {}, missing
    order = list(dict.fromkeys([*first, *np.random.default_rng(0).permutation(len(rows)).tolist()]))
    found = run_thumbnails(run.shared, images, [int(rows[place]) for place in order], THUMBNAIL_BYTES)
    place = {int(row): number for number, row in enumerate(rows)}
    odd = {place[row]: what for row, what in oddities(found).items()}
    none = Thumbnail()
    return [base64.b64encode(found.get(int(row), none).webp).decode() for row in rows], odd, ""


def _curves(run: FinishedRun) -> Curves | None:
    """At most CURVE_POINTS of the metrics of training."""
    path = run.files.metrics
    if not path.exists():
        return None
    lines = path.read_bytes().splitlines()
    try:
        shown = [json.loads(line) for line in lines[:: max(1, len(lines) // CURVE_POINTS)]]
        curves: dict[str, Any] = {part.name: [finite(line.get(part.name)) for line in shown] for part in fields(Curves)}
        return Curves(**curves)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or delete it: the page then has no curves") from None


def _settings(run: FinishedRun) -> dict[str, dict[str, JsonValue]]:
    made = {name: value for name, value in asdict(run.model.made_from).items() if value not in ("", {})}
    settings = recorded_config(run.files.config).model_dump(mode="json", exclude={"embed"}, exclude_none=True)
    return {"embeddings": made} | settings
