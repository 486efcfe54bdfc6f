"""Which views teach the best metric: policies and numbers of views on folders of images, one folder a class.

    python benchmarks/policies.py FOLDER... --results policies.jsonl [--images 1000] [--backbone efficientnet-lite0]
    python benchmarks/policies.py --results policies.jsonl --table

Each policy is embedded anew; what stage one took stands beside what its metric (`views`, and `joined`, a space of the
default) finds. Labels are the folders' names, read by the scoring alone.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from metric import BASELINES, scaled, scores
from sets import read_rows, run_or_show

from temi.pipeline.config import EmbedConfig
from temi.pipeline.encode.embed import embed
from temi.pipeline.progress import quiet

POLICIES: dict[str, dict[str, Any]] = {
    "no views": {"views": 0},
    "default": {},
    "default, 1 view": {"views": 1},
    "default, 4 views": {"views": 4},
    "default, 8 views": {"views": 8},
    "crops of at least 60 %": {"crop_scale": (0.6, 1.0)},
    "crops down to 8 %": {"crop_scale": (0.08, 1.0)},
    "no flip": {"flip": 0.0},
    "turned": {"turn": 0.75},
    "no color": {"jitter": 0.0},
    "color alone": {"crop_scale": (1.0, 1.0), "flip": 0.0},
}


def some(folder: Path, count: int, where: Path) -> Path:
    """Links to at most `count` images of a folder, evenly from all of them."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    for index in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        link = where / files[index].relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(files[index].resolve())
    return where


def measure(arguments: argparse.Namespace) -> None:
    """Append the lines of every folder and policy that the results do not hold yet."""
    done = {(row["set"], row["policy"]) for row in read_rows(arguments.results)}
    for folder in arguments.folders:
        for policy, changed in POLICIES.items():
            if (folder.name, policy) in done:
                continue
            with tempfile.TemporaryDirectory() as work:
                images = some(folder, arguments.images, Path(work) / "images")
                config = EmbedConfig(backbone=arguments.backbone, **changed)
                began = time.process_time()
                with quiet():
                    cache = embed(str(images), Path(work) / "cache", config)
                seconds = round(time.process_time() - began, 1)
                x, label = torch.from_numpy(cache.embedding()), cache.labels
                views = torch.from_numpy(cache.view_embedding()) if cache.views else None
            for kind in ("joined",) if views is None else ("views", "joined"):
                row = {"set": folder.name, "policy": policy, "metric": kind, "cpu_seconds": seconds}
                row |= scores(scaled(kind)(x, views), label)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: a policy and metric a line, ACC and purity of every set."""
    columns = ["purity", *(f"{name} acc" for name in BASELINES)]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    heads = [f"{name}: {', '.join(columns)}" for name in sets]
    lines = [f"| policy | metric | {' | '.join(heads)} |", "|" + "---|" * (2 + len(sets))]
    for policy in POLICIES:
        for kind in ("views", "joined"):
            found = {row["set"]: row for row in rows if (row["policy"], row["metric"]) == (policy, kind)}
            if found:
                cells = [
                    ", ".join(f"{found[name][column]:.1f}" for column in columns) for name in sets if name in found
                ]
                lines.append(f"| {policy} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--table", action="store_true")
    run_or_show(parser.parse_args(), measure, table)


if __name__ == "__main__":
    main()
