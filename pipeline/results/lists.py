"""Images worth a look, as lists: duplicates, unsure ones, unusual ones, and those to label next."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float16, Float32, Int32, Int64
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans

from temi.cache.files import csv_bytes, nameless_memory, os_errors, write_atomic
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.cache.words import counted
from temi.pipeline.config import recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.features.blocks import Embeddings, collect, enumerate_blocks
from temi.pipeline.features.features import Features
from temi.pipeline.results.corrections import REMOVED, merged
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import display_name
from temi.pipeline.results.thumbnails import kept_oddities

REFERENCE = 5  # the neighbor whose distance says how far apart images are that are not copies
DEVIATIONS = 4.0  # robust deviations of the logarithm of that distance below its median: closer are near-duplicates
CLOSEST = 1e-3  # cosine distance that float16 similarities cannot tell from none
ODDS = 2.0  # unsure: the first cluster is less than twice as likely as the second
BLOCK_ROWS = 1024  # rows compared at a time
LABELED = 50  # images to label next, where nobody says how many
UNUSUAL_SHARE = 0.01  # of images that are least like others

LISTS = {
    "duplicates": ["group", "key", "cluster", "name", "kind"],
    "unsure": ["key", "cluster", "name", "confidence", "second", "second_name", "second_confidence"],
    "unusual": ["key", "cluster", "name", "reason", "similarity"],
}


@dataclass(frozen=True)
class Evidence:
    """What a run knows of its images beyond their cluster; rows as in its assignments.

    Attributes
    ----------
    second, second_confidence : (n,) the second likeliest cluster, as trained, and its probability
    neighbor, similarity : (n, K) positions of the most similar images, and cosines of scaled embeddings
    group : (n,) number of the group of near-duplicates, -1 where an image is in none
    exact : (n,) number of the set of equal embeddings, -1 where no other is equal
    """

    second: Int64[np.ndarray, " n"]
    second_confidence: Float32[np.ndarray, " n"]
    neighbor: Int32[np.ndarray, "n K"]
    similarity: Float16[np.ndarray, "n K"]
    group: Int64[np.ndarray, " n"]
    exact: Int64[np.ndarray, " n"]

    @property
    def likeness(self) -> Float32[np.ndarray, " n"]:
        """Cosine to the fifth nearest image: one stray copy does not make an image usual."""
        return self.similarity[:, min(REFERENCE, self.similarity.shape[1]) - 1].astype(np.float32)


def evidence(run: FinishedRun) -> Evidence:
    """Gather it; the neighbor graph is that of the training, where it was of the same images."""
    rows = run.trained["row"].to_numpy("int64")
    settings = recorded_config(run.files.config).neighbors
    k = min(settings.k, len(rows) - 1)
    features = Features.of_cache(run.cache, rows, run.folder / NEIGHBOR_FOLDER)
    neighbor, similarity = features.neighbors(k, settings.scale)
    second, second_confidence = runner_up(run, features.embedding)
    mapped = on_disk(features.embedding, run.folder if os.access(run.folder, os.W_OK) else None)
    group = duplicate_groups(neighbor, full_cosines(mapped, neighbor))
    exact = repeated(features.copies[1])
    return Evidence(second, second_confidence, neighbor, similarity, joined(group, exact), exact)


def on_disk(embedding: Embeddings, folder: Path | None) -> Float16[np.ndarray, "n D"]:
    """The rows in a `nameless_memory`: any can be read, and the system keeps in memory what fits."""
    memory = nameless_memory(folder, 2 * math.prod(embedding.shape), "keep embeddings in")
    mapped = np.frombuffer(memory, np.float16).reshape(embedding.shape)
    for first, block in enumerate_blocks(embedding):
        mapped[first : first + len(block)] = block.numpy(force=True)
    return mapped


def runner_up(run: FinishedRun, embedding: Embeddings) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The second likeliest cluster of each image and its probability; of one cluster alone, that one and 0."""
    if run.model.clusters < 2:
        return np.zeros(len(embedding), np.int64), np.zeros(len(embedding), np.float32)
    best = (run.model.consensus(probability).topk(2) for _, probability in run.model.blocks(embedding))
    columns = ([values[:, 1], index[:, 1]] for values, index in best)
    confidence, second = collect(columns, [len(embedding)] * 2)
    return second.cpu().numpy().astype(np.int64), confidence.cpu().numpy().astype(np.float32)


def full_cosines(
    embedding: Float16[np.ndarray, "n D"], neighbor: Int32[np.ndarray, "n K"]
) -> Float16[np.ndarray, "n K"]:
    """Cosines of rows and their neighbors before any scaling, which leaves out what tells a copy from a relative."""
    found = np.empty(neighbor.shape, dtype=np.float16)
    # float16 holds the squares of neither large nor small values; einsum widens a few at a time
    square = np.einsum("nd,nd->n", embedding, embedding, dtype=np.float32)
    norm = np.maximum(np.sqrt(square), 1e-12)[:, None]
    for start in range(0, len(embedding), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        unit = embedding[rows] / norm[rows]
        near = embedding[neighbor[rows]] / norm[neighbor[rows]]
        found[rows] = np.einsum("nd,nkd->nk", unit, near)
    return found


def duplicate_distance(similarity: Float[np.ndarray, "n K"]) -> float:
    """Cosine distance below which two images of these are near-duplicates.

    Distances to the fifth neighbor are about log-normal; a pair that is closer than all but a few in 100,000 of them
    would be is no coincidence. Robust against up to half of the images having four copies each.
    """
    far = np.log(np.maximum(1 - similarity[:, min(REFERENCE, similarity.shape[1]) - 1].astype(np.float64), CLOSEST))
    middle = float(np.median(far))
    deviation = 1.4826 * float(np.median(np.abs(far - middle)))
    return max(float(np.exp(middle - DEVIATIONS * deviation)), CLOSEST)


def duplicate_groups(
    neighbor: Int32[np.ndarray, "n K"], similarity: Float16[np.ndarray, "n K"]
) -> Int64[np.ndarray, " n"]:
    """Number of the group of near-duplicates of each image, -1 for an image without one.

    Two images are near-duplicates if they are closer than `duplicate_distance`, and than half of what is usual around
    both of them: photos of one catalog are all alike.
    """
    distance = np.maximum(1 - similarity.astype(np.float32), CLOSEST)
    around = np.median(np.sort(distance, axis=1)[:, distance.shape[1] // 2 :], axis=1)
    usual = np.minimum(around[:, None], around[neighbor])
    close = (distance <= duplicate_distance(similarity)) & ((distance <= usual / 2) | (distance <= CLOSEST))
    one, place = np.nonzero(close)
    return _components(one, neighbor[one, place], len(neighbor))


def repeated(group: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Groups of more than one, renumbered; -1 for a row that is alone in its group."""
    return _numbered(np.where(np.bincount(group)[group] > 1, group, -1))


def joined(one: Int64[np.ndarray, " n"], other: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Groups that are whole wherever either of two groupings is."""
    ends = []
    for grouping in (one, other):
        members = np.flatnonzero(grouping >= 0)
        first = np.full(grouping.max(initial=-1) + 1, -1)
        first[grouping[members][::-1]] = members[::-1]
        ends.append((members, first[grouping[members]]))
    return _components(np.concatenate([ends[0][0], ends[1][0]]), np.concatenate([ends[0][1], ends[1][1]]), len(one))


def _components(one: np.ndarray, other: np.ndarray, count: int) -> Int64[np.ndarray, " n"]:
    graph = sp.coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    return repeated(connected_components(graph, directed=False)[1])


def _numbered(group: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Groups renumbered 0, 1, ... in the order of their first members; -1 stays."""
    numbers: dict[int, int] = {-1: -1}
    return np.array([numbers.setdefault(int(g), len(numbers) - 1) for g in group], dtype=np.int64)


def unsure_images(confidence: Float32[np.ndarray, " n"], second: Float32[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Images whose first cluster is less than ODDS times as likely as their second, the closest calls first."""
    found = np.flatnonzero(confidence < ODDS * second)
    return found[np.argsort(confidence[found] - second[found], kind="stable")]


def unusual_images(likeness: Float32[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """The UNUSUAL_SHARE of images least like others, the least first."""
    return np.argsort(likeness, kind="stable")[: max(1, round(UNUSUAL_SHARE * len(likeness)))]


def label_next(
    scaled: Float32[np.ndarray, "n D"],
    cluster: Int64[np.ndarray, " n"],
    likeness: Float32[np.ndarray, " n"],
    count: int,
) -> Int64[np.ndarray, " count"]:
    """The `count` images whose labels would teach most, those of large clusters first.

    TypiClust (Hacohen et al. 2022, algorithm 1): as many parts as labels can be paid for, and of each part the most
    typical image, the one whose neighbors are closest. Parts here are k-means parts of the clusters, the next label
    always going to the cluster with most images per label.
    """
    size = np.bincount(cluster[cluster != REMOVED])
    share = np.zeros(len(size), dtype=np.int64)
    for _ in range(min(count, int(size.sum()))):
        share[np.where(share < size, size / (share + 1), 0).argmax()] += 1
    chosen = []
    for number in np.argsort(-size, kind="stable"):
        members = np.flatnonzero(cluster == number)
        chosen += [members[part] for part in _typical_of_parts(scaled[members], likeness[members], share[number])]
    return np.array(chosen, dtype=np.int64)


def _typical_of_parts(scaled: Float32[np.ndarray, "n D"], likeness: Float32[np.ndarray, " n"], parts: int) -> list[int]:
    if parts == 0:
        return []
    distinct = len(np.unique(scaled, axis=0))
    part = KMeans(min(parts, distinct), n_init=1, random_state=0).fit_predict(scaled)
    best = [int(np.flatnonzero(part == p)[likeness[part == p].argmax()]) for p in range(min(parts, distinct))]
    rest = [int(i) for i in np.argsort(-likeness, kind="stable") if i not in set(best)]
    return best + rest[: parts - len(best)]


def write_lists(run: FinishedRun, known: Evidence, folder: Path, odd: Mapping[int, str]) -> list[Path]:
    """duplicates.csv, unsure.csv and unusual.csv in `folder`; `odd` says what is wrong with the pixels of an image."""
    rows = {
        "duplicates": _duplicate_rows(run, known),
        "unsure": _unsure_rows(run, known),
        "unusual": _unusual_rows(run, known, odd),
    }
    return [_write(folder / f"{name}.csv", rows[name], columns) for name, columns in LISTS.items()]


def refuse_other_lists(folder: Path) -> None:
    """Raise a UserError where `folder` holds a file of a person's own under the name of a list."""
    for name, columns in LISTS.items():
        path, head = folder / f"{name}.csv", ",".join(columns).encode() + b"\n"
        with os_errors(path, "read"):
            if not path.exists():
                continue
            with path.open("rb") as file:
                ours = file.read(len(head)) == head
        if not ours:
            raise UserError(f"{path} would be replaced, and temi did not write it; move it, or give another --out")


def export_lists(run: FinishedRun, folder: Path) -> list[Path]:
    """The lists in `folder`; of pixels, what is known from small pictures that were made before."""
    refuse_other_lists(folder)
    return write_lists(run, evidence(run), folder, kept_oddities(run))


def write_label_next(run: FinishedRun, count: int | None, out: Path | None) -> None:
    """key, cluster and name of `label_next`'s choice, as CSV to `out` or the standard output.

    Images that a person has placed are not asked for again. `count` None: LABELED images, or all where there are fewer.
    """
    cluster = run.corrected.cluster
    if not (cluster != REMOVED).any():
        raise UserError(f"{run.folder}: all images were taken out of their clusters; put back those to choose from")
    unsaid = np.where(run.corrected.by_hand, REMOVED, cluster)
    there = int((unsaid != REMOVED).sum())
    if there == 0:
        raise UserError(f"{run.folder}: a person has placed every image, so no label is left to ask for")
    if count is None:
        count = min(LABELED, there)
    if not 1 <= count <= there:
        raise UserError(
            f"--count {count}: {run.folder} has {counted(there, 'image')} to choose from; ask for 1 to {there}"
        )
    chosen = label_next(run.scaled, unsaid, evidence(run).likeness, count)
    rows = [_common(run, int(image)) for image in chosen]
    if out is None:
        print(_csv(rows, ["key", "cluster", "name"]).decode(), end="")
    else:
        print(f"{_write(out, rows, ['key', 'cluster', 'name'])}: {counted(len(rows), 'image')} to label")


def _common(run: FinishedRun, image: int) -> dict[str, Any]:
    cluster = int(run.corrected.cluster[image])
    return {"key": run.trained["key"].iat[image], "cluster": cluster, "name": display_name(cluster, run.names)}


def _duplicate_rows(run: FinishedRun, known: Evidence) -> list[dict[str, Any]]:
    grouped = np.flatnonzero(known.group >= 0)
    kind = np.where(known.exact >= 0, "exact", "near")
    return [
        {"group": known.group[image], **_common(run, int(image)), "kind": kind[image]}
        for image in grouped[np.argsort(known.group[grouped], kind="stable")]
    ]


def _unsure_rows(run: FinishedRun, known: Evidence) -> list[dict[str, Any]]:
    confidence = run.assignments["confidence"].to_numpy("float32")
    second = merged(run.corrections, known.second)
    runner = np.where(second == run.corrected.cluster, 0, known.second_confidence).astype(np.float32)
    return [
        _common(run, int(image))
        | {"confidence": f"{confidence[image]:.4f}", "second": second[image]}
        | {"second_name": display_name(int(second[image]), run.names), "second_confidence": f"{runner[image]:.4f}"}
        for image in unsure_images(confidence, runner)
    ]


def _unusual_rows(run: FinishedRun, known: Evidence, odd: Mapping[int, str]) -> list[dict[str, Any]]:
    likeness = known.likeness
    strange = set(map(int, unusual_images(likeness)))
    told = {
        image: [*(["unlike the others"] if image in strange else []), *([odd[image]] if image in odd else [])]
        for image in strange | set(odd)
    }
    return [
        _common(run, image) | {"reason": ", ".join(told[image]), "similarity": f"{likeness[image]:.4f}"}
        for image in sorted(told, key=lambda image: likeness[image])
    ]


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    return csv_bytes([columns, *([row[name] for name in columns] for row in rows)])


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Path:
    with os_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _csv(rows, columns))
    return path
