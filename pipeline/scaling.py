"""How embeddings are scaled before neighbors are mined, layouts are made and heads are trained.

=========  =====================================================================================================
none       as they are
l2         unit norm
standardize  per coordinate: mean 0, deviation 1
center     minus the mean of the training rows, then unit norm
root       signed square root, then `center`
whiten25   signed square root, 128 principal components divided by the 4th root of their deviation, unit norm
whiten50   the same, divided by the square root of their deviation
=========  =====================================================================================================

The signed square root is power normalization (Perronnin, Sánchez, Mensink, ECCV 2010): it tames the few channels of a
frozen encoder that are much larger than the rest. Dividing a component of variance w by w^(p/2), p = 0.25 or 0.5, is
softer than whitening (p = 1), which would blow up the noise of the last components.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16
from torch import Tensor

Kind = Literal["none", "l2", "standardize", "center", "root", "whiten25", "whiten50"]
POWER = {"whiten25": 0.25, "whiten50": 0.5}
COMPONENTS = 128
FLAT = 1e-7  # of the largest variance: below it a component is rounding


@dataclass(frozen=True)
class Scaling:
    """A fitted map of embeddings: x -> f(x) - shift, times `weight`, to unit norm if `unit`.

    Attributes
    ----------
    root : whether f is the signed square root rather than the identity
    shift : (D,)
    weight : (D,) factors, or a (D, D') projection
    unit : whether rows are brought to norm 1
    """

    root: bool
    shift: Float[Tensor, " D"]
    weight: Float[Tensor, "..."]
    unit: bool

    @classmethod
    def fit(cls, kind: Kind, embedding: Float16[Tensor, "N D"] | Float[Tensor, "N D"]) -> "Scaling":
        """Statistics of the training rows for `kind`."""
        root = kind in ("root", *POWER)
        x = signed_root(embedding.float()) if root else embedding.float()
        zero, one = torch.zeros_like(x[0]), torch.ones_like(x[0])
        match kind:
            case "none" | "l2":
                return cls(root, zero, one, kind == "l2")
            case "standardize":
                return cls(root, x.mean(0), 1 / x.std(0).clamp_min(1e-6), False)
            case "center" | "root":
                return cls(root, x.mean(0), one, True)
            case _:
                return cls(root, x.mean(0), _soft_whitening(x - x.mean(0), POWER[kind]), True)

    @property
    def width(self) -> int:
        """D', the width of a scaled row."""
        return self.weight.shape[-1]

    def __call__(self, embedding: Tensor) -> Tensor:
        """Scaled float32 rows, (..., D) -> (..., D')."""
        x = signed_root(embedding.float()) if self.root else embedding.float()
        x = x - self.shift
        x = x * self.weight if self.weight.ndim == 1 else x @ self.weight
        return F.normalize(x, dim=-1) if self.unit else x


def signed_root(x: Tensor) -> Tensor:
    """sign(x) sqrt(|x|)."""
    return x.sign() * x.abs().sqrt()


def _soft_whitening(centered: Float[Tensor, "N D"], power: float) -> Float[Tensor, "D P"]:
    """The leading eigenvectors of the covariance, each divided by its eigenvalue^(power / 2)."""
    # In float64: components of small variance are differences of large numbers.
    covariance = (centered.mT @ centered).double() / len(centered)
    value, vector = torch.linalg.eigh(covariance)
    value, vector = value.flip(0)[:COMPONENTS], vector.flip(1)[:, :COMPONENTS]
    kept = value > FLAT * value[0]
    if not kept.any():  # all rows are equal
        return torch.zeros(len(covariance), 1, device=centered.device)
    projection: Tensor = vector[:, kept] * value[kept] ** (-power / 2)
    return projection.float()
