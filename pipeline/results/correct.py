"""Taking corrections into a run: each is checked against what the run is by then, completed, and written down."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from sklearn.cluster import KMeans

from temi.cache.files import os_errors
from temi.cache.words import counted
from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import (
    Corrected,
    Correction,
    Different,
    Note,
    Redo,
    Rename,
    Same,
    Split,
    Undo,
    apply,
    contradictions,
    idle,
    parse_correction,
    positions,
    signed,
    visible_name,
)
from temi.pipeline.results.corrections_file import append_corrections, correction_lock, read_corrections
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.fitting import check_fits
from temi.pipeline.results.names import check_new_name

STARTS = 4  # of k-means in splitting a cluster


class ChangedElsewhere(UserError):
    """The run has corrections that the one who asks for more has not seen."""


def correct(
    run: FinishedRun, asked: Sequence[Correction], who: str = "", *, known: int | None = None
) -> list[Correction]:
    """Check and complete the entries `asked`, write them to the run, and return them as written; all or none.

    An entry that carries its time and that the run has already, as of a file given twice, is left out.
    `known` is how many entries of the run the one who asks has seen; None: no matter how many.

    Raises
    ------
    ChangedElsewhere
        The run has not `known` entries.
    UserError
        An entry names a cluster or an image that is not there, gives a name that another cluster has, has nothing to
        undo or redo, is a note on nothing, or says the opposite of earlier ones.
    """
    with correction_lock(run.folder):
        entries = read_corrections(run.folder)
        if known is not None and known != len(entries):
            raise ChangedElsewhere("the corrections changed elsewhere; reload the page")
        before, state = len(entries), run.replayed(entries)
        for number, entry in enumerate(asked, 1):
            if _is_there(entry, entries[:before]):
                continue
            try:
                entry = _complete(run, entries, state, entry)
            except UserError as error:
                where = f"correction {number} ({entry.action})" if len(asked) > 1 else entry.action
                raise UserError(f"{where}: {error}") from None
            entries.append(signed(entry, who))
            if isinstance(entry, Undo | Redo):
                state = run.replayed(entries)
        append_corrections(run.folder, entries[before:])
    run.forget_corrections()
    return entries[before:]


def read_file(path: Path) -> list[Correction]:
    """Entries of a file that the report saved or a person wrote: one JSON object a line."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file of corrections, one JSON object a line")
    try:
        with os_errors(path, "read"):
            text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a file of corrections, one JSON object a line") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]  # not at U+2028
    if not lines:
        raise UserError(f"{path} holds no correction; give one JSON object a line")
    return [parse_correction(line, f"line {number} of {path}") for number, line in lines]


def _is_there(entry: Correction, entries: Sequence[Correction]) -> bool:
    """Whether `entry` is one of `entries`: by its time, by what it says, and by who said it if it says that, too."""
    if not entry.when:
        return False
    same_time = (other for other in entries if other.when == entry.when)
    return any(_asked(other) == _asked(entry) and entry.who in ("", other.who) for other in same_time)


def _asked(entry: Correction) -> Correction:
    """What was asked for, without who said it and what completed it."""
    match entry:
        case Split(cluster=cluster, parts=parts, when=when):
            return Split(cluster=cluster, parts=parts, when=when)
        case Rename():
            entry = _shown(entry)
    return entry.model_copy(update={"who": ""})


def _shown(entry: Rename) -> Rename:
    """`entry` with its names as they are kept."""
    return entry.model_copy(update={"names": {c: visible_name(name) for c, name in entry.names.items()}})


def _complete(run: FinishedRun, entries: list[Correction], state: Corrected, entry: Correction) -> Correction:
    """`entry` with all it leaves open filled in, applied to `state`; UserError where it does not fit that."""
    check_fits(state, entry)
    match entry:
        case Undo() | Redo() if len(entries) in idle([*entries, entry]):
            raise UserError(f"there is nothing to {entry.action}")
        case Split():
            entry = _split(run, state, entry)
        case Rename(names=names):
            for cluster, name in names.items():
                check_new_name(cluster, name, "names")
            entry = _shown(entry)
        case Note(cluster=None, keys=[]):
            raise UserError("a note is on a cluster or on images; give it cluster or keys")
        case Note(keys=keys):
            positions(keys, run.place)
        case Same(keys=keys) | Different(keys=keys):
            positions(keys, run.place)
            _check_consistent([*entries, entry])
    apply(state, entry, run.place)
    return entry


def _check_consistent(entries: list[Correction]) -> None:
    if found := contradictions(entries):
        one, other = found[0]
        raise UserError(f"{one} and {other} would be both the same and different; undo one of the two first")


def _split(run: FinishedRun, state: Corrected, entry: Split) -> Split:
    """The parts of a cluster: the largest keeps its number."""
    members = np.flatnonzero(state.cluster == entry.cluster)
    if len(members) < entry.parts:
        raise UserError(
            f"cluster {entry.cluster} has {counted(len(members), 'image')}, too few for {entry.parts} parts"
        )
    part, center = split_rows(run.scaled[members], entry.parts)
    keys = run.trained["key"].to_numpy()[members]
    return Split(
        who=entry.who,
        when=entry.when,
        cluster=entry.cluster,
        parts=len(center),
        into=[entry.cluster, *range(state.clusters, state.clusters + len(center) - 1)],
        keys=[keys[part == number].tolist() for number in range(len(center))],
        centers=[[round(float(value), 5) for value in row] for row in center],
    )


def split_rows(
    scaled: Float32[np.ndarray, "n D"], parts: int
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "P D"]]:
    """The best of STARTS k-means of the rows, parts numbered by falling size, and their centers.

    Raises
    ------
    UserError
        There are fewer different rows than parts.
    """
    if len(np.unique(scaled, axis=0)) < parts:
        raise UserError(f"these images are too much alike to make {parts} parts of them")
    found = KMeans(parts, n_init=STARTS, random_state=0).fit(scaled)
    order = np.argsort(-np.bincount(found.labels_, minlength=parts), kind="stable")
    return np.argsort(order)[found.labels_].astype(np.int64), found.cluster_centers_[order].astype(np.float32)
