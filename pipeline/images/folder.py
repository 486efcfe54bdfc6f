"""A folder of image files, nested as deep as it likes."""

import errno
import os
import stat
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.images.decode import SUFFIXES, decode_image
from temi.pipeline.images.file import read_file
from temi.pipeline.images.left_out import left_out, made_by_temi, not_read, unwanted
from temi.pipeline.images.listing import digest, natural_key, printable, splits_and_labels
from temi.pipeline.images.source import ImageSource, Skipped, SourceKind


class FolderImages(ImageSource):
    """Every image file below `folder`, in natural order of its path ("img2" before "img10"), on any machine the same.

    Keys are posix paths relative to the folder. Links to files are followed; so are links to folders, unless that
    folder is read anyway or lies around this one. Every other entry is in `skipped`; a folder that temi made, such as
    an export, is one entry. Folders named train, val, test or alike at the top become splits. If every image lies
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
            raise UserError(
                f"{folder} {what}; give an image, a folder of images, a torchvision data set by name, or digits"
            )
        walk = Walk(folder)
        self.skipped = _named(sorted(walk.skipped))
        self.remarks = [f"links that lead out of {folder} were followed: {walk.outside:,}"] if walk.outside else []
        found = sorted(walk.files, key=lambda file: natural_key(file[0]))
        if not found:
            rest = f" ({left_out(self.skipped)})" if self.skipped else ""
            raise UserError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}){rest}; give another folder")
        self._names = [name for name, _ in found]
        self.keys = printable(self._names)
        self.sizes = [size for _, size in found]
        self.digest = digest(self.keys, self.sizes)
        self.splits, self.labels, self.classes = splits_and_labels(self.keys)

    def path(self, row: int) -> Path:
        return self.folder / self._names[row]

    def data(self, row: int) -> bytes:
        return read_file(self.path(row))

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


class Walk:
    """Every entry below `folder`, once: a folder that was listed, an image in `files`, or `skipped` with its reason.

    Real folders come first and links to folders after them, in natural order, so the result does not depend on the
    order in which a file system answers.

    Attributes
    ----------
    files
        Posix path relative to the folder, and bytes, of every image file.
    skipped
        Path and reason of every entry that was left out.
    outside
        Number of links that were followed out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = 0
        self.files: list[tuple[str, int]] = []
        self.skipped: list[tuple[str, str]] = []
        self._links: list[str] = []  # to folders, to be followed
        self._root = folder.resolve()
        self._around = {_identity(parent.stat()) for parent in self._root.parents}
        self._listed: set[tuple[int, int]] = set()
        self._descend("")
        while self._links:
            self._links.sort(key=natural_key, reverse=True)
            self._descend(self._links.pop())

    def _descend(self, top: str) -> None:
        pending = [top]  # an explicit stack: folders may be nested deeper than calls
        while pending:
            name = pending.pop()
            try:
                if self._is_new(name):
                    with os.scandir(self.folder / name) as scan:
                        entries = list(scan)
                    if name and (reason := made_by_temi(entries)):  # the folder itself was asked for
                        self._skip(name, reason)
                        continue
                    for entry in entries:
                        pending += self._take(entry, f"{name}/{entry.name}" if name else entry.name)
            except OSError as error:
                if name:
                    self._skip(name, _unlisted(error))
                    continue
                raise UserError(f"{self.folder} cannot be listed ({error.strerror}); check its permissions") from None

    def _is_new(self, name: str) -> bool:
        """Note that folder `name` is listed; False, and skipped, where it lies around this one or was listed before."""
        identity = _identity(os.stat(self.folder / name))
        if identity in self._around:
            self._skip(name, "link to a folder around this one")
        elif identity in self._listed:
            self._skip(name, "link to a folder that is read anyway")
        else:
            self._listed.add(identity)
            self.outside += int(self._leaves(name))
            return True
        return False

    def _take(self, entry: os.DirEntry[str], name: str) -> list[str]:
        """Sort one entry in; the folder it is, if it is one to go down into."""
        if reason := unwanted(entry.name):
            self._skip(name, reason)
            return []
        try:
            status = entry.stat()  # of what a link leads to
        except OSError as error:
            self._skip(name, _unreachable(error, entry.is_symlink()))
            return []
        if stat.S_ISDIR(status.st_mode):
            if not entry.is_symlink():
                return [name]
            self._links.append(name)
        elif not stat.S_ISREG(status.st_mode):
            self._skip(name, "device, socket or pipe")
        elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            self._skip(name, not_read(entry.name))
        else:
            self.files.append((name, status.st_size))
            self.outside += int(entry.is_symlink() and self._leaves(name))
        return []

    def _leaves(self, name: str) -> bool:
        path = self.folder / name
        return path.is_symlink() and not path.resolve().is_relative_to(self._root)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append((name, reason))


def _named(skipped: list[tuple[str, str]]) -> list[Skipped]:
    names = printable([name for name, _ in skipped])
    return [Skipped(name, reason) for name, (_, reason) in zip(names, skipped, strict=True)]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unlisted(error: OSError) -> str:
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return "folder gone while listing" if gone else f"folder that cannot be listed ({error.strerror})"


def _unreachable(error: OSError, link: bool) -> str:
    if error.errno == errno.ELOOP:
        return "link in a circle"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "link to nothing" if link else "file gone while listing"
    return f"{'link' if link else 'file'} that cannot be looked at ({error.strerror})"


KIND = SourceKind(
    "folder",
    lambda source: Path(source).is_dir(),
    lambda source, root, max_pixels: FolderImages(Path(source), max_pixels),
)
