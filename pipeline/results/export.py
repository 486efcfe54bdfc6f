"""The assignments of a run in forms that other programs read. Originals are never moved or changed."""

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.folder import FolderImages
from temi.pipeline.images.listed import ListedImages
from temi.pipeline.progress import Progress
from temi.pipeline.results.finished import FinishedRun

SHARD_BYTES = 256 * 2**20  # of image data per Parquet file of a `datasets` folder
LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symlink": lambda original, target: os.symlink(original.resolve(), target),
    "hardlink": os.link,
    "copy": shutil.copyfile,
}


def export_table(run: FinishedRun, out: Path, kind: str) -> int:
    """key, cluster, name and confidence of every image; `kind` is csv, parquet or json (a list of objects)."""
    table = run.assignments[["key", "cluster", "confidence"]].copy()
    table.insert(2, "name", [run.headings[cluster] for cluster in table["cluster"]])
    match kind:
        case "csv":
            data = table.to_csv(index=False, float_format="%.4f").encode()
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

    Images that are no files of their own (a torchvision data set, a tar file) can be copied, as PNG.

    Raises
    ------
    UserError
        `out` is not empty, the images cannot be found, or cannot be linked.
    """
    images = run.images(source)
    if link != "copy" and file_of(images, 0) is None:
        raise UserError(f"the images of {run.folder} are not files of their own and cannot be linked; use --link copy")
    folders = [out / folder_name(cluster, name) for cluster, name in enumerate(run.names)]
    targets = [
        inside(folders[cluster], key)
        for key, cluster in zip(run.assignments["key"], run.assignments["cluster"], strict=True)
    ]
    _new_folder(out)
    for folder in folders:
        folder.mkdir()
    with Progress("export", len(targets), "img") as progress, os_errors(out, f"{link} images into"):
        for row, target in zip(run.assignments["row"], targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            original = file_of(images, row)
            if original is None:
                target.with_name(target.name + ".png").write_bytes(png(images, row))
            else:
                LINKS[link](original, target)
            progress.advance()
    return len(targets)


def export_datasets(run: FinishedRun, out: Path, source: str | None = None) -> int:
    """A folder of Parquet files that `datasets.load_dataset(out)` opens: image, key, cluster, confidence.

    Image files go in byte for byte; other images as PNG.
    """
    images = run.images(source)
    schema = _datasets_schema(run.names)
    _new_folder(out)
    count = len(run.assignments)
    with Progress("export", count, "img") as progress, os_errors(out, "write"):
        for number, table in enumerate(_datasets_tables(run.assignments, images, schema)):
            pyarrow.parquet.write_table(table, out / f"train-{number:05d}.parquet", row_group_size=256)
            progress.advance(len(table))
    return count


def file_of(images: ImageSource, row: int) -> Path | None:
    """The file that holds image `row` and nothing else, where there is one."""
    match images:
        case FolderImages():
            return images.folder / images.keys[row]
        case ListedImages():
            return images.root / images.keys[row]
        case _:
            return None


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
    """Image `row` as a PNG file."""
    try:
        pixels = images.read(row).permute(1, 2, 0).numpy()
    except UnreadableImage as error:
        raise UserError(f"image {images.keys[row]} could be read before and now cannot: {error}; restore it") from None
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def _new_folder(out: Path) -> None:
    with os_errors(out, "create"):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty; give a new folder by --out")


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


def _datasets_tables(assignments: pd.DataFrame, images: ImageSource, schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of at most SHARD_BYTES of images each."""
    rows: list[dict[str, object]] = []
    size = 0
    for key, row, cluster, confidence in assignments.itertuples(index=False, name=None):
        original = file_of(images, row)
        data = original.read_bytes() if original else png(images, row)
        path = key.rsplit("/", 1)[-1] + ("" if original else ".png")
        rows.append({"image": {"bytes": data, "path": path}, "key": key, "cluster": cluster, "confidence": confidence})
        size += len(data)
        if size >= SHARD_BYTES:
            yield pa.Table.from_pylist(rows, schema)
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema)
