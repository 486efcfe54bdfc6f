"""What a finished run hands to one that continues it: its clusters as a person left them, and their names."""

from dataclasses import replace
from pathlib import Path

from temi.pipeline.results.corrections import (
    REMOVED,
    Different,
    Merge,
    Move,
    Note,
    Remove,
    Rename,
    Same,
    Split,
    in_force,
    signed,
)
from temi.pipeline.results.corrections_file import append_corrections, correction_lock, read_corrections
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import chosen_names
from temi.pipeline.runs.continued import CONTINUED, Before, Continued
from temi.pipeline.runs.novelty import NOVELTY, Novelty
from temi.pipeline.runs.records import read_record


def open_before(folder: Path) -> Before:
    """The finished run in `folder`, for `train_heads(..., before=...)`."""
    run = FinishedRun(folder)
    cluster = dict(zip(run.assignments["key"], run.assignments["cluster"].astype(int), strict=True))
    return Before(folder, cluster, run.clusters, run.model, Novelty.load(folder / NOVELTY))


def keep_removed(before: Before, corrected: FinishedRun) -> Before:
    """`before`, where images that a person took out of all clusters in `corrected` stay out: they do not move."""
    table = corrected.assignments
    return replace(before, removed=frozenset(table["key"][table["cluster"] == REMOVED]))


def corrections_left_behind(folder: Path) -> int:
    """How many merges, splits, moves and removals of the run in `folder` one that continues it does not have."""
    return sum(isinstance(entry, Merge | Split | Move | Remove) for entry in in_force(read_corrections(folder)))


def remarks_left_behind(folder: Path) -> int:
    """How many marks and notes of the run in `folder` one that continues it does not have."""
    return sum(isinstance(entry, Same | Different | Note) for entry in in_force(read_corrections(folder)))


def hand_on_names(before: Path, run: Path) -> Continued:
    """Give the clusters of `run` that kept their numbers the names that they had in `before`; once."""
    continued = read_record(Continued, run / CONTINUED)
    named = FinishedRun(before).outline.names
    names = chosen_names({number: named.get(number, "") for number in continued.kept})
    if names:
        with correction_lock(run):
            if not read_corrections(run):
                append_corrections(run, [signed(Rename(names=names))])
    return continued
