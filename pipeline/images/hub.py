"""Data sets of Hugging Face `datasets`: by hub id or local folder, downloaded or streamed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError, in_a_line
from temi.pipeline.extras import import_extra
from temi.pipeline.images.decode import decode_image
from temi.pipeline.images.listing import digest, file_size, value_labels
from temi.pipeline.images.source import ImageSource, SourceKind, UnreadableImage
from temi.pipeline.network import hub_answers


class HubImages(ImageSource):
    """All splits of data set `name`, one after the other; keys are SPLIT/ROW, or ROW where there are no splits.

    The image column is the first of type Image; the labels are the first ClassLabel column, or one called label.

    Parameters
    ----------
    name
        Hub id, optionally ``ID:CONFIG``, a folder of data files, or a folder written by ``save_to_disk``.
    stream
        Do not download: images are fetched as they are read, front to back. One pass over the label column comes
        first, to count rows. Every worker process streams its own copy, so use one (embed.workers=1).

    Raises
    ------
    UserError
        `datasets` is not installed, the data set cannot be found or reached, or has no column of images.
    """

    def __init__(self, name: str, max_pixels: int, *, stream: bool = False) -> None:
        self.max_pixels = max_pixels
        parts = _load(name, stream)
        first = next(iter(parts.values()))
        self._column, label = _columns(name, first)
        self._parts = [_undecoded(part, self._column) for part in parts.values()]
        values = [_values(part, label) for part in parts.values()]
        lengths = [len(part) for part in values]
        self._starts = np.cumsum([0, *lengths]).tolist()
        if not self._starts[-1]:
            raise UserError(f"data set {name} has no row; give another one")
        named = zip(parts, lengths, strict=True)
        self.keys = [f"{split}/{row}".lstrip("/") for split, length in named for row in range(length)]
        ranges = zip(self._starts[:-1], self._starts[1:], strict=True)
        self.splits = dict(zip(parts, ranges, strict=True)) if len(parts) > 1 else {}
        self.labels, self.classes = value_labels([None if value == -1 else value for part in values for value in part])
        self.classes = tuple(getattr(first.features.get(label), "names", None) or self.classes)
        if stream:  # sizes are unknown before the images are fetched
            self.digest = f"stream:{name}:{digest(self.keys, self.labels.tolist())}"
        else:
            self.digest = digest(self.keys, (size for part in self._parts for size in _sizes(part, self._column)))
        self._stream = _Forward(self._parts, self._column) if stream else None

    def data(self, row: int) -> bytes:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - self._starts[part]
        try:
            value = self._stream.value(part, place) if self._stream else self._parts[part][place][self._column]
            return (value or {}).get("bytes") or Path((value or {})["path"]).read_bytes()
        except (KeyError, TypeError):
            raise UnreadableImage("no image in this row") from None
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(f"cannot be fetched: {in_a_line(error, 160)}") from None

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


class _Forward:
    """Values of a stream by row. Rows are asked for in rising order, as `embed` does; going back starts anew."""

    def __init__(self, parts: list[Any], column: str) -> None:
        self._parts, self._column = parts, column
        self._at: tuple[int, int] = (-1, 0)  # part, next row
        self._rows: Iterator[Any] = iter(())

    def value(self, part: int, row: int) -> Any:
        if self._at[0] != part or self._at[1] > row:
            self._at, self._rows = (part, row), iter(self._parts[part].skip(row))
        for _ in range(self._at[1], row):
            next(self._rows)
        self._at = (part, row + 1)
        return next(self._rows)[self._column]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_at": (-1, 0), "_rows": iter(())}


def _load(name: str, stream: bool) -> dict[str, Any]:
    datasets = import_extra("datasets", "datasets", "a data set of the hub")
    import huggingface_hub

    folder, (identifier, _, config) = Path(name), name.partition(":")
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"data set folder {name} does not exist; give an existing folder or a hub id")
    if not folder.is_dir() and not hub_answers():  # what is downloaded is found, and the rest fails at once
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            found = datasets.load_from_disk(name)
        elif folder.is_dir():
            found = datasets.load_dataset(name, streaming=stream)
        else:
            found = datasets.load_dataset(identifier, config or None, streaming=stream)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = in_a_line(error, 160)
        raise UserError(f"data set {name} cannot be loaded ({reason}); check its name and the connection") from None
    return dict(found) if isinstance(found, dict) else {"": found}


def _columns(name: str, part: Any) -> tuple[str, str | None]:
    from datasets import ClassLabel, Image

    features = part.features or {}
    image = next((key for key, kind in features.items() if isinstance(kind, Image)), None)
    if image is None:
        raise UserError(f"data set {name} has no column of images, only {', '.join(features) or 'none'}; give another")
    label = next((key for key, kind in features.items() if isinstance(kind, ClassLabel)), None)
    return image, label or ("label" if "label" in features else None)


def _undecoded(part: Any, column: str) -> Any:
    from datasets import Image

    return part.select_columns([column]).cast_column(column, Image(decode=False))


def _values(part: Any, label: str | None) -> list[Any]:
    """The label of every row, None without labels; streams the label column alone."""
    if hasattr(part, "__len__"):
        return list(part[label]) if label else [None] * len(part)
    if label is None:
        return [None for _ in part]
    return [row[label] for row in part.select_columns([label])]


def _sizes(part: Any, column: str) -> list[int]:
    """Bytes of every image, from the offsets of the Arrow table or the size of its file: no image is read."""
    sizes: list[int] = []
    for chunk in part.with_format("arrow").iter(batch_size=10_000):
        images = chunk.column(column)
        lengths = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
        paths = pc.struct_field(images, "path").to_pylist()
        sizes += [
            file_size(Path(path or "")) if length is None else length
            for length, path in zip(lengths, paths, strict=True)
        ]
    return sizes


def _open(source: str, root: Path | None, max_pixels: int) -> HubImages:
    scheme, _, name = source.partition(":")
    return HubImages(name, max_pixels, stream=scheme == "hf-stream")


KIND = SourceKind("hub", lambda source: source.startswith(("hf:", "hf-stream:")), _open, is_path=False)
