"""Is there anything like this image in what was trained on? Answered by cosine to training rows, without a label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from temi.cache.kept import Arrays
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import comparison_bytes, exact_neighbors, nearest
from temi.pipeline.runs.model import load_tensors, save_tensors

NOVELTY = "novelty.safetensors"
SAMPLE = 8192  # training rows kept: at D = 768 they are 13 MB, and the run folder needs no cache to predict
NEIGHBOR = 5  # the fifth nearest: one stray duplicate does not make an image familiar
FAMILIAR_SHARE = 0.99  # of training images that count as familiar to the others


@dataclass(frozen=True)
class Novelty:
    """A sample of the training rows, and how similar to it an image is expected to be.

    Attributes
    ----------
    rows : (M, D) scaled training embeddings
    threshold : similarity that 99 % of the rows reach among the others
    """

    rows: Float[np.ndarray, "M D"]
    threshold: float

    @classmethod
    def fit(cls, scaled: Float[Tensor, "n D"]) -> "Novelty":
        """Calibrate on training rows: each is compared with the others, so nothing but the rows is needed."""
        if len(scaled) > SAMPLE:
            chosen = np.sort(np.random.default_rng(0).choice(len(scaled), SAMPLE, replace=False))
            scaled = scaled[torch.from_numpy(chosen).to(scaled.device)]
        rows = scaled.half().cpu().numpy()
        return cls(rows, float(np.quantile(_among_others(rows), 1 - FAMILIAR_SHARE)))

    @classmethod
    def of_features(cls, features: Features, kind: Kind, scaled: Float[Tensor, "n D"]) -> "Novelty":
        """The same for the rows of `features` after the scaling `kind`; made once."""
        recipe = {"kind": kind, "views": features.view_count, "arithmetic": features.device.type}

        def make() -> Arrays:
            made = cls.fit(scaled)
            return {"rows": made.rows, "threshold": np.array([made.threshold])}

        kept = features.memo("novelty", recipe, make)
        return cls(kept["rows"], float(kept["threshold"][0]))

    def similarity(self, scaled: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, " n"]:
        """Cosine of each row to the fifth nearest training row."""
        k = min(NEIGHBOR, len(self.rows) - 1)
        return np.asarray(nearest(self.rows, scaled.astype(np.float16), k)[1][:, -1], dtype=np.float32)

    def is_novel(self, similarity: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a row is less similar than all but 1 % of the training rows are."""
        return similarity < self.threshold

    def drift(self, similarity: Float32[np.ndarray, " n"]) -> float:
        """Chance that a row of these lies farther from the training rows than one of them from the others.

        The area under the curve that tells the two apart (Mann and Whitney 1947), ties counted half: 0.5 where new rows
        are like the old.
        """
        among = np.sort(_among_others(self.rows))
        nearer = len(among) - np.searchsorted(among, similarity, "right")
        tied = np.searchsorted(among, similarity, "right") - np.searchsorted(among, similarity, "left")
        return float((nearer + tied / 2).mean() / len(among))

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {"rows": torch.from_numpy(self.rows), "threshold": torch.tensor(self.threshold)}
        save_tensors(path, tensors, {"format": "temi-novelty-1"})

    @classmethod
    def load(cls, path: Path) -> "Novelty":
        """Read what `save` wrote; UserError where it is missing or damaged."""
        tensors, _ = load_tensors(path)
        return cls(tensors["rows"].numpy(), float(tensors["threshold"]))


def _among_others(rows: Float[np.ndarray, "M D"]) -> Float32[np.ndarray, " M"]:
    """Cosine of each row to the fifth nearest of the others."""
    return exact_neighbors(rows, min(NEIGHBOR, len(rows) - 1))[1][:, -1].astype(np.float32)


def novelty_bytes(rows: int, width: int, device: str) -> int:
    """Memory of `Novelty.fit`."""
    sample = min(rows, SAMPLE)
    return sample * width * torch.float32.itemsize + comparison_bytes(sample, width, device)
