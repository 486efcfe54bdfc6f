"""What a person put right in a run: entries, and what they make of the assignments.

Undo and redo are entries too. Images are named by their keys, so that entries mean the same beside another cache of
them. `corrections_file` keeps them.
"""

import getpass
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from temi.cache.files import first_problem
from temi.pipeline.errors import UserError

REMOVED = -1  # cluster of an image that a person took out of all clusters
MAX_LENGTH = 120  # characters of a name: it is a heading and part of a folder's name
MAX_NOTE = 2000
MAX_PARTS = 50

Cluster = Annotated[int, Field(ge=0, strict=True)]
Keys = Annotated[list[str], Field(min_length=1)]


class Entry(BaseModel):
    """One thing that a person said; `who` and `when` (ISO 8601, UTC) are filled in where they are empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    who: str = Field("", max_length=MAX_LENGTH)
    when: str = Field("", max_length=40)


class Merge(Entry):
    """These clusters are one; it keeps the number of the first."""

    action: Literal["merge"] = "merge"
    clusters: Annotated[list[Cluster], Field(min_length=2)]


class Split(Entry):
    """This cluster is several.

    Asked for by a number of `parts`; what is recorded holds the outcome: the images, the cluster and the center (of
    scaled embeddings) of each part.
    """

    action: Literal["split"] = "split"
    cluster: Cluster
    parts: int = Field(2, ge=2, le=MAX_PARTS, strict=True)
    into: list[Cluster] = []
    keys: list[Keys] = []
    centers: list[list[float]] = []


class Move(Entry):
    """These images belong to cluster `to`; the first number that no cluster has makes a new one."""

    action: Literal["move"] = "move"
    keys: Keys
    to: Cluster


class Remove(Entry):
    """These images belong to no cluster."""

    action: Literal["remove"] = "remove"
    keys: Keys


class Same(Entry):
    """These two images belong together, whatever the cluster."""

    action: Literal["same"] = "same"
    keys: Annotated[list[str], Field(min_length=2, max_length=2)]


class Different(Entry):
    """These two images do not belong together."""

    action: Literal["different"] = "different"
    keys: Annotated[list[str], Field(min_length=2, max_length=2)]


class Rename(Entry):
    """Names by cluster; an empty one takes a name away."""

    action: Literal["rename"] = "rename"
    names: Annotated[dict[Cluster, Annotated[str, Field(max_length=MAX_LENGTH)]], Field(min_length=1)]


class Note(Entry):
    """A remark on a cluster, or on images."""

    action: Literal["note"] = "note"
    text: Annotated[str, Field(min_length=1, max_length=MAX_NOTE)]
    cluster: Cluster | None = None
    keys: list[str] = []


class Undo(Entry):
    """The last entry in force is taken back."""

    action: Literal["undo"] = "undo"


class Redo(Entry):
    """The entry taken back last is in force again."""

    action: Literal["redo"] = "redo"


_CLUSTER = "the number of a cluster, 0 or more"
_FIELDS = {  # what each field is, for who wrote a line by hand
    "cluster": _CLUSTER,
    "to": _CLUSTER,
    "clusters": "a list of two or more numbers of clusters",
    "keys": "a list of one or more names of images",
    "names": f"an object of names by cluster, each of at most {MAX_LENGTH} characters",
    "text": f"a note of 1 to {MAX_NOTE} characters",
    "into": "a list of the numbers of the parts",
    "centers": "a list of the centers of the parts",
    "who": f"text of at most {MAX_LENGTH} characters",
    "when": "text of at most 40 characters",
}
_KEYS = {  # what "keys" is where it is no such list
    "same": "a list of the names of two images",
    "different": "a list of the names of two images",
    "note": "a list of names of images",
    "split": "a list of the names of images of each part",
}
_ACTIONS = "merge, split, move, remove, same, different, rename, note, undo, redo"

Correction = Merge | Split | Move | Remove | Same | Different | Rename | Note | Undo | Redo
_READER: TypeAdapter[Correction] = TypeAdapter(Annotated[Correction, Field(discriminator="action")])


def parse_correction(line: str | bytes, where: object) -> Correction:
    """The entry in one line of JSON; a UserError that says what is wrong `where`."""
    try:
        return _READER.validate_json(line)
    except ValidationError as error:
        raise UserError(f"{where}: {_plainly(first_problem(error)[1])}; correct or remove it") from None


def _plainly(problem: ErrorDetails) -> str:
    """What is wrong with an entry, in words for a person."""
    if problem["type"] == "json_invalid":
        return "it is not whole JSON"
    if problem["type"] == "union_tag_invalid":
        return f"{problem['ctx']['tag']!r} is no action; they are {_ACTIONS}"
    if problem["type"] == "union_tag_not_found":
        return f"it needs an 'action'; they are {_ACTIONS}"
    if len(problem["loc"]) < 2:
        return "it is no JSON object"
    action, name = map(str, problem["loc"][:2])
    if problem["type"] == "extra_forbidden":
        return f"{action} has no {name!r}"
    if name == "parts":
        return f"a cluster is split into 2 to {MAX_PARTS} parts"
    words = _KEYS.get(action, _FIELDS["keys"]) if name == "keys" else _FIELDS[name]
    return f"{action} needs {name!r}, {words}" if problem["type"] == "missing" else f"{name!r} is {words}"


def signed(entry: Correction, who: str = "") -> Correction:
    """`entry` with its author and its time, where they are not there yet: `who`, or the user of this process."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return entry.model_copy(update={"who": entry.who or who or _user(), "when": entry.when or now})


def _user() -> str:
    with suppress(OSError, KeyError):  # no name for this user id, as in some containers
        return getpass.getuser()[:MAX_LENGTH]
    return ""


def to_json(entry: Correction) -> dict[str, Any]:
    """An entry as it stands in the file."""
    return {"action": entry.action} | entry.model_dump(mode="json", exclude_defaults=True)


def in_force(entries: Iterable[Correction]) -> list[Correction]:
    """The entries that are not undone, without undo and redo themselves."""
    return _history(entries)[0]


def idle(entries: Iterable[Correction]) -> list[int]:
    """Positions of the undos and redos that find nothing to undo or redo."""
    return _history(entries)[1]


def _history(entries: Iterable[Correction]) -> tuple[list[Correction], list[int]]:
    done: list[Correction] = []
    undone: list[Correction] = []
    idle: list[int] = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, Undo | Redo):
            done.append(entry)
            undone.clear()
            continue
        taken, given = (done, undone) if isinstance(entry, Undo) else (undone, done)
        if taken:
            given.append(taken.pop())
        else:
            idle.append(position)
    return done, idle


@dataclass
class Corrected:
    """Assignments as a person left them.

    Attributes
    ----------
    cluster : (n,) REMOVED where an image is in none
    clusters : how many numbers there are, those of clusters merged into others included
    by_hand : (n,) whether a person said where the image belongs
    merged : numbers of clusters that are part of others
    names : by cluster
    notes : remarks, each with its cluster or keys
    """

    cluster: Int64[np.ndarray, " n"]
    clusters: int
    by_hand: Bool[np.ndarray, " n"]
    merged: set[int] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def replay(
    keys: Sequence[str],
    cluster: Int64[np.ndarray, " n"],
    clusters: int,
    entries: Iterable[Correction],
    names: dict[int, str] | None = None,
    place: dict[str, int] | None = None,
) -> Corrected:
    """`entries`, one after another, on assignments of `keys` to `clusters` clusters, which have `names`.

    `place` is where each key is, where that is known already.

    Raises
    ------
    UserError
        An entry names an image that is not among `keys`.
    """
    state = Corrected(cluster.copy(), clusters, np.zeros(len(cluster), dtype=bool), names=dict(names or {}))
    effective = in_force(entries)
    if effective and place is None:
        place = {key: position for position, key in enumerate(keys)}
    for entry in effective:
        apply(state, entry, place or {})
    return state


def replay_clusters(clusters: int, entries: Iterable[Correction], names: dict[int, str] | None = None) -> Corrected:
    """What `entries` make of clusters alone, their numbers and names; of no image."""
    none = np.zeros(0, dtype=np.int64)
    return replay([], none, clusters, map(without_images, entries), names)


def without_images(entry: Correction) -> Correction:
    """What `entry` says of clusters alone."""
    match entry:
        case Split():
            return entry.model_copy(update={"keys": [[] for _ in entry.into]})
        case Move() | Remove():
            return entry.model_copy(update={"keys": []})
    return entry


def apply(state: Corrected, entry: Correction, place: dict[str, int]) -> None:
    """One entry in force, on `state`; `place` is where each key is."""
    match entry:
        case Merge(clusters=[first, *others]):
            state.cluster[np.isin(state.cluster, others)] = first
            state.merged |= set(others)
            lost = [state.names.pop(other) for other in others if other in state.names]
            if lost:
                state.names.setdefault(first, lost[0])
            state.notes = [
                note.model_copy(update={"cluster": first}) if note.cluster in others else note for note in state.notes
            ]
        case Split():
            for part, images in zip(entry.into, entry.keys, strict=True):
                state.cluster[positions(images, place)] = part
            state.clusters = max(state.clusters, *(part + 1 for part in entry.into))
        case Move():
            _set_by_hand(state, positions(entry.keys, place), entry.to)
            state.clusters = max(state.clusters, entry.to + 1)
        case Remove():
            _set_by_hand(state, positions(entry.keys, place), REMOVED)
        case Rename():
            given = {cluster: visible_name(name) for cluster, name in entry.names.items()}
            state.names = {c: name for c, name in (state.names | given).items() if name}
        case Note():
            state.notes.append(entry)


def visible_name(name: str) -> str:
    """`name` without space around it; "" where nothing of it shows, as of zero-width characters."""
    name = name.strip()
    return name if any(unicodedata.category(character)[0] not in "CZ" for character in name) else ""


def _set_by_hand(state: Corrected, images: Int64[np.ndarray, " m"], cluster: int) -> None:
    state.cluster[images] = cluster
    state.by_hand[images] = True


def positions(keys: Iterable[str], place: dict[str, int]) -> Int64[np.ndarray, " m"]:
    """Where images are, by key; UserError where one is not there."""
    try:
        return np.array([place[key] for key in keys], dtype=np.int64)
    except KeyError as error:
        raise UserError(f"image {error.args[0]!r} is not in this run; correct or remove the entry") from None


def route(
    entries: Iterable[Correction], cluster: Int64[np.ndarray, " n"], scaled: Float32[np.ndarray, "n D"]
) -> Int64[np.ndarray, " n"]:
    """Clusters of new images as merges and splits leave them: of a split cluster, the part of the nearest center."""
    cluster = cluster.copy()
    for entry in in_force(entries):
        match entry:
            case Merge(clusters=[first, *others]):
                cluster[np.isin(cluster, others)] = first
            case Split():
                members = np.flatnonzero(cluster == entry.cluster)
                center = np.asarray(entry.centers, dtype=np.float32)
                distance = ((scaled[members, None] - center[None]) ** 2).sum(-1)
                cluster[members] = np.asarray(entry.into)[distance.argmin(1)]
    return cluster


def merged(entries: Iterable[Correction], cluster: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Numbers of clusters as merges alone leave them."""
    cluster = cluster.copy()
    for entry in in_force(entries):
        if isinstance(entry, Merge):
            cluster[np.isin(cluster, entry.clusters[1:])] = entry.clusters[0]
    return cluster


def contradictions(entries: Iterable[Correction]) -> list[tuple[str, str]]:
    """Pairs marked as different that pairs marked as the same join, directly or by way of others."""
    effective = in_force(entries)
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while (above := root.get(key, key)) != key:
            key = above
        return key

    for entry in effective:
        if isinstance(entry, Same):
            root[find(entry.keys[0])] = find(entry.keys[1])
    apart = [entry.keys for entry in effective if isinstance(entry, Different)]
    return [(one, other) for one, other in apart if find(one) == find(other)]
