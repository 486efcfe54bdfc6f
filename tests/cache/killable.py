"""A process that writes caches in forked children, one per line of its input, to be killed: see test_crash.py.

``FOLDER WORKER WORKERS`` starts one, the answer is its process id; ``wait`` waits for it, the answer is how it ended.
Until then its process id is not given to another process, so it can be killed safely. ``FOLDER WORKER WORKERS FILE``
starts one that claims its first shard, says so by FILE.claimed, and then waits until FILE exists.
"""

import os
import sys
import time
from pathlib import Path

from synthetic import make_manifest, shard_content

from temi.cache import ShardWriter

MANIFEST = make_manifest(rows=600, dim=48, shard_rows=20)


def write(folder: str, worker: str, workers: str, signal: str = "") -> None:
    with ShardWriter.open(Path(folder), MANIFEST) as writer:
        owed = writer.pending(int(worker), int(workers))
        if signal:
            Path(f"{signal}.claimed").touch()
        for shard in owed:
            while signal and not Path(signal).exists():
                time.sleep(0.01)
            writer.write(shard, **shard_content(MANIFEST, shard))
        writer.finish()


if __name__ == "__main__":
    child = 0
    for line in sys.stdin:
        if line == "wait\n":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            write(*line.split())
            os._exit(0)
        print(child, flush=True)
