"""The images of a run as a Lance dataset: a table with an embedding per row, made for search by vector."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from temi.cache.files import os_errors
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.features.blocks import enumerate_blocks
from temi.pipeline.results.finished import FinishedRun
from temi.pipeline.results.names import display_name

BLOCK_ROWS = 8192


def export_lance(run: FinishedRun, out: Path) -> int:
    """Write the folder `out`, which appears when it is whole: key, cluster, name, confidence, embedding (D) float16.

    Raises
    ------
    UserError
        `out` is there already, or the extra ``lance`` is not installed.
    """
    lance = import_extra("lance", "lance", "--format lance")
    if out.exists():
        raise UserError(f"{out} is there already; delete it, or give another folder by --out")
    part = out.with_name(out.name + ".part")
    with os_errors(out, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # what an interrupted export left
        schema = _schema(run.rows.shape[1])
        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, _batches(run, schema)), str(part))
        part.rename(out)
    return len(run.trained)


def _schema(width: int) -> pa.Schema:
    fields = {"key": pa.string(), "cluster": pa.int32(), "name": pa.string(), "confidence": pa.float32()}
    return pa.schema(fields | {"embedding": pa.list_(pa.float16(), width)})


def _batches(run: FinishedRun, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    table = run.assignments
    for start, block in enumerate_blocks(run.rows, BLOCK_ROWS):
        part, rows = table.iloc[start : start + len(block)], block.numpy()
        columns = [
            pa.array(part["key"], pa.string()),
            pa.array(part["cluster"], pa.int32()),
            pa.array([display_name(cluster, run.names) for cluster in part["cluster"]], pa.string()),
            pa.array(part["confidence"], pa.float32()),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
