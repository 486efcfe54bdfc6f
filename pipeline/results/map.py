"""A map of all images in the plane, on which neighbors lie together: made once per run."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int32, Int64

from temi.cache import CacheError
from temi.pipeline.errors import UserError
from temi.pipeline.features.neighbors import find_neighbors
from temi.pipeline.features.unit_rows import UnitRows
from temi.pipeline.results.layout import layout
from temi.pipeline.runs.model import load_tensors, save_tensors
from temi.pipeline.start.graph import fuzzy_graph

MAP = "atlas.safetensors"  # as runs of before call it, too
MAP_NEIGHBORS = 15
FEW = 4 * MAP_NEIGHBORS  # with fewer rows the map shows principal components: a graph says little


Graph = tuple[Int32[np.ndarray, "n K"], Float16[np.ndarray, "n K"]]


def map_of(scaled: Float32[np.ndarray, "n D"], neighbors: Graph | None = None) -> Float32[np.ndarray, "n 2"]:
    """Positions within [-1, 1]: UMAP's layout of the neighbor graph from principal components on.

    `neighbors` of the rows and their similarities, where they are known.
    """
    start = _principal(scaled)
    if len(scaled) < FEW:
        return _fitted(start)
    index, similarity = neighbors or find_neighbors(UnitRows(torch.from_numpy(scaled)), MAP_NEIGHBORS)[:2]
    index, similarity = index[:, :MAP_NEIGHBORS], similarity[:, :MAP_NEIGHBORS]
    graph = fuzzy_graph(index, 1 - similarity.astype(np.float32))
    return _fitted(layout(graph, start))


def run_map(
    folder: Path, scaled: Float32[np.ndarray, "n D"], rows: Int64[np.ndarray, " n"], neighbors: Graph | None = None
) -> Float32[np.ndarray, "n 2"]:
    """The map of these `rows` of a cache: the one in `folder` if it is of the same, else made and left there.

    A folder that cannot be written to, such as somebody else's run, does without: the map can be made again.
    """
    path = folder / MAP
    if path.exists():
        tensors: dict[str, torch.Tensor] = {}
        with suppress(UserError):  # a damaged one is made anew
            tensors = load_tensors(path)[0]
        if "row" in tensors and np.array_equal(tensors["row"].numpy(), rows):
            position: Float32[np.ndarray, "n 2"] = tensors["position"].numpy()
            return position
    position = map_of(scaled, neighbors)
    tensors = {"position": torch.from_numpy(position), "row": torch.from_numpy(rows.astype(np.int64))}
    with suppress(CacheError):
        save_tensors(path, tensors, {"format": "temi-atlas-2"})
    return position


def _principal(x: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n 2"]:
    """The two leading principal components, zeros where there are fewer."""
    centered = torch.from_numpy(x - x.mean(0))
    basis = torch.linalg.eigh((centered.T @ centered).double())[1][:, -2:].flip(1).float()
    position = (centered @ basis).numpy()
    return np.ascontiguousarray(np.pad(position, ((0, 0), (0, 2 - position.shape[1]))), dtype=np.float32)


def _fitted(position: Float32[np.ndarray, "n 2"]) -> Float32[np.ndarray, "n 2"]:
    """Centered by medians and scaled so that the farthest few do not press the rest together."""
    centered = position - np.median(position, axis=0)
    reach = max(float(np.quantile(np.abs(centered), 0.995)), 1e-12)
    fitted: Float32[np.ndarray, "n 2"] = np.clip(centered / (1.05 * reach), -1, 1).astype(np.float32)
    return fitted
