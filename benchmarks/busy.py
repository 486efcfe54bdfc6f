"""One fit beside other work: what threads cost that spin while they wait, and threads that sleep.

    python benchmarks/busy.py [ROWS] [PAIRS] [LOAD]

Starts LOAD processes that keep a core busy each, and in turn a fit with OpenMP's own waiting and one with that of
`temi` (pipeline/limits.py). Prints seconds and CPU seconds of each, and the median ratios.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

FIT = """
import numpy as np
from temi import TemiClusterer
from temi.pipeline.progress import quiet
random = np.random.default_rng(0)
centers = random.standard_normal((10, 64))
rows = (centers[np.arange({rows}) % 10] + random.standard_normal(({rows}, 64))).astype(np.float32)
with quiet():
    TemiClusterer(n_clusters=10).fit(rows)
"""
LOAD = "while True: pass"


def measure(rows: int, **environment: str) -> tuple[float, float]:
    """Seconds and CPU seconds of one fit in a process of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}
    subprocess.run([sys.executable, "-c", FIT.format(rows=rows)], check=True, env=kept | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rows: int = 3000, pairs: int = 3, load: int = 2) -> None:
    others = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(load)]
    threads = str(len(os.sched_getaffinity(0)))
    ratios = []
    try:
        for _ in range(pairs):
            spinning = measure(rows, OMP_NUM_THREADS=threads)
            sleeping = measure(rows, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE", KMP_BLOCKTIME="0")
            print(
                "spinning {:.1f} s, {:.1f} CPU s; ".format(*spinning)
                + "sleeping {:.1f} s, {:.1f} CPU s".format(*sleeping)
            )
            ratios.append([one / other for one, other in zip(spinning, sleeping, strict=True)])
    finally:
        for other in others:
            other.kill()
    seconds, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{rows:,} rows x 64, {threads} threads beside {load} busy processes: {seconds:.1f}x s, {cpu:.1f}x CPU s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
