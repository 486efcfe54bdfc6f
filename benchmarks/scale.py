"""A whole default `train-heads`, and what follows it, on ever more images: seconds and memory of every phase.

Each size runs in a process of its own on a synthetic cache of 100 classes (benchmarks/synthetic.py), which is written
first. The phases are functions of the package that are timed from outside; what is left is "other". Memory is the most
that the process held during a phase, without what it held after a run on a thousand rows, when everything is imported.

    python benchmarks/scale.py [--rows 100000 1000000] [--folder WHERE] [--set SECTION.KEY=VALUE ...]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import CLASSES, make_manifest, write_cache

from temi.pipeline.config import load_config
from temi.pipeline.device import pick_device
from temi.pipeline.evaluate.metrics import cluster_scores
from temi.pipeline.report.pages import write_report
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.predict import predict
from temi.pipeline.runs.train import train_heads

DIM = 768
PHASES = {
    "copies": "features.features:exact_copies",
    "scalings": "features.scaling:Scaling.fit",
    "neighbors": "features.features:find_neighbors",
    "bank": "runs.train:load_training_set",
    "graphs": "start.spaces:graphs_of",
    "communities": "start.communities:communities",
    "taught metrics": "start.taught:Metrics.taught",
    "taught cuts": "start.taught:cuts_of",
    "small communities": "start.taught:search_resolution",
    "merging": "start.taught:merged",
    "reliance": "start.find:reliance",
    "consensus": "start.find:consensus",
    "warm start": "heads.warm_start:warm_start",
    "steps": "runs.loop:TrainingLoop.run",
    "novelty": "runs.novelty:Novelty.fit",
    "aligning": "runs.train:build_model",
    "assigning": "runs.train:write_assignments",
    "scores": "runs.train:label_free_scores",
}


class Phases:
    """Seconds, CPU seconds and peak memory of the PHASES from now on; one that begins inside another interrupts it."""

    def __init__(self) -> None:
        self.base, self.found = resident("VmRSS"), dict[str, dict[str, float]]()
        self._open: list[str] = []
        self._since = time.perf_counter(), time.process_time()
        for name, where in PHASES.items():
            self._watch(name, where)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._close()
        self._open.append(name)
        try:
            yield
        finally:
            self._close()
            self._open.pop()

    def _close(self) -> None:
        now, peak = (time.perf_counter(), time.process_time()), resident("VmHWM") - self.base
        if self._open:
            own = self.found.setdefault(self._open[-1], {"seconds": 0.0, "cpu": 0.0, "mib": 0.0})
            own["seconds"] += now[0] - self._since[0]
            own["cpu"] += now[1] - self._since[1]
            own["mib"] = max(own["mib"], peak)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._since = now

    def _watch(self, name: str, where: str) -> None:
        """Count the time in the function at `where` as phase `name`."""
        module, _, path = where.partition(":")
        *owners, own = path.split(".")
        holder = import_module(f"temi.pipeline.{module}")
        for owner in owners:
            holder = getattr(holder, owner)
        plain = holder.__dict__[own]
        function: Callable[..., Any] = getattr(plain, "__func__", plain)

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **named)

        setattr(holder, own, classmethod(timed) if isinstance(plain, classmethod) else timed)


def resident(name: str) -> float:
    """VmRSS: MiB in memory now; VmHWM: at most, since the peak last began anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def run(folder: Path, rows: int, settings: list[str]) -> None:
    """Train, predict and report; print the phases as JSON."""
    config = load_config(None, [f"heads.clusters={CLASSES}", *settings])
    warm_up(folder / "warm")
    phases = Phases()
    with phases.phase("write"):
        cache = write_cache(folder / "cache", make_manifest(rows, DIM))
    with phases.phase("other"):
        train_heads(cache, config, folder / "run")
    with phases.phase("predict"):
        predict(folder / "run", str(folder / "cache"), folder / "predicted.parquet")
    with phases.phase("report"):
        page = write_report(FinishedRun(folder / "run"))
    found = FinishedRun(folder / "run").trained["cluster"].to_numpy("int64")
    scores = cluster_scores(np.arange(rows) % CLASSES, found, CLASSES)
    device = str(pick_device("auto"))
    print(json.dumps({"phases": phases.found, "device": device, "page": page.stat().st_size, **scores}))


def warm_up(folder: Path) -> None:
    """Import and compile what is needed."""
    train_heads(write_cache(folder / "cache", make_manifest(1000, DIM)), load_config(None), folder / "run")
    write_report(FinishedRun(folder / "run"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the data; 1.6 GB for a million rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run(arguments.folder, arguments.rows[0], arguments.settings)
        return
    cores, threads = os.cpu_count(), torch.get_num_threads()
    print(f"{cores} CPU cores, {platform.machine()}, {threads} threads; {DIM}-d float16, {CLASSES} classes; n = 1")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
            command = [sys.executable, __file__, "--child", "--folder", work, "--rows", str(rows)]
            command += [word for setting in arguments.settings for word in ("--set", setting)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print_table(rows, found)


def print_table(rows: int, found: dict[str, Any]) -> None:
    """One size: a line per phase, and the whole of `train-heads`."""
    phases = found["phases"]
    print(f"\n{rows:,} rows, {found['device']}: ACC {100 * found['acc']:.1f}, NMI {100 * found['nmi']:.1f}\n")
    print("| phase | s | CPU s | MiB |\n|---|---:|---:|---:|")
    apart = ("write", "predict", "report")
    trained = [values for name, values in phases.items() if name not in apart]
    whole = {"seconds": sum(p["seconds"] for p in trained), "cpu": sum(p["cpu"] for p in trained)}
    whole["mib"] = max(p["mib"] for p in trained)
    for name, values in [*phases.items(), ("**train-heads**", whole)]:
        print(f"| {name} | {values['seconds']:.1f} | {values['cpu']:.1f} | {values['mib']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
