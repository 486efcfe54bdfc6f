"""The append-only file of a run's corrections.

::

    RUN/corrections.jsonl     one entry a line: what, who, when; nothing is ever changed or taken out

An entry counts once its line is whole JSON; a line that a crash cut short is cut off before the next is written.
"""

import json
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from temi.cache.files import LOCK, Lock, os_errors
from temi.pipeline.errors import UserError
from temi.pipeline.results.corrections import Correction, parse_correction, to_json

CORRECTIONS = "corrections.jsonl"


def read_corrections(run: Path) -> list[Correction]:
    """Every entry of the run, undone or not, in the order they were made; UserError where a line is damaged."""
    path = run / CORRECTIONS
    return [parse_correction(line, f"line {number} of {path}") for number, line in _numbered_lines(path)]


def place_of(run: Path, entry: int) -> str:
    """Where the entry of this position in `read_corrections` stands: file and line."""
    path = run / CORRECTIONS
    return f"line {_numbered_lines(path)[entry][0]} of {path}"


def _numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    return [(number, line) for number, line in enumerate(_whole_lines(path).splitlines(), 1) if line.strip()]


def append_corrections(run: Path, entries: Iterable[Correction]) -> None:
    """Add entries, all of them or none; after a crash, the first ones. Returns when they are on the disk.

    The caller holds `correction_lock`.

    Raises
    ------
    UserError
        There is no room for them.
    """
    path = run / CORRECTIONS
    whole = _whole_lines(path)
    lines = "".join(json.dumps(to_json(entry), ensure_ascii=False) + "\n" for entry in entries)
    if whole and not whole.endswith(b"\n"):
        lines = "\n" + lines
    with os_errors(path, "write"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with open(descriptor, "r+b", buffering=0) as file:
            file.truncate(len(whole))
            try:
                _write_through(file, lines.encode())
            except OSError as error:
                file.truncate(len(whole))  # else some would be in force, and the next try would say them twice
                raise UserError(
                    f"cannot write {path}: {error.strerror}; no correction was taken in: "
                    "make room there, or raise the limit on files, and try again"
                ) from None


def _write_through(file: FileIO, data: bytes) -> None:
    file.seek(0, os.SEEK_END)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def correction_lock(run: Path) -> Lock:
    """Held while entries are checked against those before them and written; others wait."""
    return Lock.wait_for(run / f"{CORRECTIONS}{LOCK}")


def _whole_lines(path: Path) -> bytes:
    """The bytes of `path` that count: all, or those up to the last line break where a crash cut the last line short.

    An editor may leave the last line without a break; no part of an entry is whole JSON.
    """
    if not path.exists():
        return b""
    with os_errors(path, "read"):
        data = path.read_bytes()
    ended = data.rfind(b"\n") + 1
    try:
        json.loads(data[ended:])
    except ValueError:
        return data[:ended]
    return data
