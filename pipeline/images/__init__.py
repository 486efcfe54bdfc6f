"""Where images come from."""

from pathlib import Path

from temi.pipeline.errors import UserError
from temi.pipeline.images import arrays, file, folder, hub, in_bucket, listed, parquet, tar, torchvision_sets
from temi.pipeline.images.listing import is_pattern
from temi.pipeline.images.source import (
    KINDS,
    ImageNote,
    ImageSource,
    Skipped,
    SourceKind,
    UnreadableImage,
    find_kind,
    register_source,
)

__all__ = [
    "ImageNote",
    "ImageSource",
    "Skipped",
    "SourceKind",
    "UnreadableImage",
    "find_kind",
    "open_source",
    "register_source",
]

# A folder of nothing but tar or Parquet files is theirs, so they are asked before it.
KINDS += [
    arrays.DIGITS,
    torchvision_sets.KIND,
    hub.KIND,
    in_bucket.KIND,
    listed.KIND,
    tar.KIND,
    parquet.KIND,
    file.KIND,
    folder.KIND,
]


def open_source(source: str, *, root: Path | None = None, max_pixels: int) -> ImageSource:
    """The images that `source` names.

    Parameters
    ----------
    source
        ``digits``; a torchvision data set (cifar10, cifar100, stl10, fashion-mnist, ...: see SETS); ``hf:ID`` or
        ``hf-stream:ID`` for Hugging Face `datasets`; a ``.tar``, ``.parquet``, ``.txt``, ``.csv`` or ``.tsv`` file;
        a pattern of tar or Parquet files such as ``shards/*.tar``; an image file; else a folder of images, or of
        nothing but tar or Parquet files; ``s3://BUCKET/NAME`` for a place in a bucket that is like one of the last
        three; or what a plugin registered. A folder of the name of a data set is meant by ``./cifar10``; what exists
        is no pattern.
    root
        Where a torchvision data set lies or is downloaded to; what the paths of a list are relative to.
    max_pixels
        An image with more pixels is refused as a decompression bomb.

    Raises
    ------
    UserError
        The source is missing, holds no image, or cannot be downloaded.
    """
    kind = find_kind(source)
    if kind is not None:
        return kind.open(source, root, max_pixels)
    if is_pattern(source) and not Path(source).exists():
        raise UserError(f"no file matches {source}; give a pattern of tar or Parquet files, e.g. shards/*.tar")
    return folder.FolderImages(Path(source), max_pixels)  # says what is missing
