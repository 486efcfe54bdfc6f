"""Images in a bucket: a tree of objects, an image each, or tar and Parquet files, which are brought here whole."""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from jaxtyping import UInt8
from torch import Tensor

from temi.cache.bucket import Bucket, bucket_url
from temi.pipeline.errors import UserError
from temi.pipeline.images.bucket_file import BucketFile
from temi.pipeline.images.decode import SUFFIXES, decode_image
from temi.pipeline.images.left_out import left_out, not_read, unwanted
from temi.pipeline.images.listing import digest, is_pattern, natural_key, splits_and_labels
from temi.pipeline.images.parquet import ParquetImages
from temi.pipeline.images.source import ImageSource, Skipped, SourceKind, UnreadableImage
from temi.pipeline.images.tar import TarImages

ARCHIVES = {".tar": TarImages, ".parquet": ParquetImages}


class BucketImages(ImageSource):
    """Every image object below `url`, with the rows, keys, splits and labels of the folder that it would be on a disk.

    The images of a batch are asked for at once; `sizes` is that of every object below, by its path.
    """

    def __init__(self, url: str, sizes: dict[str, int], max_pixels: int) -> None:
        self.url, self.max_pixels = url, max_pixels
        reasons = {name: _reason(name) for name in sorted(sizes, key=natural_key) if not name.endswith("/")}
        self.skipped = [Skipped(name, why) for name, why in reasons.items() if why]
        self.keys = [name for name, why in reasons.items() if not why]
        if not self.keys:
            rest = f" ({left_out(self.skipped)})" if self.skipped else ""
            raise UserError(f"{url} holds no image ({', '.join(sorted(SUFFIXES))}){rest}; give another place")
        self.sizes = [sizes[key] for key in self.keys]
        self.digest = digest(self.keys, self.sizes)
        self.splits, self.labels, self.classes = splits_and_labels(self.keys)
        self._ahead: dict[int, bytes | None] = {}
        self._opened: tuple[int, Bucket] | None = None  # process, and its connection

    def prefetch(self, rows: Sequence[int]) -> None:
        self._ahead = self._fetched(rows)

    def _fetched(self, rows: Sequence[int]) -> dict[int, bytes | None]:
        found = self._bucket().read_each(self.keys[row] for row in rows)
        return {row: found[self.keys[row]] for row in rows}

    def data(self, row: int) -> bytes:
        try:
            data = self._ahead.pop(row)
        except KeyError:  # not told of, or another thread's batch took its place
            data = self._fetched([row])[row]
        if data is None:
            raise UnreadableImage("no longer in the bucket")
        return data

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)

    def _bucket(self) -> Bucket:
        """A connection of this process: those of before a fork do not work in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), Bucket(self.url)
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None, "_ahead": {}}


def open_url(source: str, max_pixels: int) -> ImageSource:
    """The images below a URL, or in the tar or Parquet files that it names: one, a pattern, or a place of no others.

    Raises
    ------
    UserError, CacheError
        There are none, or the bucket cannot be read.
    """
    url = bucket_url(source)
    assert url is not None  # it is claimed by this
    place, _, name = url.rpartition("/")
    if is_pattern(source) or PurePosixPath(name).suffix.lower() in ARCHIVES:
        sizes = {found: size for found, size in Bucket(place).sizes().items() if fnmatchcase(found, name)}
        if not sizes:
            raise UserError(f"no object matches {url}; give tar or Parquet files, or the place of a tree of images")
    else:
        place, sizes = url, Bucket(url).tree()
    suffixes = {PurePosixPath(found).suffix.lower() for found in sizes}
    for suffix, kind in ARCHIVES.items():
        if suffixes == {suffix} and not any("/" in found for found in sizes):
            files = [BucketFile(place, found, sizes[found]) for found in sorted(sizes, key=natural_key)]
            return kind(files, max_pixels)
    return BucketImages(place, sizes, max_pixels)


def _reason(name: str) -> str | None:
    """Why an object is no image; None where it is one."""
    if reason := next((why for part in name.split("/") if (why := unwanted(part))), None):
        return reason
    return None if os.path.splitext(name)[1].lower() in SUFFIXES else not_read(PurePosixPath(name).name)


KIND = SourceKind(
    "bucket",
    lambda source: bucket_url(source) is not None,
    lambda source, root, max_pixels: open_url(source, max_pixels),
    is_path=False,
)
