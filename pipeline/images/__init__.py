"""Where images come from."""

from pathlib import Path

from pipeline.images.arrays import digits
from pipeline.images.folder import FolderImages
from pipeline.images.source import ImageSource, UnreadableImage
from pipeline.images.torchvision_sets import SETS, torchvision_images

__all__ = ["ImageSource", "UnreadableImage", "open_source"]


def open_source(source: str, *, root: Path | None = None, max_pixels: int) -> ImageSource:
    """The images that `source` names.

    Parameters
    ----------
    source
        ``digits``, a torchvision data set (cifar10, cifar100, stl10, fashion-mnist, ...: see SETS), or a folder.
        A folder of the name of a data set is meant by ``./cifar10``.
    root
        Where a torchvision data set lies or is downloaded to.
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
    return FolderImages(Path(source), max_pixels)
