"""Generated folder trees: every entry is an image or listed with its reason, whatever is among them."""

import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from temi.pipeline.errors import UserError
from temi.pipeline.images import UnreadableImage
from temi.pipeline.images.folder import FolderImages, Walk
from temi.pipeline.images.left_out import SYSTEM_FOLDERS

LIMIT = 10_000
NAMES = [
    b"a",
    b"A",
    b"b1",
    b"b10",
    b"x y",
    b"caf\xe9",
    b"caf\\xe9",
    "caf\u00e9".encode(),
    b"[1]",
    b".h",
    b"@eaDir",
    b"\xff\r\n",
]
LINKS = ["file link", "out file", "out folder", "around", "inside", "circle", "nothing"]
FILES = ["image", "broken", "text", "other", "pipe", "socket", "vanishing file"]
FOLDERS = ("folder", "empty", "forbidden", "vanishing folder")
Entry = tuple[str, bytes, int]
ENTRIES = st.lists(
    st.tuples(st.sampled_from([*LINKS, *FILES, *FOLDERS]), st.sampled_from(NAMES), st.integers(0, 30)), max_size=14
)


def picture() -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(file.name)
        return Path(file.name).read_bytes()


PICTURE = picture()


class Tree:
    """A folder `top` made of entries, beside a folder `out`; what is made is in `made`, relative to `top`."""

    def __init__(self, home: bytes, entries: list[Entry]) -> None:
        self.top, self.out = home + b"/top", home + b"/out"
        self.made: dict[bytes, str] = {}
        self.leads: dict[bytes, bytes] = {}  # where links inside lead
        os.makedirs(self.top)
        os.makedirs(self.out + b"/sub")
        for name in (b"o1.png", b"sub/o2.png", b"o.txt"):
            write(self.out + b"/" + name, PICTURE)
        folders = [b""]
        for kind, stem, number in entries:
            parent = folders[number % len(folders)]
            name = parent + stem + (b"" if kind in (*FOLDERS, "inside", "around", "out folder") else self._suffix(kind))
            with suppress(FileExistsError):
                other = folders[(number // 3) % len(folders)]
                self._make(kind, name, other)
                self.made[name], self.leads[name] = kind, other
                if kind == "folder":
                    folders.append(name + b"/")

    def _suffix(self, kind: str) -> bytes:
        return {"text": b".txt", "other": b".xyz"}.get(kind, b".png")

    def _make(self, kind: str, name: bytes, other: bytes) -> None:
        path = self.top + b"/" + name
        links = {
            "file link": self.top + b"/" + next((n for n, k in self.made.items() if k == "image"), b"no"),
            "out file": self.out + b"/o1.png",
            "out folder": self.out,
            "around": os.path.dirname(self.top),
            "inside": self.top + b"/" + other,
            "circle": os.path.basename(path),
            "nothing": b"nowhere",
        }
        if kind in links:
            os.symlink(links[kind], path)
        elif kind in FOLDERS:
            os.mkdir(path)
            if kind in ("forbidden", "vanishing folder"):
                write(path + b"/i.png", PICTURE)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            if os.path.lexists(path):
                raise FileExistsError(path)
            with socket.socket(socket.AF_UNIX) as server, suppress(OSError):  # a path may be too long for one
                server.bind(path)
            if not os.path.lexists(path):
                os.mkfifo(path)
        else:
            write(path, b"no image" if kind == "broken" else PICTURE)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While listed, forbidden folders refuse and vanishing entries vanish, right after their names are read."""
        scandir = os.scandir

        @contextmanager
        def listing(path: os.PathLike[str] | int) -> Iterator[Iterator[os.DirEntry[str]]]:
            here = b"" if isinstance(path, int) else os.path.relpath(os.fsencode(path), self.top)
            if self.made.get(here) == "forbidden":
                raise PermissionError(13, "Permission denied", str(path))
            with scandir(path) as entries:
                found = list(entries)
            for entry in found:
                name = os.path.relpath(os.fsencode(entry.path), self.top)
                if self.made.get(name) == "vanishing file":
                    with suppress(FileNotFoundError):
                        os.unlink(entry.path)
                if self.made.get(name) == "vanishing folder":
                    entry.stat()  # kept, so that it is met as a folder
                    shutil.rmtree(entry.path, ignore_errors=True)
            yield iter(found)

        with patch("temi.pipeline.images.folder.os.scandir", listing):
            yield

    def meets(self, name: bytes) -> bool:
        """Whether a listing meets this entry: nothing above it is hidden, forbidden or gone."""
        parts = name.split(b"/")
        above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        return all(self.made.get(folder) == "folder" and not unwanted_name(folder) for folder in above)

    def leads_to_hidden(self, name: bytes) -> bool:
        """Whether this link is the only way into the folder that it leads to."""
        return self.made[name] == "inside" and not self.meets(self.leads[name])


def write(path: bytes, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)


class Spy(Walk):
    """A walk that is kept for `check`."""

    last: "Spy"

    def __init__(self, folder: Path) -> None:
        Spy.last = self
        super().__init__(folder)


def check(entries: list[Entry]) -> None:
    home = os.fsencode(tempfile.mkdtemp())
    try:
        tree = Tree(home, entries)
        images = None
        with tree.changing(), patch("temi.pipeline.images.folder.Walk", Spy), suppress(UserError):
            images = FolderImages(Path(os.fsdecode(tree.top)), LIMIT)
        check_entries(tree, Spy.last)
        assert (images is None) == (not Spy.last.files)
        if images is not None:
            assert len({path for path, _ in images.skipped}) == len(images.skipped) == len(Spy.last.skipped)
            check_rows(tree, images)
    finally:
        shutil.rmtree(home)


def check_rows(tree: Tree, images: FolderImages) -> None:
    assert len(set(images.keys)) == len(images.keys)
    for row, key in enumerate(images.keys):
        key.encode()
        try:
            assert images.read(row).shape == (3, 2, 3)
        except UnreadableImage:
            folder, last = os.path.split(os.fsencode(images.path(row)))  # maybe met through a link to a hidden folder
            name = os.path.relpath(os.path.join(os.path.realpath(folder), last), os.path.realpath(tree.top))
            assert tree.made.get(name) in ("broken", "file link"), key


def check_entries(tree: Tree, walk: Walk) -> None:
    """Each entry that can be met is met once: as an image, as one left out, or as a folder that was gone into."""
    met = Counter(os.fsencode(name) for name, _ in [*walk.files, *walk.skipped])
    assert max(met.values(), default=0) <= 1
    assert all(reason for _, reason in walk.skipped)
    for name, kind in tree.made.items():
        if not tree.meets(name):
            continue
        entered = kind in ("folder", "empty") and not unwanted_name(name)
        followed = not met[name] and (kind == "out folder" or tree.leads_to_hidden(name))
        assert met[name] == (0 if entered or followed else 1), (name, kind, walk.skipped)
        if followed and kind == "out folder":
            assert all(met[name + b"/" + inner] for inner in (b"o1.png", b"sub/o2.png", b"o.txt"))


def unwanted_name(name: bytes) -> bool:
    last = os.fsdecode(name.split(b"/")[-1])
    return last.startswith(".") or last in SYSTEM_FOLDERS


RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@example([("folder", b".h", 0), ("inside", b"a", 28), ("broken", b"a", 1)])  # a broken image met through a link
@given(ENTRIES)
@settings(max_examples=100, derandomize=True, **RELAXED)
def test_every_entry_of_a_tree_is_an_image_or_left_out_with_its_reason(entries: list[Entry]) -> None:
    check(entries)


@pytest.mark.long
@given(ENTRIES)
@settings(max_examples=2000, **RELAXED)
def test_two_thousand_trees(entries: list[Entry]) -> None:
    check(entries)
