"""The journal of a search, which outlives a process that is killed while it writes a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from temi.cache.files import os_errors


class WholeLines(JournalFileBackend):
    """Optuna's journal, without a last line that was not written to its end.

    Optuna would write the next line right behind it, and could read neither.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        if not _is_record(path.read_bytes().splitlines(keepends=True)[-1:]):
            self._drop_torn_line()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write `logs` behind the last whole line."""
        if not self._ends_a_line():
            self._drop_torn_line()
        with os_errors(self._path, "write"):
            super().append_logs(logs)

    def _ends_a_line(self) -> bool:
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1))
            return file.read() in (b"", b"\n")

    def _drop_torn_line(self) -> None:
        lock = JournalFileSymlinkLock(str(self._path))
        lock.acquire()  # whoever writes that line may just be at it
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            if not _is_record(lines[-1:]):
                with self._path.open("r+b") as file:
                    file.truncate(sum(map(len, lines[:-1])))
        finally:
            lock.release()


def _is_record(last: Sequence[bytes]) -> bool:
    """Whether the last line, if there is one, is whole."""
    try:
        return all(line.endswith(b"\n") and isinstance(json.loads(line), dict) for line in last)
    except ValueError:
        return False
