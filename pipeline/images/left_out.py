"""What a place holds beside its images: told in one line, and kept entry by entry in skipped.csv."""

import os
from collections.abc import Iterable, Sequence

from temi.cache.files import csv_bytes
from temi.cache.schema import MANIFEST, NEIGHBOR_FOLDER
from temi.pipeline.extras import install
from temi.pipeline.images.decode import HEIF_SUFFIXES, SUFFIXES
from temi.pipeline.images.source import ImageSource, Skipped

HIDDEN = "hidden"
SYSTEM = "folder of the system"
SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"}
)
LONGEST_SUFFIX = 8
EXPORTED = ".temi-export.json"  # in every folder of image files that `temi export` makes
INSIDE = frozenset({"checkpoints", "events", "plugins", "held-out", NEIGHBOR_FOLDER})  # folders of a run or a cache
NOUNS = ("link", "folder", "file")  # first words of reasons that are counted


def unwanted(name: str) -> str | None:
    """Why an entry called `name` is no photo, by its name alone; None where it may be one."""
    if name in SYSTEM_FOLDERS:
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


def made_by_temi(entries: Sequence[os.DirEntry[str]]) -> str | None:
    """Why a folder that holds `entries` is passed by: temi made it; None where it may hold a person's own images.

    Images in it are a person's, and so may be the folders beside a run: an --out may be the folder of a project.
    """
    names = {entry.name for entry in entries}
    if any(os.path.splitext(name)[1].lower() in SUFFIXES for name in names):
        return None
    if EXPORTED in names:
        return "folder that temi exported"
    if any((e.is_symlink() or e.is_dir(follow_symlinks=False)) and e.name not in INSIDE for e in entries):
        return None
    if {"config.toml", "environment.json", "checkpoints"} <= names:
        return "folder of a temi run"
    shards = (name.startswith("shard-") and name.endswith(".h5") for name in names)
    return "folder of a temi cache" if MANIFEST in names and any(shards) else None


def not_read(name: str) -> str:
    """Why a file called `name` is not read: its suffix, and what would read it."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in HEIF_SUFFIXES:
        return f"{suffix} ({install('heif')})"
    if not suffix or len(suffix) > LONGEST_SUFFIX or not suffix[1:].isalnum():
        return "file without a suffix that is known"
    return suffix


def found_beside(images: ImageSource) -> list[str]:
    """Lines that tell a person what is among the images or beside them that they may not expect."""
    return [*([left_out(images.skipped)] if images.skipped else []), *(f"note: {text}" for text in images.remarks)]


def left_out(skipped: Sequence[Skipped]) -> str:
    """One line: how many entries were left out for which reason; the entry itself where it is the only one."""
    groups: dict[str, list[str]] = {}
    for path, reason in skipped:
        groups.setdefault(reason, []).append(path)
    parts = [_counted(reason, paths) for reason, paths in sorted(groups.items(), key=lambda group: -len(group[1]))]
    return f"left out: {', '.join(parts)}"


def skipped_csv(skipped: Iterable[Skipped]) -> bytes:
    """The text of ``skipped.csv``: path, reason."""
    return csv_bytes([("path", "reason"), *skipped])


def _counted(reason: str, paths: list[str]) -> str:
    if len(paths) == 1:
        return f"1 {reason} [{paths[0]}]"
    noun, space, rest = reason.partition(" ")
    return f"{len(paths):,} {noun}{'s' * (noun in NOUNS)}{space}{rest}"
