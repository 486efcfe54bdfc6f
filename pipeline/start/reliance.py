"""How much each of several ways to cut counts: the more, the better its clusters can be told of other rows.

A linear classifier learns the clusters of three quarters of the rows and predicts those of the rest. It finds clusters
that are regions of the space again, and not borders that were drawn through one: so says TURTLE's objective of all
labelings (Gadetsky, Jiang and Brbic, ICML 2024), here of a few. No label is read.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from temi.pipeline.products import product
from temi.pipeline.start.agreement import contingency
from temi.pipeline.start.taught import SHRINKAGE, class_centers, covariance

FOLDS = 4

Labeling = Int64[np.ndarray, " N"]
Rows = Float32[np.ndarray, "N P"]


def reliance(rows: Rows, labelings: Sequence[Labeling]) -> Float64[np.ndarray, " L"]:
    """How much each labeling of these rows, of mean zero, counts, summing to one: (1 - kappa + 1 / N)^-2.

    As an inverse variance would, with the share of rows that are predicted wrong, beyond chance, in the place of the
    deviation. One row more counts as wrong, so that what is predicted without an error has a weight, too.
    """
    folds = Folds(rows)
    wrong = np.array([1 - folds.predictability(label) for label in labelings]) + 1 / len(rows)
    weight: Float64[np.ndarray, " L"] = wrong**-2.0 / (wrong**-2.0).sum()
    return weight


class Folds:
    """Rows in FOLDS random parts of equal size; fewer rows are as many parts.

    Attributes
    ----------
    rows : (N, P), of mean zero
    part : (N,) which part each is in
    moment : sum of x x^T over the rows outside of every part
    """

    def __init__(self, rows: Rows):
        self.rows = rows
        folds = min(FOLDS, len(rows))
        self.part = np.random.default_rng(0).permutation(len(rows)) % folds
        parts = [self.part == fold for fold in range(folds)]
        inside = [part.sum() * covariance(rows[part]) for part in parts]
        self.moment = [sum(inside) - own for own in inside]

    def predictability(self, label: Labeling) -> float:
        """How far the clusters of rows are those that the other parts say, beyond chance: Cohen's kappa (1960).

        kappa = (p - e) / (1 - e), p the share of rows of which it is right, e that of a guess with the same sizes.
        """
        number, label = np.unique(label, return_inverse=True)
        if len(number) < 2:
            return 0.0
        table = contingency(label, self.predicted(label), (len(number), len(number))) / len(label)
        chance = float(table.sum(0) @ table.sum(1))
        return (float(np.trace(table)) - chance) / (1 - chance)

    def predicted(self, label: Labeling) -> Labeling:
        """The cluster of each row by linear discriminants of the other parts (Fisher 1936; Friedman 1989).

        argmax_c of log(n_c / n) - (x - m_c)^T S^-1 (x - m_c) / 2, with S = (1 - s) S_w + s tr(S_w) / P I.
        """
        found = np.empty(len(label), dtype=np.int64)
        for fold, moment in enumerate(self.moment):
            asked, known = self.part == fold, np.flatnonzero(self.part != fold)
            direction, offset = self._discriminants(label, known, moment)
            found[asked] = (product(torch.from_numpy(self.rows[asked]), direction).numpy() + offset).argmax(1)
        return found

    def _discriminants(
        self, label: Labeling, known: Int64[np.ndarray, " m"], moment: Float64[np.ndarray, "P P"]
    ) -> tuple[torch.Tensor, Float32[np.ndarray, " C"]]:
        clusters = int(label.max()) + 1
        size = np.bincount(label[known], minlength=clusters)
        center = class_centers(self.rows, label[known], size, known)
        within = (moment - (size[:, None] * center).T @ center) / len(known)
        sphere = np.trace(within) / len(within)
        within = (1 - SHRINKAGE) * within + (SHRINKAGE * sphere + np.finfo(np.float32).tiny) * np.eye(len(within))
        direction = np.linalg.solve(within, center.T.astype(np.float64))
        with np.errstate(divide="ignore"):  # a cluster of which no row is known is never the answer
            offset = np.log(size / len(known)) - (center.T * direction).sum(0) / 2
        return torch.from_numpy(direction.astype(np.float32)), offset.astype(np.float32)
