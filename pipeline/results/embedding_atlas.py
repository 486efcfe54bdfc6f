"""The map of a run as the Parquet file that Embedding Atlas documents: places, clusters, neighbors, small pictures."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from temi.cache.files import os_errors, write_atomic
from temi.pipeline.results.corrections import merged
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.lists import Evidence, evidence
from temi.pipeline.results.map import run_map
from temi.pipeline.results.names import display_name
from temi.pipeline.results.thumbnails import Thumbnail, run_thumbnails


def export_embedding_atlas(run: FinishedRun, out: Path, source: str | None = None) -> str:
    """Write `out`: key, cluster, name, confidence, second, x, y, neighbors and, where images are found, image.

    A value of ``neighbors`` is ``{"ids": [...], "distances": [...]}``: numbers of rows from 0, and 1 - cosine; one of
    ``image`` is ``{"bytes": WebP, "path": key}``. `source` is where the images are, if they moved.

    Returns
    -------
    str
        Why there are no pictures; "" where there are.
    """
    known = evidence(run)
    columns = _columns(run, known)
    image, missing = _pictures(run, source)
    if image is not None:
        columns["image"] = image
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, buffer.getvalue())
    return missing


def _columns(run: FinishedRun, known: Evidence) -> dict[str, pa.Array]:
    table = run.assignments
    place = run_map(run.shared, run.scaled, table["row"].to_numpy(), (known.neighbor, known.similarity))
    return {
        "key": pa.array(table["key"], pa.string()),
        "cluster": pa.array(table["cluster"], pa.int32()),
        "name": pa.array([display_name(cluster, run.names) for cluster in table["cluster"]], pa.string()),
        "confidence": pa.array(table["confidence"], pa.float32()),
        "second": pa.array(
            [display_name(cluster, run.names) for cluster in merged(run.corrections, known.second)], pa.string()
        ),
        "x": pa.array(place[:, 0]),
        "y": pa.array(place[:, 1]),
        "neighbors": _neighbors(known),
    }


def _neighbors(known: Evidence) -> pa.Array:
    count, k = known.neighbor.shape
    ends = pa.array(np.arange(count + 1, dtype=np.int32) * k)
    distance = 1 - known.similarity.astype(np.float32)
    lists = [pa.ListArray.from_arrays(ends, pa.array(values.reshape(-1))) for values in (known.neighbor, distance)]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])


def _pictures(run: FinishedRun, source: str | None) -> tuple[pa.Array | None, str]:
    """Thumbnails of all images, or why there are none; UserError where `source` was given and is wrong."""
    images, missing = run.images_or_reason(source)
    if images is None:
        return None, missing
    rows = run.trained["row"].tolist()
    made, none = run_thumbnails(run.shared, images, rows, sys.maxsize), Thumbnail()
    webp = pa.array([made.get(row, none).webp or None for row in rows], pa.binary())
    return pa.StructArray.from_arrays([webp, pa.array(run.trained["key"], pa.string())], ["bytes", "path"]), ""
