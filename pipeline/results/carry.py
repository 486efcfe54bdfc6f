"""What a person said of one run, taken along into the run that learned it: names, marks, notes, images not kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Bool, Int64

from temi.cache.words import counted, first_of
from temi.pipeline.features.constraints import NOWHERE, distinct_pairs, together
from temi.pipeline.results.corrections import (
    REMOVED,
    Correction,
    Different,
    Move,
    Note,
    Remove,
    Rename,
    Same,
    in_force,
    signed,
)
from temi.pipeline.results.corrections_file import append_corrections, correction_lock
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import chosen_names
from temi.pipeline.start.agreement import contingency


@dataclass(frozen=True)
class Carried:
    """How far a run keeps what was said of an earlier one.

    Attributes
    ----------
    placed, learned : images that a person placed, and those of them that training put there; the others were moved. All
        are in the corrections of the new run, so that the next one keeps them too.
    names : clusters that kept their name
    lost : names whose cluster is spread over several
    broken : pairs marked as the same or as different that do not hold
    adrift : notes on clusters that hold no image any more
    others : of what else a person said, how much went along: removed images, marks, notes
    absent : images that a person spoke of and that the new run does not have
    lost_with : what was said of these, counted by its kind
    """

    placed: int
    learned: int
    names: int
    lost: Sequence[str]
    broken: Sequence[str]
    adrift: Sequence[str] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    absent: Sequence[str] = ()
    lost_with: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"corrections: of {counted(self.placed, 'image')} placed by hand training put {self.learned} there"]
        if self.learned < self.placed:
            lines[0] += f", {self.placed - self.learned} were moved"
        if self.names:
            lines.append(f"names: {self.names} taken along")
        if others := _counts(self.others):
            lines.append(f"taken along, too: {others}")
        if self.absent:
            count = counted(len(self.absent), "image that a person corrected is", "images that a person corrected are")
            lost = f"; lost with that: {counts}" if (counts := _counts(self.lost_with)) else ""
            lines.append(
                f"note: {count} not in this run: {first_of(self.absent)}{lost}"
                "; an image is known by its path, so a renamed file is another image"
            )
        if self.lost:
            lines.append(f"note: no cluster holds most of {', '.join(self.lost)}; name it anew")
        if self.broken:
            lines.append(
                f"note: marks that training follows only as far as the images let it, and that do not hold: "
                f"{first_of(self.broken, '; ')}; where a mark is right, move one of the two (temi serve RUN)"
            )
        if self.adrift:
            lines.append(f"note: no cluster is left for what was noted on one: {'; '.join(self.adrift)}")
        return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(counted(number, noun) for noun, number in counts.items() if number)


@dataclass(frozen=True)
class Kept:
    """Clusters of an earlier run as a person left them, beside those that a later training made of the same images.

    Attributes
    ----------
    then : (m,) cluster of each image that both have, as it was left; REMOVED where it is in none
    place : (m,) where the image is in the later run
    by_hand : (m,) whether a person said where the image belongs
    now : (m,) its cluster as trained
    shared : (B, C) images of each earlier cluster in each later one
    """

    then: Int64[np.ndarray, " m"]
    place: Int64[np.ndarray, " m"]
    by_hand: Bool[np.ndarray, " m"]
    now: Int64[np.ndarray, " m"]
    shared: Int64[np.ndarray, "B C"]

    @classmethod
    def of(
        cls, earlier: FinishedRun, place: Mapping[str, int], trained: Int64[np.ndarray, " n"], clusters: int
    ) -> Self:
        """Images are the same where their keys are; `place` is where each key is in `trained`."""
        state = earlier.corrected
        there = np.array([place.get(key, -1) for key in earlier.trained["key"]], dtype=np.int64)
        common = np.flatnonzero(there >= 0)
        then, now = state.cluster[common], trained[there[common]]
        inside = then != REMOVED
        shared = contingency(then[inside], now[inside], (state.clusters, clusters))
        return cls(then, there[common], state.by_hand[common], now, shared)

    @property
    def home(self) -> Int64[np.ndarray, " B"]:
        """The later cluster that holds most of each earlier one; NOWHERE where that is empty."""
        return np.where(self.shared.any(1), self.shared.argmax(1), NOWHERE)

    @property
    def left(self) -> Int64[np.ndarray, " m"]:
        """Clusters as a person wants them.

        An image that a person placed and that training put elsewhere is in the cluster that holds most of the images it
        was placed with; one that was taken out of all clusters is in none. Where training made more clusters than were
        left, it may be in any part of its own: a cluster that holds more images of it than of any other.
        """
        inside, home = self.then != REMOVED, self.home
        strays = self.by_hand & inside & (self.now != home[self.then])
        if self.shared.any(0).sum() > self.shared.any(1).sum():
            strays &= self.shared.argmax(0)[self.now] != self.then
        left = np.where(strays, home[self.then], self.now)
        return np.where(self.by_hand & ~inside, REMOVED, left)


def carry_over(earlier: FinishedRun, run: FinishedRun) -> Carried:
    """Write to `run` what was said of images of `earlier` that it has; once, if it has no corrections yet."""
    kept = Kept.of(earlier, run.place, run.trained["cluster"].to_numpy("int64"), run.model.clusters)
    keys, left = run.trained["key"].to_numpy()[kept.place], kept.left
    marks = _marks(earlier.corrections, run)
    written = kept.by_hand & ~((left == kept.now) & _parted(marks, kept, left, run))
    entries: list[Correction] = []
    for cluster in np.unique(left[written]):
        images = keys[written & (left == cluster)].tolist()
        entries.append(Remove(keys=images) if cluster == REMOVED else Move(keys=images, to=int(cluster)))
    given = chosen_names(earlier.corrected.names)
    names, lost = _names(given, kept.shared)
    entries += [Rename(names=names)] if names else []
    notes, adrift = _notes(earlier.corrected.notes, run, kept.home)
    entries += marks + notes
    if entries:
        with correction_lock(run.folder):
            run.forget_corrections()
            if not run.corrections:
                append_corrections(run.folder, [signed(entry) for entry in entries])
        run.forget_corrections()
    placed = kept.by_hand & (kept.then != REMOVED)
    learned = placed & (left == kept.now)
    others = {"removed image": int((kept.by_hand & ~placed).sum()), "mark": len(marks), "note": len(notes)}
    absent, lost_with = _absent(earlier, run, len(marks), len(notes) + len(adrift))
    return Carried(
        int(placed.sum()), int(learned.sum()), len(names), lost, _broken(run), adrift, others, absent, lost_with
    )


def _absent(earlier: FinishedRun, run: FinishedRun, marks: int, notes: int) -> tuple[list[str], dict[str, int]]:
    """Images of `earlier` that a person spoke of and `run` lacks, and how much was said of them, by its kind.

    `marks` and `notes` are those that are accounted for.
    """
    state, said = earlier.corrected, [e for e in in_force(earlier.corrections) if isinstance(e, Same | Different)]
    there = earlier.trained["key"].isin(run.trained["key"]).to_numpy()
    moved, removed = (state.by_hand & ~there & ((state.cluster == REMOVED) == out) for out in (False, True))
    keys = earlier.trained["key"][moved | removed].tolist()
    keys += [key for entry in [*said, *state.notes] for key in entry.keys if key not in run.place]
    lost = {"placement": int(moved.sum()), "removal": int(removed.sum())}
    lost |= {"mark": len(said) - marks, "note": len(state.notes) - notes}
    return list(dict.fromkeys(keys)), lost


def _names(names: dict[int, str], shared: Int64[np.ndarray, "B C"]) -> tuple[dict[int, str], list[str]]:
    """Names by new cluster, where most of the one is in the other and the other way round; and those that are left."""
    found: dict[int, str] = {}
    for cluster, name in names.items():
        new = int(shared[cluster].argmax())
        overlap = shared[cluster, new]
        if 2 * overlap > max(shared[cluster].sum(), shared[:, new].sum()):
            found[new] = name
    return found, [name for name in names.values() if name not in found.values()]


def _marks(entries: Sequence[Correction], run: FinishedRun) -> list[Correction]:
    """Marks of pairs whose images are both there."""
    return [
        entry
        for entry in in_force(entries)
        if isinstance(entry, Same | Different) and all(key in run.place for key in entry.keys)
    ]


def _parted(
    marks: Sequence[Correction], kept: Kept, left: Int64[np.ndarray, " m"], run: FinishedRun
) -> Bool[np.ndarray, " m"]:
    """Images that a person placed with others, marked as the same, and that are in several parts of their cluster now.

    To write down where they are would contradict the mark.
    """
    pairs = [(run.place[mark.keys[0]], run.place[mark.keys[1]]) for mark in marks if isinstance(mark, Same)]
    group = together(distinct_pairs(pairs), len(run.place))[kept.place]
    apart = np.zeros(len(left), dtype=bool)
    for number in np.unique(group[np.isin(kept.place, pairs)]):
        placed = (group == number) & kept.by_hand & (left != REMOVED)
        apart |= placed & (len(np.unique(left[placed])) > 1)
    return apart


def _notes(
    notes: Sequence[Note], run: FinishedRun, home: Int64[np.ndarray, " B"]
) -> tuple[list[Correction], list[str]]:
    """Notes with the clusters and images that are there; and the texts of those on clusters that are not."""
    kept: list[Correction] = []
    adrift: list[str] = []
    for note in notes:
        keys = [key for key in note.keys if key in run.place]
        number = None if note.cluster is None or home[note.cluster] == NOWHERE else int(home[note.cluster])
        if number is not None or keys:
            kept.append(note.model_copy(update={"keys": keys, "cluster": number}))
        elif note.cluster is not None:
            adrift.append(note.text)
    return kept, adrift


def _broken(run: FinishedRun) -> list[str]:
    cluster, found = run.corrected.cluster, []
    for entry in in_force(run.corrections):
        if isinstance(entry, Same | Different):
            one, other = (cluster[run.place[key]] for key in entry.keys)
            if (one == other) != isinstance(entry, Same):
                found.append(f"{entry.keys[0]} and {entry.keys[1]} are {'the same' if one != other else 'different'}")
    return found
