"""How sure heads may be: as right as clusters are to be expected, which is told without a label.

Heads learn cuts by heart, and say 0.9 of images whatever their clusters are worth. What tells is how far communities of
the same rows agree that differ by chance and by their graph: its fourth power is the accuracy of 81 real sets within
11.4 points in the mean, 17.5 is a guess of the mean of other sets (benchmarks/RESULTS.md).
"""

from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from temi.pipeline.runs.model import ClusterModel

EXPONENT = 4.0
WITHIN = 0.15  # how far accuracy is from that at most, on seven of ten sets
ROWS = 8192  # that are asked, at most
SOFTNESS = (1.0, 100.0)  # 1: as sure as the heads; at 100 probabilities are so equal that images can hardly be ranked


def expected_accuracy(agreement: float | None, clusters: int) -> float | None:
    """Of so many clusters whose first cuts agree on this share of the rows; chance is right about one. None of None."""
    return None if agreement is None else float(max(agreement**EXPONENT, 1 / clusters))


def calibrated(model: ClusterModel, scaled: Float[Tensor, "n D"], expected: float | None) -> ClusterModel:
    """The model as sure of these rows, in the mean, as its clusters are `expected` right; never surer than it is.

    Temperature scaling (Guo et al., ICML 2017) whose temperature is found without labels. Clusters stay.
    """
    if expected is None:
        return model
    rows = scaled[:: -(-len(scaled) // ROWS)]
    together = model.of_scaled.predict_proba(rows).double()

    def excess(softness: float) -> float:
        return replace(model, softness=softness).softened(together).amax(1).mean().item() - expected

    return replace(model, softness=_root(excess))


def _root(falling: Callable[[float], float]) -> float:
    """Where a function that falls is 0 between the ends of SOFTNESS; the end next to it where it is not."""
    least, most = SOFTNESS
    if falling(least) <= 0:
        return least
    return most if falling(most) >= 0 else float(brentq(falling, least, most, xtol=1e-4))
