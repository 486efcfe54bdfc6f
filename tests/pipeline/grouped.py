"""Cgroups of this machine with real limits, for the tests that run a command inside them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def cgroup(controller: str, setting: str, value: int) -> Iterator[Path]:
    """A new group of `controller`, in which `setting` is `value`; the test is skipped where none can be made."""
    group = Path(f"/sys/fs/cgroup/{controller}/temi-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / setting).write_text(str(value))
    except OSError:
        if group.is_dir():
            group.rmdir()
        pytest.skip("no cgroup can be made here")
    yield group
    group.rmdir()


def inside(group: Path) -> list[str]:
    """Words before a command that put it into `group`."""
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
