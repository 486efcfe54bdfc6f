"""From a folder of images to named clusters, step by step: what the `temi` commands call.

python examples/cluster_a_folder.py PHOTOS OUT CLUSTERS [section.key=value ...]
"""

import sys
from pathlib import Path

from temi.pipeline.config import load_config
from temi.pipeline.encode.embed import embed
from temi.pipeline.report.pages import write_report
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.runs.train import train_heads


def main(photos: str, out: Path, clusters: int, overrides: list[str]) -> Path:
    """Embed, train, write the report; its path. Run again, it goes on where it was stopped."""
    config = load_config(None, [*overrides, f"heads.clusters={clusters}"])
    cache = embed(photos, out / "cache", config.embed)
    assert cache is not None  # one process made all shards
    train_heads(cache, config, out / "run")
    return write_report(FinishedRun(out / "run"))


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
