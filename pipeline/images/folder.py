"""A folder of image files, nested as deep as it likes."""

import os
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import SUFFIXES, decode_image
from temi.pipeline.images.listing import digest, natural_key, path_labels, path_splits
from temi.pipeline.images.source import UnreadableImage


class FolderImages:
    """Every image file below `folder`, in natural order of its path ("img2" before "img10"), on any machine the same.

    Keys are posix paths relative to the folder. Hidden files and folders are left out, so are links to folders and
    links to files outside. Folders named train, val, validation, test at the top become splits. If every image lies
    directly in a folder of the first level (below the split), and there are two or more, those are the classes.

    Raises
    ------
    UserError
        The folder is missing, cannot be listed, or holds no image.
    """

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.folder, self.max_pixels = folder, max_pixels
        if not folder.is_dir():
            what = "is a file, not a folder of images" if folder.exists() else "does not exist"
            raise UserError(f"{folder} {what}; give a folder of images, a torchvision data set by name, or digits")
        found = sorted(_walk(folder), key=lambda file: natural_key(file[0]))
        if not found:
            raise UserError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); give another folder")
        self._names = [name for name, _ in found]
        self.keys = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in self._names]
        self.digest = digest(self.keys, [size for _, size in found])
        paths = [key.split("/") for key in self.keys]
        self.splits = path_splits(paths)
        self.labels, self.classes = path_labels([path[1:] for path in paths] if self.splits else paths)

    def data(self, row: int) -> bytes:
        return read_file(self.folder / self._names[row])

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


def read_file(path: Path) -> bytes:
    """The bytes of the file `path`; raises UnreadableImage."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be opened: {error.strerror}") from None


def _walk(folder: Path) -> list[tuple[str, int]]:
    """(posix path relative to `folder`, bytes) of every image file; an explicit stack, for folders of any depth."""
    root, found, pending = folder.resolve(), list[tuple[str, int]](), [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name + "/")
                    elif _is_image(entry, root):
                        found.append((name, entry.stat().st_size))
        except OSError as error:
            raise UserError(f"{folder / prefix} cannot be listed ({error.strerror}); check its permissions") from None
    return found


def _is_image(entry: os.DirEntry[str], root: Path) -> bool:
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES or not entry.is_file():
        return False
    return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root)
