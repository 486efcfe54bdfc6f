"""A map of all images in the plane, on which neighbors lie together: made once per run."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from pipeline.layout import fuzzy_graph, layout
from pipeline.mine import exact_neighbors
from pipeline.model import load_tensors, save_tensors

ATLAS = "atlas.safetensors"
NEIGHBORS = 15
EPOCHS = 150
FEW = 4 * NEIGHBORS  # rows below which a neighbor graph says little: principal components then


def atlas(scaled: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n 2"]:
    """Positions within [-1, 1]: UMAP's layout of the neighbor graph from principal components on."""
    start = _principal(scaled)
    if len(scaled) < FEW:
        return _fitted(start)
    index, similarity = exact_neighbors(scaled.astype(np.float16), NEIGHBORS)
    graph = fuzzy_graph(index, 1 - similarity.astype(np.float32))
    return _fitted(layout(graph, start, EPOCHS, 0, torch.device("cpu")))


def run_atlas(folder: Path, scaled: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n 2"]:
    """The map of a run: the one in `folder` if it is of as many images, else made and left there."""
    path = folder / ATLAS
    if path.exists():
        position: Float32[np.ndarray, "n 2"] = load_tensors(path)[0]["position"].numpy()
        if len(position) == len(scaled):
            return position
    position = atlas(scaled)
    save_tensors(path, {"position": torch.from_numpy(position)}, {"format": "temi-atlas-1"})
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
