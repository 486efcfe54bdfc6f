"""What of the machine this process may use: cores by affinity and quota, memory by the limits of its cgroups.

Imports no torch: threads are decided before it starts, and cannot be after.
"""

import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
_share = sys.maxsize  # cores that this process was given of those it could use


def core_count() -> int:
    """Cores that this process may use at once: those of its affinity (taskset, Slurm), fewer where a quota is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, _share, *(int(quota) for quota in _quotas())]))


def limit_cores(count: int) -> None:
    """Have this process use at most so many cores from now on."""
    global _share
    _share = count


def free_memory() -> int:
    """Bytes that this process can still allocate: what is free, less where a limit is nearer."""
    return max(0, min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _memory_limits())]))


def total_memory() -> int:
    """Bytes of memory of the machine, or of the container where that has less."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _memory_limits())])


def free_shared_memory() -> int | None:
    """Bytes free where processes hand each other what they made; None where there is no such place."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def largest_file() -> float:
    """Bytes that a file, also one of shared memory, may have here (`ulimit -f`)."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def settle_threads() -> None:
    """As many threads as `core_count`, which sleep while they wait; what the user has set in the environment stands.

    A thread of OpenMP spins when it waits for the others: on a busy core it takes the time that they need.
    """
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(core_count()))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # GNU and LLVM
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel


def _quotas() -> Iterator[float]:
    """Cores' worth of time that each cgroup around this process is given."""
    for group in _groups("cpu"):
        second = _words(group / "cpu.max")  # version 2: "200000 100000", or "max 100000"
        first = _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")  # version 1: -1 for no limit
        for numbers in (second, first):
            if len(numbers) == 2 and numbers[0].isdigit() and numbers[1].isdigit() and int(numbers[1]):
                yield int(numbers[0]) / int(numbers[1])


def _memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each cgroup around this process; file pages that can be dropped are not in use."""
    second = ("memory.max", "memory.current", "inactive_file")
    first = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for group in _groups("memory"):
        for limit, usage, droppable in (second, first):
            allowed, used = _words(group / limit), _words(group / usage)
            if len(allowed) == len(used) == 1 and allowed[0].isdigit() and used[0].isdigit():
                table = _words(group / "memory.stat")
                files = dict(zip(table[::2], table[1::2], strict=False)).get(droppable, "0")
                yield int(allowed[0]), int(used[0]) - int(files)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the cgroups that this process is in, from its own to the outermost that can be seen.

    In a container the path may be that of the machine outside: then its own limits are those of the root.
    """
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (group for group in (own, *own.parents) if group.is_relative_to(root))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
