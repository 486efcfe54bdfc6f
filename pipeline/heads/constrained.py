"""The part of a step that keeps what a person said: pairs that belong together, and pairs that do not."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from temi.pipeline.features.constraints import Constraints
from temi.pipeline.heads import losses
from temi.pipeline.heads.batches import TrainingSet
from temi.pipeline.heads.stack import Heads

DRAWN = 128  # pairs of each source a step
STRENGTH = 1.0  # of their loss beside the objective's

Drawn = tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]


class ConstrainedPairs:
    """Pairs of rows for every step, a function of (seed, step) alone.

    They come from what was told of pairs, and from the rows that were placed: two of one cluster belong together (drawn
    with replacement, so that a row may be its own partner), two of different clusters do not, unless a trial asks for
    fewer clusters than there were.

    Parameters
    ----------
    told : of the rows that are trained on; of none that was placed or paired, there are no pairs
    clusters : the fewest that a trial asks for
    seed : of the draws
    """

    def __init__(self, told: Constraints, data: TrainingSet, clusters: int, seed: int) -> None:
        self.seed = seed
        placed = np.flatnonzero(told.said)
        placed = placed[np.argsort(told.cluster[placed], kind="stable")]
        ends = np.concatenate([placed, told.must.ravel(), told.cannot.ravel()])
        rows, self.index = np.unique(ends, return_inverse=True)
        self.must = len(placed) + np.arange(told.must.size).reshape(-1, 2)
        self.cannot = len(placed) + told.must.size + np.arange(told.cannot.size).reshape(-1, 2)
        _, first, number, size = np.unique(
            told.cluster[placed], return_index=True, return_inverse=True, return_counts=True
        )
        self.first, self.size = first[number], size[number]  # of the cluster of each placed row
        self.has_mates = bool(size.max(initial=0) > 1)
        self.has_others = len(size) > 1 and told.clusters <= clusters
        self.x = data.originals[torch.from_numpy(rows).to(data.bank.device)].to(data.device)
        together = np.repeat([True] * (len(self.must) > 0) + [True] * self.has_mates, DRAWN)
        apart = np.repeat([False] * (len(self.cannot) > 0) + [False] * self.has_others, DRAWN)
        self.together = torch.from_numpy(np.concatenate([together, apart]).astype(bool)).to(data.device)
        self.batch = torch.empty(2 * len(self.together), data.bank.shape[1], device=data.device)

    def draw(self, step: int) -> None:
        """Fill `batch` with the pairs of a step: all first rows, then all second ones."""
        one, other = zip(*self._drawn(np.random.default_rng((self.seed, step))), strict=True)
        chosen = torch.from_numpy(self.index[np.concatenate([*one, *other])])
        torch.index_select(self.x, 0, chosen.to(self.x.device), out=self.batch)

    def _drawn(self, draw: np.random.Generator) -> list[Drawn]:
        parts: list[Drawn] = []
        count = len(self.first)
        if len(self.must):
            parts.append(_some(self.must, draw))
        if self.has_mates:
            one = draw.integers(count, size=DRAWN)
            parts.append((one, self.first[one] + draw.integers(self.size[one])))
        if len(self.cannot):
            parts.append(_some(self.cannot, draw))
        if self.has_others:
            one = draw.integers(count, size=DRAWN)
            after = self.first[one] + self.size[one] + draw.integers(count - self.size[one])
            parts.append((one, after % count))
        return parts

    def learn(self, heads: Heads, temperature: Float[Tensor, " g"], share: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the drawn pairs per head, and the gradient of its weights."""
        passed = heads.forward(self.batch, temperature, training=True)
        student = passed.logits.log_softmax(-1)
        loss, gradient = losses.told_pairs(student, self.together)
        return STRENGTH * loss, heads.gradients(passed, losses.logit_gradient(STRENGTH * gradient, student), share)


def _some(pairs: Int64[np.ndarray, "m 2"], draw: np.random.Generator) -> Drawn:
    chosen = pairs[draw.integers(len(pairs), size=DRAWN)]
    return chosen[:, 0], chosen[:, 1]
