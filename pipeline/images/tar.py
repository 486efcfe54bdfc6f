"""Images inside tar archives, WebDataset shards among them, read in place: nothing is unpacked."""

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from temi.pipeline.errors import UserError
from temi.pipeline.images.bucket_file import BucketFile
from temi.pipeline.images.decode import SUFFIXES, decode_image
from temi.pipeline.images.left_out import left_out, not_read, unwanted
from temi.pipeline.images.listing import (
    digest,
    escaped,
    files_of,
    natural_key,
    path_labels,
    path_splits,
    printable,
    refuse_twins,
    split_name,
    value_labels,
)
from temi.pipeline.images.source import ImageSource, Skipped, SourceKind, UnreadableImage

Label = int | str | None
LABEL_SUFFIXES = (".cls", ".json")


class Member(NamedTuple):
    """Where an image lies: `size` bytes from `start` of archive number `archive`."""

    key: str
    archive: int
    start: int
    size: int
    label: Label  # of WebDataset's .cls or .json beside the image


class TarImages(ImageSource):
    """Every image file in `archives`, in natural order of archive and name.

    A tar of a folder of images has the rows, keys, splits and labels of that folder. In WebDataset shards the label of
    ``0017.jpg`` is the number in ``0017.cls``, or ``label`` or ``cls`` in ``0017.json``; keys are ARCHIVE/NAME.

    Raises
    ------
    UserError
        An archive is missing, compressed, damaged, or no archive holds an image.
    """

    def __init__(self, archives: Sequence[Path | BucketFile], max_pixels: int) -> None:
        self.archives, self.max_pixels = archives, max_pixels
        opened = [_members(path, index) for index, path in enumerate(archives)]
        found = [member for members, _ in opened for member in members]
        self.skipped = [entry for _, skipped in opened for entry in skipped]
        if not found:
            rest = f" ({left_out(self.skipped)})" if self.skipped else ""
            raise UserError(f"{archives[0]} holds no image{rest}; give a tar of image files or WebDataset shards")
        if len(archives) > 1:
            found = [member._replace(key=f"{archives[member.archive].stem}/{member.key}") for member in found]
        else:
            found = sorted(_without_common_folder(found), key=lambda member: natural_key(member.key))
        self._members = found
        self.keys = printable([member.key for member in found])
        refuse_twins(self.keys, archives[0])
        self.sizes = [member.size for member in found]
        self.digest = digest(self.keys, self.sizes)
        paths = [key.split("/") for key in self.keys]
        self.splits = path_splits(paths) if len(archives) == 1 else {}
        if any(member.label is not None for member in found):
            self.labels, self.classes = value_labels([member.label for member in found])
        else:
            folders = [path[1:] for path in paths] if self.splits or len(archives) > 1 else paths
            self.labels, self.classes = path_labels(folders)

    def data(self, row: int) -> bytes:
        member = self._members[row]
        try:
            return _bytes_at(self.archives[member.archive], member.start, member.size)
        except OSError as error:
            raise UnreadableImage(f"cannot be read from the archive: {error.strerror}") from None

    def read(self, row: int) -> UInt8[Tensor, "3 H W"]:
        return decode_image(self.data(row), self.max_pixels)


def _members(path: Path | BucketFile, index: int) -> tuple[list[Member], list[Skipped]]:
    """The images of one archive in natural order, and what else is in it, by its headers and labels alone."""
    try:
        with tarfile.open(path, "r:") as archive:
            entries = [entry for entry in archive if not entry.isdir()]
        files = [entry for entry in entries if entry.isreg() and not entry.issparse()]
        labels, broken = _labels(path, files)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give an existing tar archive") from None
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable, uncompressed tar archive ({error}); recompress or unpack it"
        ) from None
    reasons = [(entry, _reason(entry)) for entry in entries]
    images = sorted((entry for entry, why in reasons if why is None), key=lambda file: natural_key(file.name))
    members = [
        Member(file.name.removeprefix("./"), index, file.offset_data, file.size, labels.get(_sample(file.name)))
        for file in images
    ]
    left = [(entry.name, why or broken.get(entry.name)) for entry, why in reasons]
    return members, [Skipped(escaped(name), why) for name, why in left if why]


def _reason(entry: tarfile.TarInfo) -> str | None:
    """Why an entry is no image and no label of one; "" for a label, None for an image."""
    for part in entry.name.removeprefix("./").split("/"):
        if reason := unwanted(part):
            return reason
    if not entry.isreg() or entry.issparse():
        return "link inside an archive" if entry.issym() or entry.islnk() else "device, pipe or sparse file"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIXES:
        return None
    return "" if suffix in LABEL_SUFFIXES else not_read(entry.name)


def _sample(name: str) -> str:
    """WebDataset's key of a file: the path up to the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _labels(path: Path | BucketFile, files: Sequence[tarfile.TarInfo]) -> tuple[dict[str, Label], dict[str, str]]:
    """Label of each sample that has one; and why a member holds none, by its name, where it is broken."""
    labels: dict[str, Label] = {}
    broken: dict[str, str] = {}
    for file in files:
        try:
            labels.update([found] if (found := _label(path, file)) else [])
        except (ValueError, RecursionError):
            broken[file.name] = "file whose label cannot be read"
    return labels, broken


def _label(path: Path | BucketFile, file: tarfile.TarInfo) -> tuple[str, Label] | None:
    """(sample, label) if `file` is the .cls or .json of a WebDataset sample and holds one."""
    suffix = os.path.splitext(file.name)[1].lower()
    if suffix not in LABEL_SUFFIXES or file.size > 1 << 20:
        return None
    text = _bytes_at(path, file.offset_data, file.size).decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return _sample(file.name), int(text) if text.isdecimal() else text
    table = json.loads(text)
    value = table.get("label", table.get("cls")) if isinstance(table, dict) else None
    return (_sample(file.name), value) if isinstance(value, int | str) else None


def _bytes_at(path: Path | BucketFile, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _without_common_folder(found: list[Member]) -> list[Member]:
    """An archive made of a folder holds that folder's name in front of every key; keys are relative to the folder."""
    tops = {member.key.partition("/")[0] for member in found}
    if len(tops) > 1 or any("/" not in member.key for member in found) or all(map(split_name, tops)):
        return found
    return [member._replace(key=member.key.partition("/")[2]) for member in found]


KIND = SourceKind(
    "tar",
    lambda source: bool(files_of(source, ".tar")),
    lambda source, root, max_pixels: TarImages(files_of(source, ".tar"), max_pixels),
)
