"""The assignments of a run in forms that other programs read. Originals are never moved or changed."""

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from temi.cache.files import os_errors, write_atomic
from temi.cache.words import counted, first_of
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.decode import picture
from temi.pipeline.images.left_out import EXPORTED
from temi.pipeline.progress import Progress, say
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import display_name
from temi.pipeline.runs.csv_table import table_csv

SHARD_BYTES = 256 * 2**20  # of image data per Parquet file of a `datasets` folder
COMPLETE: dict[str, object] = {"complete": True}  # what stands in EXPORTED once nothing is left to do
LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symlink": lambda original, target: os.symlink(original.resolve(), target),
    "hardlink": os.link,
    "copy": shutil.copyfile,
}


def export_table(run: FinishedRun, out: Path, kind: str) -> int:
    """key, cluster, name and confidence of every image; `kind` is csv, parquet or json (a list of objects)."""
    table = run.assignments[["key", "cluster", "confidence"]].copy()
    table.insert(2, "name", [display_name(cluster, run.names) for cluster in table["cluster"]])
    match kind:
        case "csv":
            data = table_csv({name: table[name].tolist() for name in table})
        case "parquet":
            data = table.to_parquet(index=False)
        case _:
            rows = table.round({"confidence": 4}).to_dict("records")
            data = (json.dumps(rows, ensure_ascii=False, indent=0) + "\n").encode()
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, data)
    return len(table)


def export_folders(run: FinishedRun, out: Path, link: str, source: str | None = None) -> int:
    """A folder per cluster in `out`, with every image of it under its own path, by symlink, hardlink or copy.

    Images that are no files of their own (a torchvision data set, a tar file) can be copied, as PNG. Those that are no
    longer there are left out, which is said; how many images are there is returned. What was interrupted goes on.

    Raises
    ------
    UserError
        `out` holds something else, no image can be found, or they cannot be linked.
    """
    images = open_to_export(run, source, link)
    gone = run.gone
    folders = {
        cluster: out / folder_name(cluster, name) for cluster, name in enumerate(run.names) if cluster not in gone
    }
    if (run.assignments["cluster"] == REMOVED).any():
        folders[REMOVED] = out / "removed"
    targets = [
        inside(folders[cluster], key)
        for key, cluster in zip(run.assignments["key"], run.assignments["cluster"], strict=True)
    ]
    with new_folder(out, run, f"folders, {link}"):
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        missing = put_images(images, run.assignments["row"], targets, link)
    say_missing(images, missing)
    return len(targets) - len(missing)


def open_to_export(run: FinishedRun, source: str | None, link: str) -> ImageSource:
    """The images of `run`, refused where none is left, or where they are not files and `link` is not to copy them."""
    images = run.images(source)
    first = next((row for row in run.trained["row"] if _is_there(images, row)), None)
    if first is None:
        raise UserError(
            f"none of the {counted(len(run.trained), 'image')} of {run.folder} can be read any more; restore them, "
            "or give their new place by --images"
        )
    if link != "copy" and images.path(first) is None:
        raise UserError(f"the images of {run.folder} are not files of their own and cannot be linked; use --link copy")
    return images


def _is_there(images: ImageSource, row: int) -> bool:
    """Whether the file of image `row` is there; where it is no file of its own, whether it can be read."""
    if original := images.path(row):
        return original.is_file()
    try:
        images.read(row)
    except UnreadableImage:
        return False
    return True


def put_images(images: ImageSource, rows: Iterable[int], targets: Sequence[Path], link: str) -> list[int]:
    """Each of `rows` at its place in `targets`, by symlink, hardlink or copy; the rows that cannot be read any more."""
    missing = []
    with Progress("export", len(targets), "img") as progress:
        for row, target in zip(rows, targets, strict=True):
            with os_errors(target, f"{link} an image to"):
                try:
                    _put(images, row, target, LINKS[link])
                except UnreadableImage:
                    missing.append(row)
            progress.advance()
    return missing


def say_missing(images: ImageSource, rows: Sequence[int]) -> None:
    """Say in a line how many images an export leaves out, and the names of the first."""
    if rows:
        names = first_of([images.keys[row] for row in rows])
        count = counted(len(rows), "image that is", "images that are")
        say(f"left out: {count} no longer there or cannot be read: {names}")


def _put(images: ImageSource, row: int, target: Path, link: Callable[[Path, Path], object]) -> None:
    """Image `row` at `target`, whole or not at all; nothing to do where an earlier export put it.

    Raises UnreadableImage where it is no longer there.
    """
    original = images.path(row)
    if original is None:
        target = target.with_name(target.name + ".png")
    if target.exists():
        return
    if original and not original.is_file():  # else a symlink would lead to nothing
        raise UnreadableImage("no longer there")
    data = b"" if original else png(images, row)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{row}.part")  # a short name: the target's may be as long as names can be
    part.unlink(missing_ok=True)
    if original is None:
        part.write_bytes(data)
    else:
        link(original, part)
    part.replace(target)


def export_datasets(run: FinishedRun, out: Path, source: str | None = None) -> int:
    """A folder of Parquet files that `datasets.load_dataset(out)` opens: image, key, cluster, confidence.

    Image files go in byte for byte; other images as PNG; those that are no longer there are left out, which is said.
    What was interrupted is written again.
    """
    images, missing = open_to_export(run, source, "copy"), list[int]()
    schema = _datasets_schema(run.names)
    count = len(run.assignments)
    with new_folder(out, run, "datasets"), Progress("export", count, "img") as progress, os_errors(out, "write to"):
        for number, table in enumerate(_datasets_tables(run.assignments, images, schema, missing)):
            with (out / f"train-{number:05d}.parquet").open("wb") as file:
                pyarrow.parquet.write_table(table, file, row_group_size=256)
            progress.advance(len(table))
    (out / EXPORTED).unlink()  # Parquet files are no images: a folder of photos may hold them
    say_missing(images, missing)
    return count - len(missing)


def folder_name(cluster: int, name: str) -> str:
    """`0003`, or `0003 red cars`: letters, digits and a little punctuation, so that no name leads anywhere else."""
    plain = "".join(c for c in unicodedata.normalize("NFC", name) if c.isalnum() or c in " -_,()+&'")
    short = plain.encode()[:80].decode(errors="ignore").strip()
    return f"{cluster:04d} {short}" if short else f"{cluster:04d}"


def inside(folder: Path, key: str) -> Path:
    """`folder` / `key`, refused where the key would lead out of the folder."""
    parts = key.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in key:
        raise UserError(f"image name {key!r} leads out of the folder to export to; rename that image and embed again")
    return folder.joinpath(*parts)


def png(images: ImageSource, row: int) -> bytes:
    """Image `row` as a PNG file; raises UnreadableImage."""
    buffer = io.BytesIO()
    picture(images.read(row)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def new_folder(out: Path, run: FinishedRun, what: str) -> Iterator[None]:
    """`out`, new or begun by the same export, with a note of which export that is until all of it is there.

    Afterwards the note says that it is complete: `temi embed` of a folder around `out` passes such a folder by.
    """
    note: dict[str, object] = {"corrections": len(run.corrections)}
    note |= {"run": str(run.folder.resolve()), "images": run.cache.digest, "names": run.names, "what": what}
    begun = out / EXPORTED
    with os_errors(out, "create"):
        out.mkdir(parents=True, exist_ok=True)
        there = _read_note(begun) if begun.exists() else COMPLETE
        if there == COMPLETE and any(out.iterdir()):
            raise UserError(f"{out} is not empty; give a new folder by --out")
        if there not in (COMPLETE, note):
            raise UserError(f"{out} holds part of another export; delete it, or give a new folder by --out")
    write_atomic(begun, json.dumps(note).encode())
    yield
    write_atomic(begun, json.dumps(COMPLETE).encode())


def _read_note(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _datasets_schema(names: list[str]) -> pa.Schema:
    """Columns, and the note by which Hugging Face `datasets` knows images and class names."""
    features = {
        "image": {"_type": "Image"},
        "key": {"dtype": "string", "_type": "Value"},
        "cluster": {"names": [folder_name(cluster, name) for cluster, name in enumerate(names)], "_type": "ClassLabel"},
        "confidence": {"dtype": "float32", "_type": "Value"},
    }
    columns = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "key": pa.string(),
        "cluster": pa.int64(),
        "confidence": pa.float32(),
    }
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _datasets_tables(
    assignments: pd.DataFrame, images: ImageSource, schema: pa.Schema, missing: list[int]
) -> Iterator[pa.Table]:
    """Tables of at most SHARD_BYTES of images each; rows whose images are no longer there go to `missing`."""
    rows: list[dict[str, object]] = []
    size = 0
    for key, row, cluster, confidence in assignments.itertuples(index=False, name=None):
        original = images.path(row)
        try:
            data = original.read_bytes() if original else png(images, row)
        except (UnreadableImage, FileNotFoundError):
            missing.append(row)
            continue
        path = key.rsplit("/", 1)[-1] + ("" if original else ".png")
        rows.append({"image": {"bytes": data, "path": path}, "key": key, "cluster": cluster, "confidence": confidence})
        size += len(data)
        if size >= SHARD_BYTES:
            yield pa.Table.from_pylist(rows, schema)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema)
