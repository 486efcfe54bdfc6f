"""A run in a bucket: a folder of this machine stands for it while a command runs, and goes up when it ends.

What both had when they were last the same is noted beside the folder. So a command brings here what changed in the
bucket since, and leaves what changed here, as of a run or a server that was killed: that goes up with the command. A
run that was deleted in the bucket is deleted here. What changed in both is left in both, and a sentence says so.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import xxhash

from temi.cache.bucket import Bucket
from temi.cache.files import LOCK, PART, Lock, make_folder, user_cache, write_atomic
from temi.cache.schema import NEIGHBOR_FOLDER, CacheError
from temi.cache.words import counted

FIRST = ("config.toml", "environment.json")  # without these the rest of a run is nothing that could go on
LAST = ("training.json", "trials.json")  # what says that a run is finished goes up after the rest
TRAINS = f"run{LOCK}"  # held in the folder of a run by the process that trains it

_open: dict[Path, "Mirror"] = {}

Digests = dict[str, str]  # by the name of a file


class Mirror:
    """The folder that stands for the run, or the trials, at `url`."""

    def __init__(self, url: str) -> None:
        self.url, self.folder = url, user_cache("runs") / xxhash.xxh3_64_hexdigest(url.encode())
        self._bucket, self._notes = Bucket(url), self.folder.with_suffix(".json")

    @classmethod
    def open(cls, url: str) -> "Mirror":
        """Bring here what is at `url`, if anything is."""
        mirror = cls(url)
        mirror.pull()
        _open[mirror.folder] = mirror
        return mirror

    def pull(self) -> None:
        """Fetch what changed there. Raises CacheError, and changes nothing, where a file changed here, too."""
        make_folder(self.folder)
        with self._alone():
            found = self._bucket.read([name for name in self._bucket.tree() if _goes_along(PurePosixPath(name))])
            there = {name: xxhash.xxh3_128_hexdigest(data) for name, data in found.items()}
            coming = self._coming(there)
            for name in coming:
                if name in found:
                    make_folder((self.folder / name).parent)
                    write_atomic(self.folder / name, found[name])
                else:
                    (self.folder / name).unlink()
            self._note(there)

    def _coming(self, there: Mapping[str, str]) -> list[str]:
        """Names of what the bucket has otherwise than this folder, or no more; what changed here alone is not among
        them.
        """
        here, before = self._here(), self._noted()
        if before is None:  # an earlier version took all that the bucket has
            before = {name: digest for name, digest in here.items() if name in there}
        other = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        coming = [name for name in other if name not in here or there.get(name) != before.get(name)]
        self._refuse([name for name in coming if name in here and here[name] != before.get(name)])
        return coming

    def push(self) -> int:
        """Send what is new or changed here; how many files that were. A run that a process trains is left to that one.

        Raises CacheError, and sends nothing, where one of them was changed, or made, there since.
        """
        with self._alone():
            here, sent, owned = self._here(), self._noted() or {}, self._in_training()
            changed = [name for name in sorted(here, key=_turn) if sent.get(name) != here[name]]
            going = [name for name in changed if owned.isdisjoint(PurePosixPath(name).parents)]
            there: dict[str, bytes] | None = None
            with suppress(CacheError):  # a network that fails: writing says so
                listed = self._bucket.tree()
                there = self._bucket.read(name for name in going if name in listed)
            if there is not None:
                known = {name: xxhash.xxh3_128_hexdigest(data) for name, data in there.items()}
                self._refuse([name for name in going if known.get(name) not in (sent.get(name), here[name])])
            try:
                for name in going:
                    data = (self.folder / name).read_bytes()
                    self._bucket.write(name, data)
                    sent[name] = xxhash.xxh3_128_hexdigest(data)  # another command may have added to it since
            finally:
                self._note(sent)
        return len(going)

    def _refuse(self, both: Sequence[str]) -> None:
        """Raise a CacheError where files were changed here and there."""
        if both:
            raise CacheError(
                f"{self.url}/{both[0]} was changed in the bucket and on this machine"
                + (f", and {counted(len(both) - 1, 'more file')}" if len(both) > 1 else "")
                + f"; to go on with the bucket's, delete {self.folder}"
            )

    def _here(self) -> Digests:
        found = Digests()
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if _goes_along(PurePosixPath(name)):
                with suppress(FileNotFoundError, IsADirectoryError):  # another command may have taken it away
                    found[name.as_posix()] = xxhash.xxh3_128_hexdigest(path.read_bytes())
        return found

    def _in_training(self) -> set[PurePosixPath]:
        """The folders of the runs that a process trains."""
        found = set()
        for path in self.folder.rglob(TRAINS):
            if lock := Lock.acquire(path):
                lock.release()
            else:
                found.add(PurePosixPath(path.parent.relative_to(self.folder)))
        return found

    def _noted(self) -> Digests | None:
        """What both had when they were last the same; None where that is not known."""
        with suppress(OSError, ValueError):
            noted: Digests = json.loads(self._notes.read_bytes())
            return noted
        return None

    def _note(self, same: Mapping[str, str]) -> None:
        write_atomic(self._notes, json.dumps(same).encode())

    def _alone(self) -> Lock:
        """Held while files come or go: other commands on the run may be at work."""
        return Lock.wait_for(self.folder.with_suffix(LOCK))


def _turn(name: str) -> tuple[bool, bool, str]:
    """When a file goes up."""
    last = PurePosixPath(name).name
    return last in LAST, last not in FIRST, name


def _goes_along(name: PurePosixPath) -> bool:
    """Whether an object is a file of a run: what is kept to be made once stays here, and no name leads out."""
    own = name.parts[0] != NEIGHBOR_FOLDER and name.suffix not in (LOCK, PART)
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


def typed(place: Path | str) -> str:
    """`shown` as a shell takes it, for hints that can be pasted."""
    words = shown(place)
    return shlex.quote(f"./{words}" if words.startswith("-") else words)  # else it would be read as an option


def with_urls(text: str) -> str:
    """`text` in which a run in a bucket is named by its URL, and not by the folder that stands for it."""
    for folder, mirror in _open.items():
        text = text.replace(str(folder), mirror.url)
    return text
