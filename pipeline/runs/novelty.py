"""Is there anything like this image in what was trained on? Answered without a label, by distance and by doubt.

Each sign alone misses strangers: an image of an unknown kind may lie between known ones, and one of no kind at all may
fall deep into a cluster. Both become shares of the training images, and Fisher's method joins the two.

Doubt is not the confidence of the heads, which are surer of the rows that they learned than of new ones like them. It
is how little the heads put an image together with its nearest training images, of a training image with the others.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Float64, Int, Int32, Int64
from scipy.special import gammaincc
from torch import Tensor

from temi.cache.kept import Arrays
from temi.pipeline.features.features import Features
from temi.pipeline.features.kinds import Kind
from temi.pipeline.features.neighbors import comparison_bytes, exact_neighbors, nearest
from temi.pipeline.products import arithmetic
from temi.pipeline.runs.model import ClusterModel, load_tensors, save_tensors

NOVELTY = "novelty.safetensors"
SAMPLE = 8192  # training rows kept: at D = 768 they are 13 MB, and the run folder needs no cache to predict
NEIGHBOR = 5  # the fifth nearest: one stray duplicate does not make an image familiar
COMPARED_WITH = 10  # that an image is put together with, or not
NOVEL_SHARE = 0.05  # of training images that are less typical than the threshold
UNLIKE_SHARE = 0.01  # of training rows that are unlike the others
NOTHING = np.zeros((0, 0), np.float16)


@dataclass(frozen=True)
class Novelty:
    """A sample of the training rows, how similar they are to each other, and how far the heads put them together.

    Attributes
    ----------
    rows : (M, D) scaled training embeddings
    near : (M, K) the nearest of the others, COMPARED_WITH of them or all
    familiar : (M,) cosine of each to the fifth nearest of the others
    probability : (M, C) of the clusters of each; of none where no model was asked, or the run is older
    """

    rows: Float[np.ndarray, "M D"]
    near: Int32[np.ndarray, "M K"]
    familiar: Float32[np.ndarray, " M"]
    probability: Float16[np.ndarray, "m C"]

    @classmethod
    def fit(cls, scaled: Float[Tensor, "n D"]) -> "Novelty":
        """Keep a sample of training rows; each is compared with the others, so nothing but the rows is needed."""
        if len(scaled) > SAMPLE:
            chosen = np.sort(np.random.default_rng(0).choice(len(scaled), SAMPLE, replace=False))
            scaled = scaled[torch.from_numpy(chosen).to(scaled.device)]
        return cls._of_rows(scaled.half().cpu().numpy())

    @classmethod
    def of_features(cls, features: Features, kind: Kind, scaled: Float[Tensor, "n D"]) -> "Novelty":
        """The same for the rows of `features` after the scaling `kind`; made once."""
        recipe = {"kind": kind, "views": features.view_count, "arithmetic": arithmetic(features.device)}

        def make() -> Arrays:
            made = cls.fit(scaled)
            return {"rows": made.rows, "near": made.near, "familiar": made.familiar}

        kept = features.memo("familiar", recipe, make)
        return cls(kept["rows"], kept["near"], kept["familiar"], NOTHING)

    @classmethod
    def _of_rows(cls, rows: Float[np.ndarray, "M D"]) -> "Novelty":
        near, similarity = exact_neighbors(rows, min(COMPARED_WITH, len(rows) - 1))
        return cls(rows, near, fifth(similarity), NOTHING)

    def asked(self, model: ClusterModel) -> "Novelty":
        """The same with what `model` says of the rows."""
        rows = torch.from_numpy(self.rows).to(model.scaling.shift.device).float()
        return replace(self, probability=model.of_scaled.predict_proba(rows).half().cpu().numpy())

    def similarity(self, scaled: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, " n"]:
        """Cosine of each row to the fifth nearest training row."""
        return self.look(scaled)[1]

    def look(self, scaled: Float32[np.ndarray, "n D"]) -> tuple[Int64[np.ndarray, "n K"], Float32[np.ndarray, " n"]]:
        """The nearest training rows of each row, and its cosine to the fifth of them."""
        near, similarity = nearest(self.rows, scaled.astype(np.float16), self.near.shape[1])
        return near, fifth(similarity)

    def together(
        self, probability: Float[np.ndarray, "n C"], near: Int[np.ndarray, "n K"]
    ) -> Float32[np.ndarray, " n"]:
        """Chance that a row and one of these training rows are in the same cluster: sum_c p_c mean_k q_kc."""
        others = sum(self.probability[column].astype(np.float32) for column in near.T) / near.shape[1]
        same: Float32[np.ndarray, " n"] = np.einsum("nc,nc->n", probability, others, dtype=np.float32)
        return same

    def typical(
        self,
        similarity: Float32[np.ndarray, " n"],
        near: Int[np.ndarray, "n K"],
        probability: Float[np.ndarray, "n C"],
    ) -> Float64[np.ndarray, " n"]:
        """Fisher's combined p-value of both signs, each as the share of training rows that has no more of it.

        Near 0 for a stranger; about uniform for images like the training images.
        """
        shares = [_share(self.familiar, similarity)]
        if len(self.probability):
            shares.append(_share(self._own, self.together(probability, near)))
        typical: Float64[np.ndarray, " n"] = gammaincc(len(shares), -np.log(shares).sum(0))
        return typical

    @cached_property
    def _own(self) -> Float32[np.ndarray, " M"]:
        """How far the heads put training rows together with the nearest others."""
        return self.together(self.probability, self.near)

    @cached_property
    def threshold(self) -> float:
        """What all but NOVEL_SHARE of the training rows reach."""
        return float(np.quantile(self.typical(self.familiar, self.near, self.probability), NOVEL_SHARE))

    def is_novel(self, typical: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a row is less typical than 95 % of the training rows are."""
        return typical < self.threshold

    def unlike(self, similarity: Float32[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether a row is less similar to the training rows than all but 1 % of them are to each other."""
        return similarity < float(np.quantile(self.familiar, UNLIKE_SHARE))

    def drift(self, similarity: Float32[np.ndarray, " n"]) -> float:
        """Chance that a row of these lies farther from the training rows than one of them from the others.

        The area under the curve that tells the two apart (Mann and Whitney 1947), ties counted half: 0.5 where new rows
        are like the old.
        """
        among = np.sort(self.familiar)
        nearer = len(among) - np.searchsorted(among, similarity, "right")
        tied = np.searchsorted(among, similarity, "right") - np.searchsorted(among, similarity, "left")
        return float((nearer + tied / 2).mean() / len(among))

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        names = ("rows", "near", "familiar", "probability")
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in names}
        save_tensors(path, tensors, {"format": "temi-novelty-3"})

    @classmethod
    def load(cls, path: Path) -> "Novelty":
        """Read what `save` wrote, or the rows of an earlier version; UserError where it is missing or damaged."""
        tensors, _ = load_tensors(path)
        if "probability" not in tensors:
            return cls._of_rows(tensors["rows"].numpy())
        return cls(*(tensors[name].numpy() for name in ("rows", "near", "familiar", "probability")))


def fifth(similarity: Float[np.ndarray, "n K"]) -> Float32[np.ndarray, " n"]:
    """Similarity to the fifth nearest, or to the last where there are fewer."""
    return similarity[:, min(NEIGHBOR, similarity.shape[1]) - 1].astype(np.float32)


def _share(reference: Float32[np.ndarray, " M"], value: Float32[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Share of the reference that is no larger, never 0."""
    below = np.searchsorted(np.sort(reference), value, side="right")
    share: Float64[np.ndarray, " n"] = np.minimum((below + 1) / (len(reference) + 1), 1)
    return share


def novelty_bytes(rows: int, width: int, clusters: int, device: str) -> int:
    """Memory of `Novelty.fit`, or of asking a model what it says of the rows."""
    sample = min(rows, SAMPLE)
    asked = sample * clusters * (torch.float32.itemsize + torch.float16.itemsize)
    return sample * width * torch.float32.itemsize + max(comparison_bytes(sample, width, device), asked)
