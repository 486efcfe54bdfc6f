"""A text or CSV file that lists paths of images."""

import csv
import io
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from temi.cache.files import os_errors
from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.file import read_file
from temi.pipeline.images.listing import digest, file_size, refuse_twins, value_labels, value_splits
from temi.pipeline.images.source import ImageSource, SourceKind

PATHS = ("path", "file", "file_name", "filename", "image", "key")
SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}  # the first that makes a column of paths of the first line

Row = tuple[str, str, str]


class ListedImages(ImageSource):
    """The images that `path` lists, in its order.

    A ``.txt`` has one path per line. A ``.csv`` or ``.tsv`` has a header with a column path (or file, file_name,
    filename, image, key) and may have label and split; rows of a split are brought together. A name that holds a line
    break is quoted, as the csv module does. Paths are relative to `root`, by default the folder of the list. A missing
    file is an unreadable image and keeps its row.

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
        self.sizes = [file_size(self.root / key) for key in self.keys]
        self.digest = digest(self.keys, self.sizes)

    def path(self, row: int) -> Path:
        return self.root / self.keys[row]

    def data(self, row: int) -> bytes:
        return read_file(self.path(row))

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


def _rows(path: Path) -> list[Row]:
    """(path, label, split) of every row, empty text where there is none."""
    with os_errors(path, "read"):
        if not path.exists():
            raise UserError(f"{path} does not exist; give an existing list of images")
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")  # Python's reading of text would make a line break of every \r
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text ({error}); save it as UTF-8") from None
    rows = _lines(text) if path.suffix.lower() == ".txt" else _table(path, text)
    if not rows:
        raise UserError(f"{path} lists no image; give another list")
    return rows


def _lines(text: str) -> list[Row]:
    """Lines end in \\n or \\r\\n and in nothing else: other line breaks of Unicode are letters of a name."""
    return [(line.removesuffix("\r"), "", "") for line in text.split("\n") if line.strip()]


def _table(path: Path, text: str) -> list[Row]:
    for separator in SEPARATORS[path.suffix.lower()]:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            column = next((name for name in PATHS if name in (table.fieldnames or ())), None)
            if column is not None:
                return [(row[column], row.get("label") or "", row.get("split") or "") for row in table if row[column]]
        except csv.Error as error:
            raise UserError(f"{path} is not a table ({error}, line {table.line_num}); save it as CSV again") from None
    raise UserError(f"{path} has no column of paths (looked for {', '.join(PATHS)}); name one in its first line")


def _claims(source: str) -> bool:
    path = Path(source)
    return path.suffix.lower() in (".txt", *SEPARATORS) and not path.is_dir()


KIND = SourceKind("list", _claims, lambda source, root, max_pixels: ListedImages(Path(source), root, max_pixels))
