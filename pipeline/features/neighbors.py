"""Nearest neighbors of rows by cosine: every pair compared, or beyond a limit an inverted file of measured recall."""

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int32, Int64

from temi.cache.words import counted
from temi.pipeline.device import pick_device
from temi.pipeline.errors import UserError
from temi.pipeline.features.exact_search import block_bytes, nearest_rows
from temi.pipeline.features.inverted_file import InvertedFile, index_bytes
from temi.pipeline.features.unit_rows import UnitRows, import_faiss, unit_rows
from temi.pipeline.progress import Progress

# Up to here every pair is compared; benchmarks/scale.md has what that takes. A GPU's limit was not measured on one.
EXACT_ROWS, EXACT_ROWS_GPU = 30_000, 1_000_000
COMPARED_COPIES = 1.5  # rows compared with all: at unit norm, and half of that in bfloat16
FOUND = 24  # bytes per neighbor while a graph is found and written


def check_count(k: int, rows: int) -> None:
    """Raise a UserError where `rows` images cannot have k neighbors each."""
    if k >= rows:
        raise UserError(
            f"neighbors.k = {k} needs more than {counted(k, 'image')}, but {rows} can be trained on; "
            f"use --set neighbors.k={max(1, min(50, rows // 10))} or add images"
        )


def exact_rows() -> int:
    """Rows up to which every pair is compared on this machine."""
    return EXACT_ROWS_GPU if pick_device("auto").type == "cuda" else EXACT_ROWS


def search_bytes(rows: int, width: int, k: int, device: str) -> int:
    """Memory of a search for `k` neighbors of every row."""
    return rows * k * FOUND + (
        index_bytes(rows, width) if rows > exact_rows() else comparison_bytes(rows, width, device)
    )


def comparison_bytes(rows: int, width: int, device: str) -> int:
    """Memory of rows that are compared with one another, and of a block of their scores."""
    return int(COMPARED_COPIES * rows * width * torch.float32.itemsize) + block_bytes(rows, device)


def find_neighbors(
    rows: UnitRows, k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"], dict[str, str | int | float]]:
    """The k rows of the largest cosine to each row, itself excluded; their cosines; and how they were found."""
    if len(rows) <= exact_rows():
        return *_compare_all(rows.whole(), k), {"backend": "exact", "recall": 1.0}
    index, similarity, probing = approximate_neighbors(rows, k)
    return index, similarity, {"backend": "faiss-ivf", **probing}


def exact_neighbors(
    embedding: Float[np.ndarray, "n D"], k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]:
    """Every pair compared (see pipeline/features/exact_search.py), on the GPU where there is one.

    Each row is excluded from its own neighbors by its *index*: a duplicate of a row is a neighbor, the row is not.
    Rows of norm zero are similar to nothing (cosine 0).
    """
    return _compare_all(unit_rows(embedding), k)


def _compare_all(
    unit: Float32[np.ndarray, "n D"], k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]:
    table = torch.from_numpy(unit).to(pick_device("auto"))
    with Progress("neighbors", total=len(unit), unit="row") as progress:
        index, score = nearest_rows(table, k, lambda rows: progress.advance(rows, note="exact"))
    return index.cpu().numpy().astype(np.int32), score.cpu().numpy().astype(np.float16)


def approximate_neighbors(
    rows: UnitRows, k: int
) -> tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"], dict[str, int | float]]:
    """As `exact_neighbors`, by an inverted file (pipeline/features/inverted_file.py) and a block in memory.

    Returns
    -------
    index, similarity, and a dict with ``lists``, ``probes`` and the ``recall`` that was measured
    """
    index = np.empty((len(rows), k), dtype=np.int32)
    similarity = np.empty((len(rows), k), dtype=np.float16)
    file = InvertedFile.build(rows, k)
    with Progress("neighbors", total=len(rows), unit="row") as progress:
        note = f"{file.probes} of {file.cells} cells probed, recall@{k} {file.recall:.3f}"
        for first, block in rows:
            own = np.arange(first, first + len(block))
            score, found = file.search(block, k + 1)
            index[own], similarity[own] = drop_self(own, found, score)
            progress.advance(len(block), note=note)
    return index, similarity, {"lists": file.cells, "probes": file.probes, "recall": file.recall}


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
