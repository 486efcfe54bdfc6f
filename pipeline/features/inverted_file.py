"""Approximate nearest rows by cosine, of more rows than memory holds: an inverted file, filled block by block.

k-means on a sample of rows makes cells; a row is compared with those of the cells nearest to it. In the file a row
takes two bytes a coordinate, 2.6 GB for ten million rows of the default width, with the recall of four. One byte has a
percent less, and errors of cosines by which relatives pass for copies (benchmarks/scale.md). As few cells are probed as
find RECALL of the true neighbors of a sample.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from temi.pipeline.features.unit_rows import UnitRows, import_faiss
from temi.pipeline.progress import Progress

RECALL = 0.95  # of the k nearest neighbors that must be found
RECALL_QUERIES = 1000  # rows that recall is measured on
GAIN = 0.002  # of recall: where twice the cells bring less, codes are too coarse for more, and the search ends
TRAINING_ROWS_PER_CELL, ROUNDS = 40, 5  # of k-means; 64 rows and 10 rounds gave no more recall
MOST_PROBES_GPU = 2048  # faiss's limit there
CODE = "SQfp16"  # faiss's name for two bytes a coordinate
BYTES, BYTES_PER_ID = 2, 8

Found = tuple[Float32[np.ndarray, "n K"], Int64[np.ndarray, "n K"]]
"""Cosines, the highest first, and positions of rows."""


@dataclass(frozen=True)
class InvertedFile:
    """All rows in cells, and how many of these are looked into.

    Attributes
    ----------
    index : of faiss
    rows : the rows that are in it
    cells, probes : how many there are, and how many nearest to a row are compared with it
    recall : share of the true neighbors that are so found, of RECALL_QUERIES rows
    """

    index: Any
    rows: UnitRows
    cells: int
    probes: int
    recall: float

    @classmethod
    def build(cls, rows: UnitRows, k: int) -> "InvertedFile":
        """Goes through the rows three times. The file lies on the GPU where faiss is built for one."""
        faiss, cells = import_faiss(), max(1, int(len(rows) ** 0.5))
        count = min(len(rows), max(TRAINING_ROWS_PER_CELL * cells, RECALL_QUERIES))
        sample = rows.at(np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False)))
        index = _trained(sample, cells)
        with Progress("inverted file", total=len(rows), unit="row") as progress:
            for _, block in rows:
                index.add(block)
                progress.advance(len(block))
        queries = sample[:: max(1, count // RECALL_QUERIES)]
        most = min(cells, MOST_PROBES_GPU) if faiss.get_num_gpus() else cells
        return cls(index, rows, cells, *_choose_probes(index, queries, nearest_of(rows, queries, k + 1)[1], most))

    def search(self, block: Float32[np.ndarray, "n P"], count: int) -> Found:
        """The `count` rows nearest to each of `block`; where the cells probed hold fewer, all rows are compared."""
        score, found = self.index.search(block, count)
        short = np.flatnonzero((found < 0).any(1))
        if len(short):
            score[short], found[short] = nearest_of(self.rows, block[short], count)
        return score, found


def nearest_of(rows: UnitRows, queries: Float32[np.ndarray, "n P"], k: int) -> Found:
    """The k of `rows` nearest to each query, every pair compared, in one pass."""
    faiss = import_faiss()
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    for first, block in rows:
        score, found = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(score, found + first)
    best.finalize()
    return best.D, best.I


def index_bytes(rows: int, width: int) -> int:
    """Memory of a file of so many rows, and of the sample that its cells are made from."""
    sample = max(TRAINING_ROWS_PER_CELL * int(rows**0.5), RECALL_QUERIES)
    return rows * (BYTES * width + BYTES_PER_ID) + 2 * sample * width * np.dtype(np.float32).itemsize


def _trained(sample: Float32[np.ndarray, "n P"], cells: int) -> Any:
    """An empty file with so many cells."""
    faiss = import_faiss()
    index = faiss.index_factory(sample.shape[1], f"IVF{cells},{CODE}", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = TRAINING_ROWS_PER_CELL, 1
    index.cp.niter = ROUNDS
    index.train(sample)
    if faiss.get_num_gpus():
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    return index


def _choose_probes(
    index: Any, queries: Float32[np.ndarray, "n P"], truth: Int64[np.ndarray, "n K"], most: int
) -> tuple[int, float]:
    """Cells to probe, doubled until RECALL of `truth` is found or more cells find no more; and the recall."""
    probes, recall = 1, _recall(index, queries, truth, 1)
    while recall < RECALL and probes < most:
        more = min(most, 2 * probes)
        better = _recall(index, queries, truth, more)
        if better - recall < GAIN and probes > 1:
            break
        probes, recall = more, better
    index.nprobe = probes
    return probes, recall


def _recall(index: Any, queries: Float32[np.ndarray, "n P"], truth: Int64[np.ndarray, "n K"], probes: int) -> float:
    index.nprobe = probes
    found = index.search(queries, truth.shape[1])[1]
    return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(truth, found, strict=True)]) / truth.shape[1])
