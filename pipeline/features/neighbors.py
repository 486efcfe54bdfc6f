"""Nearest neighbors of rows by cosine: every pair compared, or beyond a limit an inverted file of measured recall."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int32, Int64

from temi.pipeline.device import pick_device
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.features.exact_search import nearest_rows
from temi.pipeline.progress import Progress

BLOCK_ROWS = 4096  # queries per search: bounds the (block, K + 1) results
# Up to here every pair is compared; benchmarks/speed.md has what that takes. A GPU's limit was not measured on one.
EXACT_ROWS, EXACT_ROWS_GPU = 100_000, 1_000_000
RECALL = 0.95  # of the k nearest neighbors that an approximate search must find
RECALL_QUERIES = 1000  # rows that recall is measured on
TRAINING_ROWS_PER_LIST = 64
MOST_PROBES_GPU = 2048  # faiss's limit there


def import_faiss() -> Any:
    """The faiss module, which one of two extras brings."""
    return import_extra("faiss", "gpu" if torch.cuda.is_available() else "cpu", "the search for neighbors")


def check_count(k: int, rows: int) -> None:
    """Raise a UserError where `rows` images cannot have k neighbors each."""
    if k >= rows:
        raise UserError(
            f"neighbors.k = {k} needs more than {k} images, but {rows} can be trained on; "
            f"set --set neighbors.k={max(1, min(50, rows // 10))} or add images"
        )


def exact_rows() -> int:
    """Rows up to which every pair is compared on this machine."""
    return EXACT_ROWS_GPU if pick_device("auto").type == "cuda" else EXACT_ROWS


def find_neighbors(
    scaled: Float[np.ndarray, "n D"], k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"], dict[str, str | int | float]]:
    """The k rows of the largest cosine to each row, itself excluded; their cosines; and how they were found."""
    if len(scaled) <= exact_rows():
        return *exact_neighbors(scaled, k), {"backend": "exact", "recall": 1.0}
    index, similarity, probing = approximate_neighbors(scaled, k)
    return index, similarity, {"backend": "faiss-ivf", **probing}


def exact_neighbors(
    embedding: Float[np.ndarray, "n D"], k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]:
    """Every pair compared (see pipeline/features/exact_search.py), on the GPU where there is one.

    Each row is excluded from its own neighbors by its *index*: a duplicate of a row is a neighbor, the row is not.
    Rows of norm zero are similar to nothing (cosine 0).
    """
    unit = torch.from_numpy(unit_rows(embedding)).to(pick_device("auto"))
    with Progress("neighbors", total=len(unit), unit="row") as progress:
        index, score = nearest_rows(unit, k, lambda rows: progress.advance(rows, note="exact"))
    return index.cpu().numpy().astype(np.int32), score.cpu().numpy().astype(np.float16)


def approximate_neighbors(
    embedding: Float[np.ndarray, "n D"], k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"], dict[str, int | float]]:
    """As `exact_neighbors`, by an inverted file: rows are compared within the `probes` nearest of `lists` cells.

    As few cells are probed as find RECALL of the true neighbors of RECALL_QUERIES random rows. The inverted file lies
    on the GPU where faiss is built for one (not measured on a GPU).

    Returns
    -------
    index, similarity, and a dict with ``lists``, ``probes`` and the ``recall`` that was measured
    """
    faiss = import_faiss()
    unit = unit_rows(embedding)
    lists = max(1, int(4 * len(unit) ** 0.5))
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(unit.shape[1]), unit.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    ivf.cp.max_points_per_centroid = TRAINING_ROWS_PER_LIST
    ivf.cp.min_points_per_centroid = 1
    ivf.train(unit)
    most = lists
    if faiss.get_num_gpus():
        ivf, most = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, ivf), min(lists, MOST_PROBES_GPU)
    ivf.add(unit)
    queries = np.random.default_rng(0).choice(len(unit), min(RECALL_QUERIES, len(unit)), replace=False)
    _, truth = faiss.knn(unit[queries], unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    ivf.nprobe, recall = 1, 0.0
    while True:
        _, found = ivf.search(unit[queries], k + 1)
        recall = float(np.mean([len(np.intersect1d(*pair)) for pair in zip(truth, found, strict=True)]) / (k + 1))
        if recall >= RECALL or ivf.nprobe >= most:
            break
        ivf.nprobe = min(most, 2 * ivf.nprobe)

    def search(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        score, found = ivf.search(block, count)
        short = np.flatnonzero((found < 0).any(1))  # fewer rows than that in the probed cells: compare with all
        if len(short):
            score[short], found[short] = faiss.knn(block[short], unit, count, metric=faiss.METRIC_INNER_PRODUCT)
        return score, found

    probes = int(ivf.nprobe)
    note = f"{probes} of {lists} cells probed, recall@{k} {recall:.3f}"
    return *_search(search, unit, k, note), {"lists": lists, "probes": probes, "recall": recall}


def unit_rows(embedding: Float[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    """A copy in float32 whose rows have norm 1; rows of zeros stay as they are."""
    unit = np.array(embedding, dtype=np.float32, order="C")
    import_faiss().normalize_L2(unit)
    return unit


def _search(
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]], unit: np.ndarray, k: int, note: str
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]:
    """Neighbors of all rows by `search` (queries, count) -> (scores, positions), block by block."""
    index = np.empty((len(unit), k), dtype=np.int32)
    similarity = np.empty((len(unit), k), dtype=np.float16)
    with Progress("neighbors", total=len(unit), unit="row") as progress:
        for start in range(0, len(unit), BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, len(unit)))
            score, found = search(unit[block], k + 1)
            index[block], similarity[block] = drop_self(np.arange(block.start, block.stop), found, score)
            progress.advance(block.stop - block.start, note=note)
    return index, similarity


def drop_self(
    rows: Int64[np.ndarray, " n"], found: Int64[np.ndarray, "n K1"], score: np.ndarray
) -> tuple[Int64[np.ndarray, "n K"], np.ndarray]:
    """Remove each row from its own k + 1 results; where it is not among them (duplicates tie), remove the last."""
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    shape = (len(rows), found.shape[1] - 1)
    return found[~own].reshape(shape), score[~own].reshape(shape)


def nearest(
    database: Float[np.ndarray, "N D"], queries: Float[np.ndarray, "n D"], k: int
) -> tuple[Int64[np.ndarray, "n K"], np.ndarray]:
    """The k rows of `database` nearest by cosine to each query, and their similarities."""
    flat = import_faiss().IndexFlatIP(database.shape[1])
    flat.add(unit_rows(database))
    score, found = flat.search(unit_rows(queries), k)
    return found, score
