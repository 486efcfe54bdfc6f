"""Small images already in memory: scikit-learn's digits, and idx files as MNIST and Fashion-MNIST ship them."""

import gzip
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Int32, UInt8
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import rgb_array
from temi.pipeline.images.source import ImageSource, SourceKind

IDX_SPLITS = {"train": "train", "test": "t10k"}


class ArrayImages(ImageSource):
    """Images in one uint8 array: (N, H, W) grayscale or (N, H, W, 3) RGB."""

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "N ..."],
        labels: Int32[np.ndarray, " N"],
        classes: tuple[str, ...],
        splits: dict[str, tuple[int, int]],
    ) -> None:
        self.pixels, self.labels, self.classes, self.splits = pixels, labels, classes, splits
        ranges = splits or {"": (0, len(pixels))}
        names = {name: f"{name}/" if name else "" for name in ranges}
        self.keys = [f"{names[name]}{row}" for name, (start, stop) in ranges.items() for row in range(stop - start)]
        self.digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(pixels).tobytes())

    def data(self, row: int) -> bytes:
        return bytes(self.pixels[row].data)

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return rgb_array(self.pixels[row])


def digits() -> ArrayImages:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, white on black: no download, no file."""
    from sklearn.datasets import load_digits  # takes a second to import

    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return ArrayImages(pixels, data.target.astype(np.int32), tuple("0123456789"), {})


DIGITS = SourceKind("digits", "digits".__eq__, lambda source, root, max_pixels: digits(), is_path=False)


def find_idx(root: Path, folder: str) -> Path | None:
    """Where below `root` the four idx files lie, gzipped or not: root itself, or torchvision's FOLDER/raw."""
    places = (root, root / folder / "raw")
    return next((place for place in places if _idx_file(place, "train-images-idx3-ubyte") is not None), None)


def idx_images(folder: Path, classes: tuple[str, ...]) -> ArrayImages:
    """The idx files in `folder` (train, then t10k as split "test").

    Raises
    ------
    UserError
        A file is missing, truncated or not in idx format.
    """
    images = {split: _read_idx(folder, f"{prefix}-images-idx3-ubyte") for split, prefix in IDX_SPLITS.items()}
    labels = [_read_idx(folder, f"{prefix}-labels-idx1-ubyte") for prefix in IDX_SPLITS.values()]
    train, total = len(images["train"]), sum(map(len, images.values()))
    if [len(part) for part in labels] != [train, total - train]:
        raise UserError(f"{folder}: the idx files disagree on the number of images; fetch them again")
    splits = {"train": (0, train), "test": (train, total)}
    return ArrayImages(np.concatenate([*images.values()]), np.concatenate(labels).astype(np.int32), classes, splits)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> UInt8[np.ndarray, "N ..."]:
    """An idx file of bytes: 0 0 8 ndim, then big-endian sizes, then the data (yann.lecun.com/exdb/mnist)."""
    path = _idx_file(folder, name)
    if path is None:
        raise UserError(f"{folder} has no {name} (or {name}.gz); fetch it or give another --root")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(int)
        if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * len(sizes) + sizes.prod():
            raise ValueError
    except (OSError, EOFError, ValueError, IndexError):
        raise UserError(f"{path} is not a complete idx file; fetch it again") from None
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)
