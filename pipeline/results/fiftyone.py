"""A run as FiftyOne's image classification dataset on disk, and what a person tagged there as corrections.

::

    OUT/labels.json     {"classes": names, "labels": {id: {"label", "confidence", "attributes": {"key", "was"}}}}
    OUT/data/ID.jpg     the images: symlinks, hard links or copies

An id is the row of the image, because FiftyOne takes the suffix off a name and two images may differ by that alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import REMOVED, Correction, Move, Note, Remove, Rename
from temi.pipeline.results.export import new_folder, open_to_export, put_images, say_missing
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import display_name

NEW = "new: "  # before a tag that names a cluster to make
GONE = "removed"  # the tag of an image that belongs to no cluster


def export_fiftyone(run: FinishedRun, out: Path, link: str, source: str | None = None) -> int:
    """Write the folder `out`, without images that are no longer there; what was interrupted goes on.

    Raises
    ------
    UserError
        `out` holds something else, no image can be found, or they cannot be linked.
    """
    images, rows = open_to_export(run, source, link), run.trained["row"].tolist()
    targets = [out / "data" / (_id(row) + (path.suffix if (path := images.path(row)) else "")) for row in rows]
    with new_folder(out, run, f"fiftyone, {link}"):
        missing = put_images(images, rows, targets, link)
        with os_errors(out, "write to"):
            write_atomic(out / "labels.json", json.dumps(_labels(run, missing), indent=0).encode())
    say_missing(images, missing)
    return len(rows) - len(missing)


def _labels(run: FinishedRun, missing: Sequence[int]) -> dict[str, Any]:
    labels, table = {}, run.assignments
    for key, row, cluster, confidence in table[~table["row"].isin(missing)].itertuples(index=False, name=None):
        name = display_name(cluster, run.names)
        labels[_id(row)] = {
            "label": name,
            "confidence": round(float(confidence), 4),
            "attributes": {"key": key, "was": name},
        }
    return {"classes": sorted({label["label"] for label in labels.values()}), "labels": labels}


def _id(row: int) -> str:
    return f"{row:08d}"


@dataclass
class Tagged:
    """What was said in FiftyOne, as corrections; and how many of its samples are not of the run."""

    entries: list[Correction] = field(default_factory=list)
    strangers: int = 0


def read_fiftyone(run: FinishedRun, path: Path) -> Tagged:
    """What a person said in FiftyOne of an export of `run`; `path` is what ``dataset.write_json`` wrote.

    A label that was changed, and a tag (of a sample or of its label) that is the heading of a cluster, move the image
    there; a label that no cluster has, and a tag ``new: NAME``, make that cluster; ``removed`` takes the image out of
    all; any other tag is a note. What the run has by now is not said again.

    Raises
    ------
    UserError
        The file is something else, or an image is said to be in two clusters.
    """
    told, number = Tagged(), _numbers(run)
    home: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for label, tags in _samples(path):
        key = label["key"]
        if key not in run.place:
            told.strangers += 1
            continue
        name, others = _said(label, tags, number)
        if name:
            home[key] = name
        for tag in sorted(others):
            notes.setdefault(tag, []).append(key)
    told.entries = [*_moves(run, home, number), *_notes(run, notes)]
    return told


def _numbers(run: FinishedRun) -> dict[str, int]:
    """Clusters by what they are called."""
    merged = run.corrected.merged
    return {heading: cluster for cluster, heading in enumerate(run.headings) if cluster not in merged} | {GONE: REMOVED}


def _said(label: dict[str, Any], tags: set[str], number: dict[str, int]) -> tuple[str, set[str]]:
    """The cluster that a sample is said to be in, "" where nothing is said; and the tags that are notes."""
    wanted = {tag for tag in tags if tag in number or tag.startswith(NEW)}
    names = {tag.removeprefix(NEW).strip() for tag in wanted}
    if GONE in names and GONE not in wanted:
        raise UserError(
            f"{label['key']}: a cluster cannot be called {GONE!r}, as images in none are; choose another name"
        )
    if label["label"] != label.get("was"):
        names.add(label["label"])
    if len(names) > 1:
        one, other = sorted(names)[:2]
        raise UserError(f"{label['key']} is said to be both {one} and {other}; take one of the two away in FiftyOne")
    return names.pop() if names else "", tags - wanted


def _samples(path: Path) -> Iterator[tuple[dict[str, Any], set[str]]]:
    """The label that the export wrote, and the tags, of every sample that has one."""
    with os_errors(path, "read"):
        text = path.read_bytes()
    try:
        for sample in json.loads(text)["samples"]:
            for label in sample.values():
                if isinstance(label, dict) and isinstance(label.get("key"), str) and isinstance(label["label"], str):
                    yield label, {*map(str, sample.get("tags", ())), *map(str, label.get("tags", ()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not what `dataset.write_json` of FiftyOne writes; write it again") from None


def _moves(run: FinishedRun, home: dict[str, str], number: dict[str, int]) -> list[Correction]:
    cluster, made = run.corrected.cluster, run.clusters
    entries: list[Correction] = []
    for name in dict.fromkeys(home.values()):
        to = number.get(name, made)
        keys = [key for key, said in home.items() if said == name and cluster[run.place[key]] != to]
        if keys:
            entries.append(Remove(keys=keys) if to == REMOVED else Move(keys=keys, to=to))
        if to == made:
            entries.append(Rename(names={made: name}))
            made += 1
    return entries


def _notes(run: FinishedRun, notes: dict[str, list[str]]) -> list[Correction]:
    known = {(note.text, tuple(note.keys)) for note in run.corrected.notes}
    return [Note(text=tag, keys=keys) for tag, keys in notes.items() if (tag, tuple(keys)) not in known]
