"""Durable files: written whole or not at all, sealed with a checksum, locked while one process writes."""

import csv
import errno
import fcntl
import functools
import json
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import xxhash
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from temi.cache.schema import CacheError

PART = ".part"
LOCK = ".lock"
MAX_JSON_BYTES = 2**28

T = TypeVar("T")


@contextmanager
def os_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an operating system's refusal into one sentence naming `path`."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"cannot {action} {path}: {_reason(error, action)}") from None
    except MemoryError:
        raise CacheError(f"cannot {action} {path}: not enough memory; use a machine with more, or fewer rows") from None


def _reason(error: OSError, action: str) -> str:
    if action == "read" and error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; ask whom it belongs to, or change its permissions"
    advice = {
        errno.ENOSPC: "the disk is full; free some space and rerun the same command",
        errno.EDQUOT: "the disk quota is used up; free some space and rerun the same command",
        errno.EFBIG: "the file would be larger than allowed here (`ulimit -f`); raise the limit, and rerun",
        errno.EACCES: "permission denied; choose a folder that you may write to, or change its permissions",
        errno.EPERM: "permission denied; choose a folder that you may write to, or change its permissions",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder; check the path",
        errno.ENOTDIR: "part of the path is a file, not a folder; check the path",
        errno.EEXIST: "a file has that name; choose another, or move the file away",
        errno.EISDIR: "it is a folder where a file is expected; move it away",
        errno.EIO: "the disk reports an input/output error; check the disk, and restore the file from a copy",
    }
    return advice.get(error.errno or 0, f"{error.strerror or error}; check the disk and the path")


def file_digest(*paths: Path) -> str:
    """xxh3_128 of all bytes of a file, or of several one after another, read in blocks."""
    digest = xxhash.xxh3_128()
    for path in paths:
        with os_errors(path, "read"), open(path, "rb") as file:
            while block := file.read(1 << 21):
                digest.update(block)
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that the file is there whole or not at all, also after a crash or a power cut.

    Only one process may write a given path at a time; callers hold a `Lock`.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """The same for a file that is written part by part: what is yielded is at `path` when the block ends well."""
    part = path.with_name(path.name + PART)
    with os_errors(path, "write"):
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk hold what was last created, renamed and removed in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_cache(name: str) -> Path:
    """Where this package keeps `name` for the user: $XDG_CACHE_HOME/temi, or ~/.cache/temi. It may be deleted."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return home.expanduser() / "temi" / name


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents if missing."""
    with os_errors(folder, "create the folder"):
        folder.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Raise a CacheError where nothing can be written to `folder`, or made where it will be: before hours of work."""
    with os_errors(folder, "write to"):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()


def nameless_memory(folder: Path | None, size: int, action: str) -> mmap.mmap:
    """`size` bytes of a file that has no name and ends with the process, mapped: the system keeps of it what fits.

    It is in `folder`, or where the system keeps temporary files.

    Raises
    ------
    CacheError
        The disk has no room for it; `action` says what it is for.
    """
    folder = folder or Path(tempfile.gettempdir())
    make_folder(folder)
    with os_errors(folder, action), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here and a killed process later
        return mmap.mmap(file.fileno(), size)


def _checksum(table: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(table, sort_keys=True, allow_nan=False).encode())


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    r"""A CSV file in UTF-8 whose lines end in \n, every field read back as it was.

    The csv module quotes \r and \n only where they are its own line end; so that is what it is given.
    """
    lines: list[str] = []
    csv.writer(_Lines(lines), lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode()


class _Lines:
    """A file for the csv module, which writes one line at a time."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def write_sealed(path: Path, table: dict[str, Any]) -> None:
    """Write a JSON table with a checksum of its content, atomically; equal tables give equal bytes."""
    sealed = {**table, "checksum": _checksum(table)}
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        data = f"{text}\n".encode()
    except UnicodeEncodeError:
        raise CacheError(f"cannot write {path}: it would hold a name that is not valid Unicode; rename it") from None
    write_atomic(path, data)


def read_sealed(path: Path) -> dict[str, Any]:
    """The table that `write_sealed` wrote; CacheError if it is not exactly that."""
    with os_errors(path, "read"):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CacheError(f"{path} is larger than any file of its kind can be; restore it or embed again")
        data = path.read_bytes()
    return unseal(data, path)


def unseal(data: bytes, path: Path) -> dict[str, Any]:
    """The table in `data`, which `write_sealed` wrote and which comes from `path`."""
    try:
        table = json.loads(data)
        sealed = table.pop("checksum")
        intact = sealed == _checksum(table)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CacheError(f"{path} is damaged or was edited (its checksum does not match); restore it or embed again")
    return table  # type: ignore[no-any-return]  # checked by `parse`


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


def parse(kind: type[T], table: dict[str, Any], path: Path) -> T:
    """`table` as a `kind`, its types and ranges checked; CacheError naming the first wrong field."""
    try:
        value: T = _adapter(kind).validate_json(json.dumps(table))
    except ValidationError as error:
        name, problem = first_problem(error)
        raise CacheError(
            f"{path} is not valid: {name or 'content'}: {problem['msg']}; restore it or embed again"
        ) from None
    return value


def first_problem(error: ValidationError) -> tuple[str, ErrorDetails]:
    """Name of the first wrong field, "" where it is the whole, and what pydantic says of it."""
    problem = error.errors(include_url=False)[0]
    return ".".join(map(str, problem["loc"])), problem


class Lock:
    """An exclusive lock on a path; the system releases it when its process ends, however that happens.

    The lock file is removed on release, so a finished cache holds none.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        _held.add(self)

    @classmethod
    def acquire(cls, path: Path) -> "Lock | None":
        """Lock `path`, creating it; None if another writer holds it."""
        return cls._acquire(path, fcntl.LOCK_NB)

    @classmethod
    def wait_for(cls, path: Path) -> "Lock":
        """Lock `path`, creating it, once no other writer holds it."""
        lock = cls._acquire(path, 0)
        assert lock is not None  # it waited
        return lock

    @classmethod
    def _acquire(cls, path: Path, flags: int) -> "Lock | None":
        with os_errors(path, "lock"):
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
                    # The holder before us may have removed the file between our open and our lock: try again.
                    if _same_file(descriptor, path):
                        return cls(path, descriptor)
                except BlockingIOError:
                    os.close(descriptor)
                    return None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def release(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):
            self._path.unlink()
        os.close(descriptor)

    def forget(self) -> None:
        """In a forked process: the lock is the parent's. Close the copy, which would outlive the parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_locks)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
