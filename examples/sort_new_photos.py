"""Sort new photos with a trained run: a folder per cluster by link, strangers aside. Nothing is moved.

python examples/sort_new_photos.py RUN NEW_PHOTOS SORTED [BACKBONE_FOLDER]
"""

import sys
from pathlib import Path

import pandas as pd

from temi.pipeline.results.export import folder_name, inside
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.predict import predict


def main(run: Path, photos: Path, out: Path, backbone: str | None = None) -> pd.DataFrame:
    """Link every readable image of `photos` below `out`; the table of predictions."""
    out.mkdir(parents=True)
    predict(run, str(photos), out / "predictions.parquet", backbone=backbone)
    table = pd.read_parquet(out / "predictions.parquet")
    names = FinishedRun(run).names
    for row in table[table["error"].isna()].itertuples():
        cluster = int(row.cluster)
        target = inside(out / ("unlike the rest" if row.novel else folder_name(cluster, names[cluster])), row.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to((photos / row.key).resolve())
    return table


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
