"""One image file."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.images.decode import SUFFIXES, decode_image
from temi.pipeline.images.listing import digest, file_size, printable
from temi.pipeline.images.source import ImageSource, SourceKind, UnreadableImage


class ImageFile(ImageSource):
    """The image in the file `file`; its key is the one it has in its folder."""

    def __init__(self, file: Path, max_pixels: int) -> None:
        self.file, self.max_pixels = file, max_pixels
        self.keys = printable([file.name])
        self.labels = np.full(1, -1, np.int32)
        self.classes, self.splits = (), {}
        self.digest = digest(self.keys, [file_size(file)])

    def path(self, row: int) -> Path:
        return self.file

    def data(self, row: int) -> bytes:
        return read_file(self.file)

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


def read_file(path: Path) -> bytes:
    """The bytes of the file `path`; raises UnreadableImage."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror}") from None
    except ValueError as error:  # a name with a zero byte
        raise UnreadableImage(f"cannot be opened: {error}") from None


def _claims(source: str) -> bool:
    path = Path(source)
    return path.suffix.lower() in SUFFIXES and path.is_file()


KIND = SourceKind("file", _claims, lambda source, root, max_pixels: ImageFile(Path(source), max_pixels))
