"""Where images come from."""

from pathlib import Path

from temi.pipeline.errors import UserError
from temi.pipeline.images.arrays import digits
from temi.pipeline.images.folder import FolderImages
from temi.pipeline.images.hub import HubImages
from temi.pipeline.images.listed import ListedImages
from temi.pipeline.images.listing import natural_key
from temi.pipeline.images.parquet import ParquetImages
from temi.pipeline.images.source import ImageSource, UnreadableImage
from temi.pipeline.images.tar import TarImages
from temi.pipeline.images.torchvision_sets import SETS, torchvision_images

__all__ = ["ImageSource", "UnreadableImage", "open_source"]


def open_source(source: str, *, root: Path | None = None, max_pixels: int) -> ImageSource:
    """The images that `source` names.

    Parameters
    ----------
    source
        ``digits``; a torchvision data set (cifar10, cifar100, stl10, fashion-mnist, ...: see SETS); ``hf:ID`` or
        ``hf-stream:ID`` for Hugging Face `datasets`; a ``.tar``, ``.parquet``, ``.txt``, ``.csv`` or ``.tsv`` file;
        a pattern of tar or Parquet files such as ``shards/*.tar``; else a folder of images, or of nothing but tar or
        Parquet files. A folder of the name of a data set is meant by ``./cifar10``.
    root
        Where a torchvision data set lies or is downloaded to; what the paths of a list are relative to.
    max_pixels
        An image with more pixels is refused as a decompression bomb.

    Raises
    ------
    UserError
        The source is missing, holds no image, or cannot be downloaded.
    """
    if source == "digits":
        return digits()
    if source in SETS:
        return torchvision_images(source, root)
    scheme, _, name = source.partition(":")
    if scheme in ("hf", "hf-stream"):
        return HubImages(name, max_pixels, stream=scheme == "hf-stream")
    path = Path(source)
    if path.suffix in (".txt", ".csv", ".tsv") and not path.is_dir():
        return ListedImages(path, root, max_pixels)
    files = _files(path)
    if files:
        return TarImages(files, max_pixels) if files[0].suffix == ".tar" else ParquetImages(files, max_pixels)
    return FolderImages(path, max_pixels)


def _files(path: Path) -> list[Path]:
    """The tar or Parquet files that `path` names: itself, those it matches, or those in a folder of no others."""
    if path.suffix in (".tar", ".parquet") and not any(sign in path.name for sign in "*?["):
        return [] if path.is_dir() else [path]
    if any(sign in path.name for sign in "*?["):
        files = sorted(path.parent.glob(path.name), key=lambda file: natural_key(file.as_posix()))
        if not files:
            raise UserError(f"no file matches {path}; give a pattern of tar or Parquet files, e.g. shards/*.tar")
    else:
        inside = path.iterdir() if path.is_dir() else iter(())
        files = sorted(
            (file for file in inside if not file.name.startswith(".")), key=lambda file: natural_key(file.name)
        )
    kinds = {file.suffix for file in files}
    return files if kinds in ({".tar"}, {".parquet"}) else []
