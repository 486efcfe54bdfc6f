"""What `temi export` writes, by name; a user's own file adds a format by `EXPORTS.register`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from temi.cache.words import counted
from temi.pipeline.errors import UserError
from temi.pipeline.registry import EXPORTS
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.embedding_atlas import export_embedding_atlas
from temi.pipeline.results.export import export_datasets, export_folders, export_table
from temi.pipeline.results.fiftyone import export_fiftyone
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lance import export_lance
from temi.pipeline.results.lists import export_lists
from temi.pipeline.results.onnx import export_onnx

# The first of a suffix is written where the name of the file alone says what is wanted.
SUFFIXES = {
    "csv": ".csv",
    "parquet": ".parquet",
    "embedding-atlas": ".parquet",
    "json": ".json",
    "onnx": ".onnx",
    "lance": ".lance",
}


@dataclass(frozen=True)
class Wanted:
    """What an export is asked for beside its place.

    Attributes
    ----------
    link : how image files come into a folder: symlink, hardlink or copy
    images : where the images are, if they moved
    """

    link: str = "symlink"
    images: str | None = None


Export = Callable[[FinishedRun, Path, Wanted], str]  # writes, and says in a line what


def format_of(out: Path, asked: str | None) -> str:
    """What to write to `out`: what was asked for, or what its suffix says.

    Raises
    ------
    UserError
        The two contradict each other, or neither says it, or a file of another kind is there, which would be lost.
    """
    told = [name for name, suffix in SUFFIXES.items() if suffix == out.suffix.lower()]
    if not told and asked is None:
        endings = ", ".join(dict.fromkeys(SUFFIXES.values()))
        raise UserError(f"--out {out} does not say what to write; end it in {endings}, or give --format")
    if told and asked is not None and asked not in told:
        raise UserError(f"--out {out} is a {told[0]} file and --format asks for {asked}; change one of the two")
    if not told and asked in SUFFIXES and out.is_file():
        raise UserError(f"--out {out} is there already and may be a file of another kind; end it in {SUFFIXES[asked]}")
    return asked or told[0]


def _assigned(run: FinishedRun, out: Path, images: int) -> str:
    there, removed = run.clusters - len(run.gone), int((run.assignments["cluster"] == REMOVED).sum())
    empty, total = there - run.clusters_left, len(run.trained)
    count = counted(total - removed, "image") if images == total else f"{images:,} of {counted(total, 'image')}"
    told = f"{count} in {counted(there, 'cluster')}"
    without = f", {empty} of them empty" if empty else ""
    return f"{out}: {told}{without}{f'; {removed:,} removed from all' if removed else ''}"


def _table(kind: str) -> Export:
    return lambda run, out, wanted: _assigned(run, out, export_table(run, out, kind))


def _folders(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    return _assigned(run, out, export_folders(run, out, wanted.link, wanted.images))


def _datasets(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    return _assigned(run, out, export_datasets(run, out, wanted.images))


def _fiftyone(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    count = export_fiftyone(run, out, wanted.link, wanted.images)
    kind = "fiftyone.types.FiftyOneImageClassificationDataset"
    return f"{_assigned(run, out, count)}\nopen it: fiftyone.Dataset.from_dir({str(out)!r}, {kind})"


def _embedding_atlas(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    missing = export_embedding_atlas(run, out, wanted.images)
    pictures = f"no pictures: {missing}\n" if missing else ""
    shown = "" if missing else " --image image"
    told = f"embedding-atlas {out} --x x --y y --neighbors neighbors{shown}"
    return f"{_assigned(run, out, len(run.trained))}\n{pictures}open it: {told}"


def _lance(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    return _assigned(run, out, export_lance(run, out))


def _lists(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    return "\n".join(map(str, export_lists(run, out)))


def _onnx(run: FinishedRun, out: Path, wanted: Wanted) -> str:
    return f"{out}: differs from torch by at most {export_onnx(run.model, out):.1g}"


for kind in ("csv", "parquet", "json"):
    EXPORTS.register(kind, _table(kind))
EXPORTS.register("folders", _folders)
EXPORTS.register("datasets", _datasets)
EXPORTS.register("lists", _lists)
EXPORTS.register("fiftyone", _fiftyone)
EXPORTS.register("embedding-atlas", _embedding_atlas)
EXPORTS.register("lance", _lance)
EXPORTS.register("onnx", _onnx)
