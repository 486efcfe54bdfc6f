"""A text or CSV file that lists paths of images."""

import csv
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.folder import read_file
from temi.pipeline.images.listing import digest, file_size, refuse_twins, value_labels, value_splits

PATHS = ("path", "file", "file_name", "filename", "image", "key")


class ListedImages:
    """The images that `path` lists, in its order.

    A ``.txt`` has one path per line. A ``.csv`` or ``.tsv`` has a header with a column path (or file, file_name,
    filename, image, key) and may have label and split; rows of a split are brought together. Paths are relative to
    `root`, by default the folder of the list. A missing file is an unreadable image and keeps its row.

    Raises
    ------
    UserError
        The list is missing, empty, not text, has no column of paths, or names an image twice.
    """

    def __init__(self, path: Path, root: Path | None, max_pixels: int) -> None:
        self.root, self.max_pixels = root or path.parent, max_pixels
        rows = _rows(path)
        order = {split: place for place, split in enumerate(dict.fromkeys(split for _, _, split in rows))}
        rows.sort(key=lambda row: order[row[2]])  # stable: the order within a split stays
        self.keys = [key for key, _, _ in rows]
        refuse_twins(self.keys, path)
        self.labels, self.classes = value_labels([int(label) if label.isdecimal() else label for _, label, _ in rows])
        self.splits = value_splits([split for _, _, split in rows])
        self.digest = digest(self.keys, (file_size(self.root / key) for key in self.keys))

    def data(self, row: int) -> bytes:
        return read_file(self.root / self.keys[row])

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


def _rows(path: Path) -> list[tuple[str, str, str]]:
    """(path, label, split) of every row, empty text where there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give an existing list of images") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); save it as UTF-8") from None
    rows = [(line, "", "") for line in text.splitlines() if line.strip()] if path.suffix == ".txt" else _csv(path, text)
    if not rows:
        raise UserError(f"{path} lists no image; give another list")
    return rows


def _csv(path: Path, text: str) -> list[tuple[str, str, str]]:
    table = csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
    column = next((name for name in PATHS if name in (table.fieldnames or ())), None)
    if column is None:
        raise UserError(f"{path} has no column of paths (looked for {', '.join(PATHS)}); name one in its first line")
    return [(row[column], row.get("label") or "", row.get("split") or "") for row in table if row[column]]
