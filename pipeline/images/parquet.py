"""Images as bytes in Parquet files, as the Hugging Face hub stores data sets."""

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError, in_a_line, kind_and_reason
from temi.pipeline.images.bucket_file import BucketFile
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.listing import digest, files_of, refuse_twins, value_labels
from temi.pipeline.images.source import ImageSource, SourceKind, UnreadableImage

IMAGES = ("image", "img", "bytes", "jpg", "png")
KEYS = ("key", "__key__", "path", "file_name", "filename", "id")
LABELS = ("label", "fine_label", "cls", "class")


class ParquetImages(ImageSource):
    """Rows of `files` in order. The image column is called image, img, bytes, jpg or png and holds binary values or
    structs with a field ``bytes``; keys and labels come from columns with usual names, and class names from the
    features that Hugging Face `datasets` writes into the schema. Without a key column, keys are row numbers.

    A process keeps the row group it read last: workers get runs of rows, so each group is read about once per worker.

    Raises
    ------
    UserError
        A file is missing or not Parquet, the files differ in their columns, or none holds images.
    """

    def __init__(self, files: Sequence[Path | BucketFile], max_pixels: int) -> None:
        self.files, self.max_pixels = files, max_pixels
        opened = [_open(path) for path in files]
        schema = opened[0].schema_arrow
        self._column = _image_column(schema, files[0])
        self._groups = [
            (file, group, parquet.metadata.row_group(group).num_rows)
            for file, parquet in enumerate(opened)
            for group in range(parquet.num_row_groups)
        ]
        self._starts = np.cumsum([0, *(rows for _, _, rows in self._groups)]).tolist()
        self.sizes = [size for parquet in opened for size in _sizes(parquet, self._column)]
        key, label = _first(schema, KEYS), _first(schema, LABELS)
        self.keys = (
            [str(value) for value in _column(opened, key)] if key else [str(row) for row in range(len(self.sizes))]
        )
        if not self.keys:
            raise UserError(f"{files[0]} holds no row; give another Parquet file")
        refuse_twins(self.keys, files[0])
        self.labels, self.classes = value_labels(_column(opened, label) if label else [None] * len(self.sizes))
        self.classes = (_class_names(schema, label) or self.classes) if label else self.classes
        self.splits = {}
        self.digest = digest(self.keys, self.sizes)
        self._kept: tuple[tuple[int, int], Any] | None = None  # (process, group) and its values

    def data(self, row: int) -> bytes:
        group = bisect_right(self._starts, row) - 1
        try:
            value = self._group(group)[row - self._starts[group]].as_py()
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(f"row group cannot be read: {in_a_line(error, 160)}") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise UnreadableImage("no image bytes in this row")
        return bytes(data)

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)

    def _group(self, group: int) -> Any:
        kept = self._kept  # looked at once: another thread may put its own row group there
        if kept is None or kept[0] != (os.getpid(), group):
            file, number, _ = self._groups[group]
            parquet = pq.ParquetFile(self.files[file])  # opened anew: a handle must not be shared by forked workers
            table = parquet.read_row_group(number, columns=[self._column], use_threads=False)
            self._kept = kept = (os.getpid(), group), table.column(self._column)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}


def _open(path: Path | BucketFile) -> Any:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give an existing Parquet file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a Parquet file ({kind_and_reason(error)}); give another one") from None


def _first(schema: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _image_column(schema: Any, path: Path | BucketFile) -> str:
    for name in IMAGES:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return name
    raise UserError(f"{path} has no column of image bytes (looked for {', '.join(IMAGES)}); rename the column")


def _sizes(parquet: Any, column: str) -> list[int]:
    """For every row the stored bytes of its row group's images: told by the footer, so no image is read."""
    sizes: list[int] = []
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        leaves = [group.column(index) for index in range(group.num_columns)]
        stored = sum(leaf.total_compressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] == column)
        sizes += [stored] * group.num_rows
    return sizes


def _column(opened: list[Any], name: str) -> list[Any]:
    return [value for parquet in opened for value in parquet.read(columns=[name]).column(name).to_pylist()]


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Names of a Hugging Face ClassLabel, kept as JSON in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


KIND = SourceKind(
    "parquet",
    lambda source: bool(files_of(source, ".parquet")),
    lambda source, root, max_pixels: ParquetImages(files_of(source, ".parquet"), max_pixels),
)
