"""A run in a bucket: a folder of this machine stands for it while a command runs, and goes up when it ends.

The bucket is right where it holds anything: what stands for it is fetched anew by every command. A run that was killed
before anything went up is gone on with on the machine that it was begun on.
"""

import shutil
from pathlib import Path, PurePosixPath

import xxhash

from temi.cache.bucket import Bucket
from temi.cache.files import LOCK, PART, file_digest, make_folder, user_cache, write_atomic
from temi.cache.schema import NEIGHBORS

LAST = ("training.json", "trials.json")  # what says that a run is finished goes up after the rest

_open: dict[Path, "Mirror"] = {}


class Mirror:
    """The folder that stands for the run, or the trials, at `url`."""

    def __init__(self, url: str) -> None:
        self.url, self.folder = url, user_cache("runs") / xxhash.xxh3_64_hexdigest(url.encode())
        self._bucket, self._there = Bucket(url), dict[str, str]()  # digest of every object, by its name

    @classmethod
    def open(cls, url: str) -> "Mirror":
        """Bring here what is at `url`, if anything is."""
        mirror = cls(url)
        mirror.pull()
        _open[mirror.folder] = mirror
        return mirror

    def pull(self) -> None:
        """Fetch everything anew."""
        names = [name for name in self._bucket.tree() if _goes_along(PurePosixPath(name))]
        if names:
            shutil.rmtree(self.folder, ignore_errors=True)
        make_folder(self.folder)
        for name, data in self._bucket.read(names).items():
            make_folder((self.folder / name).parent)
            write_atomic(self.folder / name, data)
            self._there[name] = xxhash.xxh3_128_hexdigest(data)

    def push(self) -> int:
        """Send what is new or changed here; how many files that were."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        changed = 0
        for name in sorted(files, key=lambda name: (PurePosixPath(name).name in LAST, name)):
            if _goes_along(PurePosixPath(name)) and self._there.get(name) != (digest := file_digest(files[name])):
                self._bucket.write(name, files[name].read_bytes())
                self._there[name] = digest
                changed += 1
        return changed


def _goes_along(name: PurePosixPath) -> bool:
    """Whether an object is a file of a run: what is kept to be made once stays here, and no name leads out."""
    own = name.parts[0] != NEIGHBORS and name.suffix not in (LOCK, PART)
    return own and ".." not in name.parts and not name.is_absolute()


def mirror_of(folder: Path) -> Mirror | None:
    """What `folder` stands for in this process; None for a run of this machine."""
    return _open.get(folder)


def shown(place: Path | str) -> str:
    """How a person names `place`: by its URL where it is in a folder that stands for one, else as it is given."""
    path = Path(place)
    for parent in (path, *path.parents):
        if mirror := _open.get(parent):
            return "/".join([mirror.url, *path.relative_to(parent).parts])
    return str(place)
